"""A Realtime client on stock aiortc, for tests. Its only change is to use the loopback address, which aioice leaves
out."""

import asyncio
import contextlib
import json
from typing import Any
from unittest import mock

import aiohttp
from aiortc import RTCBundlePolicy, RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription

Json = dict[str, Any]
DEADLINE_SECONDS = 30.0
LOOPBACK = "127.0.0.1"
TEXT_SESSION: Json = {"type": "realtime", "model": "gpt-realtime", "output_modalities": ["text"]}


class Caller:
    """One call: `open`, `send`, `until`, `close`; `frames` has everything that was received."""

    def __init__(self, base_url: str, key: str = "sk-test") -> None:
        self.base_url = base_url
        self.http = aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"})
        self.frames: list[str | bytes] = []
        self.events: list[Json] = []
        self.answer = ""
        self.location = ""
        self.ended = asyncio.Event()
        self.peer = RTCPeerConnection(
            RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        )
        self.channel: RTCDataChannel | None = None
        self._news = asyncio.Event()

    @property
    def root(self) -> str:
        return self.base_url.removesuffix("/v1")

    @property
    def call_id(self) -> str:
        return self.location.rsplit("/", 1)[-1]

    @property
    def control(self) -> str:
        return f"{self.root}/_emulator/calls/{self.call_id}"

    async def offer(self, dcid: int | None = None) -> str:
        self.peer.addTransceiver("audio")
        self.channel = self.peer.createDataChannel("oai-events", negotiated=dcid is not None, id=dcid)
        self.channel.on("message", self._heard)
        self.channel.on("error", lambda *_: None)
        self.channel.on("close", self.ended.set)
        with mock.patch("aioice.ice.get_host_addresses", return_value=[LOOPBACK]):
            await self.peer.setLocalDescription(await self.peer.createOffer())
        return str(self.peer.localDescription.sdp)

    async def post(self, offer: str, session: Json | None = None, query: str = "") -> aiohttp.ClientResponse:
        """Post an offer: as multipart without part types if there is a session object, raw otherwise."""
        url = f"{self.base_url}/realtime/calls{query}"
        if session is None:
            headers = {"Content-Type": "application/sdp"}
            return await self.http.post(url, data=offer.encode(), headers=headers)
        form = aiohttp.FormData(default_to_multipart=True)
        form.add_field("sdp", offer)
        form.add_field("session", json.dumps(session))
        return await self.http.post(url, data=form)

    async def open(
        self,
        session: Json | None = TEXT_SESSION,
        *,
        dcid: int | None = None,
        offer_size: int | None = None,
        connect: bool = True,
    ) -> None:
        offer = await self.offer(dcid)
        if offer_size is not None:
            offer = offer.replace("a=max-message-size:262144", f"a=max-message-size:{offer_size}")
        response = await self.post(offer, session, f"?dcid={dcid}" if dcid is not None else "")
        self.answer = await response.text()
        assert response.status == 201, self.answer
        self.location = response.headers["Location"]
        await self.take(self.answer)
        if connect:
            await self.until("session.created")

    async def take(self, answer: str) -> None:
        """Apply an answer: audio is made inactive, and the first section's candidates are repeated where MAX_BUNDLE
        looks for them."""
        candidates = [
            line for line in answer.split("\r\n") if line.startswith("a=candidate") and " udp " in line
        ]
        answer = answer.replace("a=sendrecv", "a=inactive", 1) + "".join(f"{line}\r\n" for line in candidates)
        await self.peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await self.peer.addIceCandidate(None)

    @property
    def types(self) -> list[str]:
        return [str(event["type"]) for event in self.events]

    def send(self, event: Json | str) -> None:
        assert self.channel is not None
        self.channel.send(event if isinstance(event, str) else json.dumps(event))

    async def until(self, kind: str, count: int = 1) -> Json:
        """Wait for the `count`th event of a type and return it."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while self.types.count(kind) < count:
                self._news.clear()
                await self._news.wait()
        return [event for event in self.events if event["type"] == kind][count - 1]

    async def ask(self, text: str) -> str:
        """Run one turn and return the answer's text."""
        before = self.types.count("response.done")
        self.say(text)
        done = await self.until("response.done", before + 1)
        return str(done["response"]["output"][-1]["content"][0]["text"])

    def say(self, text: str) -> None:
        content = [{"type": "input_text", "text": text}]
        self.send(
            {
                "type": "conversation.item.create",
                "item": {"type": "message", "role": "user", "content": content},
            }
        )
        self.send({"type": "response.create"})

    async def hang_up(self) -> int:
        async with self.http.post(f"{self.root}{self.location}/hangup") as response:
            return response.status

    async def look(self, what: str = "") -> Json:
        """Get the control endpoint's description of this call."""
        async with self.http.get(f"{self.control}{what}") as response:
            answer: Json = await response.json()
            return answer

    async def tell(self, what: str, body: Json) -> Json:
        async with self.http.post(f"{self.control}/{what}", json=body) as response:
            answer: Json = await response.json()
            assert response.status == 200, answer
            return answer

    async def close(self) -> None:
        # aiortc leaves its consent checks running if it is closed while it connects.
        for _ in range(100):
            if self.peer.connectionState != "connecting":
                break
            await asyncio.sleep(0.01)
        await self.peer.close()
        await self.http.close()

    def _heard(self, frame: str | bytes) -> None:
        self.frames.append(frame)
        with contextlib.suppress(ValueError):
            event = json.loads(frame)
            if isinstance(event, dict):
                self.events.append(event)
        self._news.set()
