"""Attaching to a call: with the emulator, and with far ends that do what it never does."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from gateway.emulator import Emulator, EmulatorConfig, Faults
from gateway.errors import OverloadError, UpstreamError
from gateway.relay.clock import Clock
from gateway.relay.events.jsontext import LARGE_BYTES
from gateway.relay.ports import CallRequest, LossCause
from gateway.upstream import sideband
from gateway.upstream.config import UpstreamConfig
from gateway.upstream.dialer import CallDialer
from gateway.upstream.sideband import SidebandUpstream
from tests.emulator.caller import Caller
from tests.facts import Facts
from tests.serving import serving
from tests.upstream.kit import Remembering
from tests.waiting import until

UPDATE = json.dumps({"type": "session.update", "session": {"type": "realtime", "instructions": "Rhyme."}})


@asynccontextmanager
async def dialling(base_url: str, facts: Facts | None = None, **options: Any) -> AsyncIterator[CallDialer]:
    """Yield a started dialer."""
    given: dict[str, Any] = {"base_url": base_url, "api_key": "sk-test", "close_timeout_seconds": 1.0}
    config = UpstreamConfig(**given | options)
    dialer = CallDialer(config, (facts or Facts()).port, Clock())
    await dialer.start()
    try:
        yield dialer
    finally:
        await dialer.close()


async def attach(dialer: CallDialer, call_id: str, sink: Remembering, **options: Any) -> SidebandUpstream:
    """Attach to a call."""
    call = await dialer.dial(CallRequest(session={}, attach_to=call_id, **options), sink)
    assert isinstance(call, SidebandUpstream)
    return call


@pytest_asyncio.fixture
async def open_call() -> AsyncIterator[Callable[..., Any]]:
    """Return a function that starts an emulator and opens a call there; both are closed at the end."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Caller:
            connect = options.pop("connect", True)
            emulator = Emulator(EmulatorConfig(**{"port": 0, "tokens_per_second": 0.0} | options))
            await emulator.start()
            stack.push_async_callback(emulator.close)
            caller = Caller(emulator.base_url)
            stack.push_async_callback(caller.close)
            await caller.open(connect=connect)
            return caller

        yield start


def types(sink: Remembering) -> list[str]:
    """Return the types of the received events."""
    return [json.loads(text)["type"] for text in sink.texts]


OpenCall = Callable[..., Any]


# --- events -----------------------------------------------------------------------------------------------------------


async def test_events_pass_both_ways(open_call: OpenCall) -> None:
    """Sent events reach the call in order, later events of the call are received, and every text is acknowledged."""
    caller: Caller = await open_call()
    sink, facts = Remembering(), Facts()
    async with dialling(caller.base_url, facts) as dialer:
        call = await attach(dialer, caller.call_id, sink)
        call.send([UPDATE, '{"type":"response.create"}'])
        await sink.until(lambda sink: "rate_limits.updated" in types(sink))
        await until(lambda: call.acknowledged == 2)

        assert types(sink)[:2] == ["session.updated", "response.created"]
        assert (await caller.look("/received"))["data"] == [UPDATE, '{"type":"response.create"}']
        assert (call.call_id, call.buffered, call.undelivered) == (caller.call_id, 0, False)
        assert call.diagnostics["frames"] == {"received": len(sink.texts), "sent": 2, "unreadable": 0}
    # No peer connection is created for it.
    assert facts.of("peer_connections") == []
    assert sink.losses == []


async def test_megabytes_pass_both_ways(open_call: OpenCall) -> None:
    """An event of 3 MB is sent completely and counted as buffered until then; one of 3 MB is also received."""
    caller: Caller = await open_call()
    text = "x" * 3_000_000
    item = {"id": "i", "type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    create = json.dumps({"type": "conversation.item.create", "item": item})
    sink = Remembering()
    async with dialling(caller.base_url) as dialer:
        call = await attach(dialer, caller.call_id, sink)
        call.send([create])
        assert call.buffered == len(create)
        call.send(['{"type":"conversation.item.retrieve","item_id":"i"}'])
        await sink.until(lambda sink: "conversation.item.retrieved" in types(sink))

    assert json.loads(sink.texts[-1])["item"]["content"][0]["text"] == text


async def test_frame_above_the_limit_ends_the_connection_not_the_call(open_call: OpenCall) -> None:
    """With continuity off there is no reconnect; the loss is reported as `connection_failed`."""
    caller: Caller = await open_call()
    sink = Remembering()
    async with dialling(caller.base_url, max_server_event_bytes=1_000_000) as dialer:
        await attach(dialer, caller.call_id, sink)
        await caller.tell("send", {"frames": ["x" * 1_500_000]})
        await sink.until(lambda sink: sink.losses)

    assert sink.losses == [(0, LossCause.CONNECTION_FAILED)]


async def test_what_was_sent_before_the_close_arrives(open_call: OpenCall) -> None:
    """Events that were sent right before the close are delivered, and the call continues."""
    caller: Caller = await open_call()
    async with dialling(caller.base_url) as dialer:
        call = await attach(dialer, caller.call_id, Remembering())
        call.send([UPDATE])
        await call.close(hang_up=False)
        with pytest.raises(UpstreamError):
            call.send([UPDATE])

    await caller.until("session.updated")
    assert await caller.ask("ping") == "PONG!" or caller.types.count("response.done") == 1


async def test_close_hangs_up_where_asked(open_call: OpenCall) -> None:
    """`hang_up` ends the call for all participants, after the sent events; closing again has no effect."""
    caller: Caller = await open_call()
    sink = Remembering()
    async with dialling(caller.base_url) as dialer:
        call = await attach(dialer, caller.call_id, sink)
        call.send([UPDATE])
        await call.close(hang_up=True)
        await call.close(hang_up=True)

    described = await caller.look()
    assert (described["end_reason"], described["received"]) == ("hung up", 1)
    assert sink.losses == []


async def test_close_completes_when_cancelled(open_call: OpenCall) -> None:
    """The caller of `close` may be cancelled; the closing continues."""
    caller: Caller = await open_call()
    async with dialling(caller.base_url) as dialer:
        call = await attach(dialer, caller.call_id, Remembering())
        waiting = asyncio.create_task(call.close(hang_up=True))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})

    assert (await caller.look())["end_reason"] == "hung up"


async def test_queue_is_bounded(open_call: OpenCall, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch beyond the bound is refused; a single event is accepted at any size if nothing is buffered."""
    monkeypatch.setattr(sideband, "MAX_QUEUED_BYTES", 100)
    caller: Caller = await open_call()
    async with dialling(caller.base_url) as dialer:
        call = await attach(dialer, caller.call_id, Remembering())
        call.send(["x" * 200])
        with pytest.raises(OverloadError) as refused:
            call.send(["y"])
        assert call.buffered == 200
        await until(lambda: call.buffered == 0)
        call.send(["é" * 50, "z"])
        assert call.buffered == 101

    assert refused.value.code == "upstream-backpressure"


# --- attaching


async def test_call_of_a_moment_ago_is_waited_for(open_call: OpenCall) -> None:
    """A call that the service does not know yet is requested again."""
    caller: Caller = await open_call(faults=Faults(sideband_delay_seconds=0.8), connect=False)
    async with dialling(caller.base_url) as dialer:
        await attach(dialer, caller.call_id, Remembering())


@pytest.mark.parametrize("why", ["unknown", "ended", "another project's"])
async def test_call_that_is_not_there_is_unknown(
    why: str, open_call: OpenCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some seconds an unknown call is 404 and not retryable."""
    monkeypatch.setattr(sideband, "NEW_CALL_SECONDS", 0.3)
    caller: Caller = await open_call()
    if why == "ended":
        await caller.hang_up()
    facts = Facts()
    key = "sk-other" if why == "another project's" else "sk-test"
    call_id = "rtc_u1_nobody" if why == "unknown" else caller.call_id
    async with dialling(caller.base_url, facts, api_key=key) as dialer:
        with pytest.raises(UpstreamError) as refused:
            await attach(dialer, call_id, Remembering())

    assert (refused.value.code, refused.value.kind.status, refused.value.kind.retryable) == (
        "call-unknown",
        404,
        False,
    )
    assert facts.of("upstream_error") == [("call_id_not_found",)]


async def test_attaching_again_does_not_wait(open_call: OpenCall) -> None:
    """A call that existed before is not new, so a 404 is final at once."""
    caller: Caller = await open_call()
    await caller.hang_up()
    async with dialling(caller.base_url) as dialer:
        with pytest.raises(UpstreamError):
            async with asyncio.timeout(3):  # a new call is waited for longer
                await attach(dialer, caller.call_id, Remembering(), generation=1)


async def test_ephemeral_key_attaches(open_call: OpenCall) -> None:
    """The caller's own `ek_…` is the credential if the operator allows it."""
    caller: Caller = await open_call()
    async with caller.http.post(f"{caller.base_url}/realtime/client_secrets", json={}) as answer:
        key = (await answer.json())["value"]
    async with dialling(caller.base_url, auth="client", api_key=None) as dialer:
        await attach(dialer, caller.call_id, Remembering(), bearer=key)
        with pytest.raises(UpstreamError, match="caller's OpenAI key is missing"):
            await attach(dialer, caller.call_id, Remembering())


class Socket:
    """A far end with one WebSocket: `serve(socket)` handles it; `requests` has the handshake requests."""

    def __init__(self, serve: Any, status: int = 101, retry_after: str | None = None) -> None:
        self.serve = serve
        self.status = status
        self.headers = {"Retry-After": retry_after} if retry_after else {}
        self.requests: list[web.Request] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.status != 101:
            return web.Response(status=self.status, headers=self.headers)
        socket = web.WebSocketResponse(autoping=False, timeout=0.2)
        await socket.prepare(request)
        await self.serve(socket)
        return socket


@asynccontextmanager
async def answered_by(far: Socket, path: str = "/v1") -> AsyncIterator[str]:
    """Run a far end; yield its base URL."""
    app = web.Application()
    app.router.add_get(f"{path}/realtime", far.handle)
    async with serving(app) as url:
        yield f"{url}{path}"


async def silent(socket: web.WebSocketResponse) -> None:
    """Read, but answer nothing, not even a ping."""
    while (await socket.receive()).type is not aiohttp.WSMsgType.CLOSE:
        pass


async def test_request_has_the_form_of_the_reference() -> None:
    """Credential, organization and project are sent as for calls; Azure differs only by its base URL."""
    far = Socket(silent)
    async with (
        answered_by(far, "/openai/v1") as url,
        dialling(url, organization="org-1", project="proj-1") as dialer,
    ):
        await attach(dialer, "rtc_a&b", Remembering())
        [request] = far.requests
        headers = request.headers

        assert (request.path, dict(request.query)) == ("/openai/v1/realtime", {"call_id": "rtc_a&b"})
        assert headers["Authorization"] == "Bearer sk-test"
        assert (headers["OpenAI-Organization"], headers["OpenAI-Project"]) == ("org-1", "proj-1")
        assert headers["Accept"] == "*/*"
        assert not {"OpenAI-Beta", "Origin"} & set(headers)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "upstream-rejected"),
        (403, "upstream-rejected"),
        (429, "upstream-rate-limited"),
        (503, "upstream-failed"),
    ],
)
async def test_refusal_has_the_code_of_the_table(status: int, code: str) -> None:
    """Statuses other than 404 are handled as for calls, retries included."""
    async with answered_by(Socket(silent, status, "7")) as url, dialling(url) as dialer:
        with pytest.raises(UpstreamError) as refused:
            await attach(dialer, "rtc_1", Remembering())

    assert refused.value.code == code
    assert refused.value.members["upstream"] == {"status": status}


async def test_redirect_carries_the_key_nowhere() -> None:
    """A redirect counts as a refusal and is not followed."""
    elsewhere, far = Socket(silent), Socket(silent, 307)
    async with answered_by(elsewhere) as target, answered_by(far) as url, dialling(url) as dialer:
        far.headers["Location"] = f"{target}/realtime?call_id=rtc_1"
        with pytest.raises(UpstreamError) as refused:
            await attach(dialer, "rtc_1", Remembering())

    assert refused.value.code == "upstream-failed"
    assert refused.value.members["upstream"] == {"status": 307}
    assert elsewhere.requests == []


async def test_far_end_that_cannot_be_reached_is_told() -> None:
    """A failed connection is an error that may pass."""
    async with dialling("http://127.0.0.1:9/v1") as dialer:
        with pytest.raises(UpstreamError, match="refused") as refused:
            await attach(dialer, "rtc_1", Remembering())

    assert refused.value.code == "upstream-failed"


async def test_handshake_has_a_deadline() -> None:
    """A far end that does not answer the handshake is given up after the time limit for a call."""
    over = asyncio.Event()

    async def never(request: web.Request) -> web.StreamResponse:
        await over.wait()
        return web.Response()

    far = Socket(silent)
    far.handle = never  # type: ignore[method-assign] # the one thing that differs
    async with answered_by(far) as url, dialling(url, connect_timeout_seconds=0.2) as dialer:
        with pytest.raises(UpstreamError) as refused:
            await attach(dialer, "rtc_1", Remembering())
        over.set()

    assert (refused.value.code, refused.value.members["phase"]) == ("upstream-timeout", "signalling")


# --- the end


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ({"do": "hang_up"}, LossCause.CHANNEL_CLOSED),
        ({"do": "expire"}, LossCause.CHANNEL_CLOSED),
        ({"do": "cut_sockets"}, LossCause.CONNECTION_FAILED),
        ({"sockets_end": "eof", "do": "hang_up"}, LossCause.CONNECTION_FAILED),
    ],
    ids=["hang-up", "hour", "cut", "EOF at the end"],
)
async def test_end_of_the_connection_means_what_its_form_says(
    fault: dict[str, str], cause: LossCause, open_call: OpenCall
) -> None:
    """Close code 1000 with the call gone, and 1001, mean the call's end; an end without a close frame may not."""
    caller: Caller = await open_call()
    sink = Remembering()
    async with dialling(caller.base_url) as dialer:
        call = await attach(dialer, caller.call_id, sink, generation=3)
        await caller.tell("fault", fault)
        await sink.until(lambda sink: sink.losses)
        with pytest.raises(UpstreamError):
            call.send([UPDATE])
        assert await call.probe(0.1) is False
        await call.close(hang_up=False)

    assert sink.losses == [(3, cause)]


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (1000, LossCause.CONNECTION_FAILED),
        (1001, LossCause.CHANNEL_CLOSED),
        (1011, LossCause.CONNECTION_FAILED),
        (1012, LossCause.CONNECTION_FAILED),
    ],
)
async def test_close_code_decides(code: int, cause: LossCause) -> None:
    """A clean 1000 while the call still exists is a proxy's rotation; 1001 is the call's end, and other codes are
    errors."""
    far = Socket(lambda socket: socket.close(code=code))
    sink = Remembering()
    async with answered_by(far) as url, dialling(url) as dialer:
        await attach(dialer, "rtc_1", sink)
        await sink.until(lambda sink: sink.losses)

    assert sink.losses == [(0, cause)]
    assert len(far.requests) == (2 if code == 1000 else 1)


async def test_silence_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A far end that answers no ping is considered lost after a while, and nothing was acknowledged."""
    monkeypatch.setattr(sideband, "PING_SECONDS", 0.05)
    monkeypatch.setattr(sideband, "SILENCE_SECONDS", 0.2)
    sink = Remembering()
    async with answered_by(Socket(silent)) as url, dialling(url) as dialer:
        call = await attach(dialer, "rtc_1", sink)
        call.send([UPDATE])
        await sink.until(lambda sink: sink.losses)

        assert call.acknowledged == 0
    assert sink.losses == [(0, LossCause.CONNECTION_FAILED)]


async def test_acknowledgement_is_asked_for_now_and_then() -> None:
    """However fast texts follow each other, one ping is in flight at a time, and the last one covers all texts."""
    pings: list[bytes] = []

    async def answering(socket: web.WebSocketResponse) -> None:
        while (message := await socket.receive()).type is not aiohttp.WSMsgType.CLOSE:
            if message.type is aiohttp.WSMsgType.PING:
                pings.append(message.data)
                await asyncio.sleep(0.1)
                await socket.pong(message.data)

    async with answered_by(Socket(answering)) as url, dialling(url) as dialer:
        call = await attach(dialer, "rtc_1", Remembering())
        started = asyncio.get_running_loop().time()
        for _ in range(50):
            call.send(["{}"])
            await asyncio.sleep(0.01)
        await until(lambda: call.acknowledged == 50)
        seconds = asyncio.get_running_loop().time() - started

    assert 2 <= len(pings) <= 2 + seconds / 0.1


async def test_probe_is_answered_by_anything(open_call: OpenCall) -> None:
    """A living call answers a probe; a silent far end does not."""
    caller: Caller = await open_call()
    async with dialling(caller.base_url) as dialer:
        assert await (await attach(dialer, caller.call_id, Remembering())).probe(5) is True
    async with answered_by(Socket(silent)) as url, dialling(url) as dialer:
        assert await (await attach(dialer, "rtc_1", Remembering())).probe(0.2) is False


async def test_frames_of_other_kinds_are_counted_and_pings_answered() -> None:
    """A binary frame is unreadable, a ping gets its pong, and an unsolicited pong acknowledges nothing."""
    answers: list[bytes] = []

    async def odd(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(b"\x00\x01")
        await socket.pong(b"\xff" * 8)
        await socket.pong(b"?")
        await socket.ping(b"still there?")
        await socket.send_str("{}")
        while (message := await socket.receive()).type is not aiohttp.WSMsgType.CLOSE:
            if message.type is aiohttp.WSMsgType.PONG:
                answers.append(message.data)

    sink = Remembering()
    async with answered_by(Socket(odd)) as url, dialling(url) as dialer:
        call = await attach(dialer, "rtc_1", sink)
        await sink.until(lambda sink: sink.texts)
        await until(lambda: answers)

        assert call.acknowledged == 0
    assert (sink.sizes, sink.texts, answers) == ([2], ["{}"], [b"still there?"])


async def test_large_event_is_taken_in_steps_and_before_the_loss() -> None:
    """A large event is taken in several turns of the loop; what follows it, and the end of the call, come after it."""

    async def large(socket: web.WebSocketResponse) -> None:
        for text in ("L" * (LARGE_BYTES + 1), "{}", "M" * (LARGE_BYTES + 1)):
            await socket.send_str(text)
        await socket.close(code=1001)

    sink = Remembering()
    async with answered_by(Socket(large)) as url, dialling(url) as dialer:
        _ = await attach(dialer, "rtc_1", sink)
        await sink.until(lambda sink: sink.losses)

    assert [text[:1] for text in sink.texts] == ["L", "{", "M"]
    assert sink.steps == 4


async def test_large_event_in_hand_is_delivered_when_the_writer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the connection ends while a large event is taken, it is delivered before the loss is reported."""

    async def large(socket: web.WebSocketResponse) -> None:
        await socket.send_str("L" * (LARGE_BYTES + 1))
        await silent(socket)

    class Ending(Remembering):
        def received_in_steps(self, generation: int, text: str) -> Iterator[None]:
            ended.set()
            for _ in range(100):
                yield
            self.received(generation, text)

    async def write(self: object) -> None:
        await ended.wait()

    ended = asyncio.Event()
    monkeypatch.setattr(SidebandUpstream, "_write", write)
    sink = Ending()
    async with answered_by(Socket(large)) as url, dialling(url) as dialer:
        _ = await attach(dialer, "rtc_1", sink)
        await sink.until(lambda sink: sink.losses)

    assert [text[:1] for text in sink.texts] == ["L"]


async def test_sink_that_raises_does_not_end_the_call(open_call: OpenCall) -> None:
    """An exception in the sink is reported, and the connection continues."""

    class Raising(Remembering):
        def received(self, generation: int, text: str) -> None:
            super().received(generation, text)
            raise RuntimeError("a mistake")

    caller: Caller = await open_call()
    sink, facts = Raising(), Facts()
    async with dialling(caller.base_url, facts) as dialer:
        call = await attach(dialer, caller.call_id, sink)
        call.send([UPDATE, UPDATE])
        await sink.until(lambda sink: len(sink.texts) == 2)

    assert len(facts.of("relay_failed")) == 2


async def test_bug_while_writing_is_reported_and_ends_the_call(
    open_call: OpenCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that fails must not leave a call that nothing is sent on, and the log tells why it ended."""

    async def fail(self: object) -> None:
        raise RuntimeError("a mistake")

    caller: Caller = await open_call()
    sink, facts = Remembering(), Facts()
    async with dialling(caller.base_url, facts) as dialer:
        call = await attach(dialer, caller.call_id, sink)
        monkeypatch.setattr(SidebandUpstream, "_flush", fail)
        call.send([UPDATE])
        await sink.until(lambda sink: sink.losses)

    assert [repr(error) for _, error in facts.of("relay_failed")] == ["RuntimeError('a mistake')"]


@pytest.mark.slow
async def test_other_requests_make_calls(open_call: OpenCall) -> None:
    """Without a call to attach to, the same dialer creates calls over WebRTC, and hangs up calls of others by id."""
    caller: Caller = await open_call()
    async with dialling(caller.base_url) as dialer:
        request = CallRequest(session={"type": "realtime", "output_modalities": ["text"]})
        call = await dialer.dial(replace(request), Remembering())
        await dialer.hang_up(caller.call_id, None)

        assert call.call_id != caller.call_id
        assert (await caller.look())["end_reason"] == "hung up"
