"""Opens, finds and ends the calls of an emulator.

It does not know HTTP. It holds what all calls share (certificate, brain, secrets, faults of later calls) and owns every
call's end: a call that ends by itself is closed by a task kept here, and `close` waits for all of them.
"""

import asyncio
import contextlib
import ipaddress
import itertools
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import ifaddr

from gateway.emulator.brain.chat import ChatBrain
from gateway.emulator.brain.rules import RuleBrain
from gateway.emulator.call import Call, CallTimes, Connection, Voice
from gateway.emulator.config import EmulatorConfig
from gateway.emulator.faults import Faults
from gateway.emulator.protocol import mcp
from gateway.emulator.protocol import session as session_object
from gateway.emulator.protocol.brain import Brain
from gateway.emulator.protocol.client_secrets import ClientSecrets
from gateway.emulator.protocol.errors import Refusal
from gateway.emulator.protocol.ids import IdSource, session_of
from gateway.emulator.protocol.realtime import Realtime
from gateway.emulator.protocol.writing import Line, Manner
from gateway.emulator.recording import Playback, load
from gateway.emulator.transport.ice import LiteAgent
from gateway.emulator.transport.peer import FarPeer, SharedCertificate
from gateway.emulator.transport.sdp import Endpoint, Offer, answer_setup, write_answer

# The control endpoint keeps ended calls, so that a test can see what they received.
_MAX_ENDED = 256
MAX_CALLS = 10_000


class Service:
    """All calls of one emulator."""

    def __init__(self, config: EmulatorConfig) -> None:
        self.config = config
        self.faults = config.faults
        self.ids = IdSource()
        self.secrets = ClientSecrets(self.ids)
        self.calls: dict[str, Call] = {}
        self.ended: OrderedDict[str, Call] = OrderedDict()
        self.opened = 0
        self._signals = 0
        self._brain: Brain = (
            ChatBrain(config.brain_url, config.brain_model, config.brain_key)
            if config.brain_url
            else RuleBrain()
        )
        self._recordings = [load(path) for path in config.recordings]
        self._mcp_servers = dict([*mcp.DEMO.items(), *(mcp.load(path) for path in config.mcp_servers)])
        self._certificate = SharedCertificate.generateCertificate()
        self._addresses = media_addresses(config.host)
        self._endings: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    async def hold(self, seconds: float) -> None:
        """Wait before an answer; raises Refusal if the emulator is stopped meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise Refusal(None, "The server is shutting down.", kind="server_error")

    async def open(self, offer: Offer, given: dict[str, Any], dcid: int | None) -> tuple[Call, str]:
        """Open a call for an offer and return it with its answer."""
        if len(self.calls) >= MAX_CALLS:
            raise Refusal("rate_limit_exceeded", f"At most {MAX_CALLS} calls can be open at once.")
        config = self.config
        agent = LiteAgent(
            ufrag=f"{self.ids.draw(8)}/u1/3o{self.ids.draw(4)}",
            password=self.ids.draw(32),
            remote_ufrag=offer.ufrag,
            strict_consent=config.consent == "strict",
        )
        try:
            addresses = await agent.open(self._addresses)
        except BaseException:
            await agent.close()
            raise
        setup = answer_setup(offer.setup, config.setup)
        peer = FarPeer(offer, agent, self._certificate, client=setup == "active")
        peer.apply(self.faults)
        call_id = self.ids.call()
        call = self._add(call_id, session_of(call_id), given, peer, carries_audio=False)
        peer.start(dcid if offer.application is not None else None)
        endpoint = Endpoint(
            ufrag=agent.ufrag,
            password=agent.password,
            fingerprint=self._certificate.fingerprint,
            setup=setup,
            addresses=addresses,
            origin=secrets.randbits(63),
            created=call.times.created_at,
        )
        return call, write_answer(offer, endpoint)

    def open_socket(self, given: dict[str, Any], peer: Connection) -> Call:
        """Open a session that has a WebSocket only; its sound comes in events."""
        session_id = f"sess_{self.ids.draw(21)}"
        return self._add(session_id, session_id, given, peer, carries_audio=True)

    def _add(
        self, call_id: str, session_id: str, given: dict[str, Any], peer: Connection, *, carries_audio: bool
    ) -> Call:
        began = time.time()
        times = CallTimes(began, int(began) + self.config.max_session_seconds)
        session = session_object.new_session(session_id, int(times.expires_at), given)
        call = Call(call_id, peer, lambda line: self._voice(session, line, carries_audio), times, self._ended)
        self.calls[call_id] = call
        return call

    def set_faults(self, faults: Faults) -> None:
        """Set the faults of later calls; `signal_times` counts from here."""
        self.faults = faults
        self._signals = 0

    def still_signals_badly(self) -> bool:
        """Count one more signalling request; return whether the signalling faults still apply to it (`signal_times`)."""
        self._signals += 1
        return self.faults.signal_times is None or self._signals <= self.faults.signal_times

    def find(self, call_id: str) -> Call | None:
        """Find a call that runs or ended recently."""
        return self.calls.get(call_id) or self.ended.get(call_id)

    def end_all(self) -> None:
        """Begin to end every call and every delayed answer."""
        self._stopping.set()
        for call in list(self.calls.values()):
            call.end("stopped")

    async def close(self) -> None:
        """End every call and wait until all have ended."""
        self.end_all()
        while self._endings:
            await asyncio.wait(set(self._endings))
        await self._brain.close()

    def _voice(self, session: dict[str, Any], line: Line, carries_audio: bool) -> Voice:
        config = self.config
        self.opened += 1
        if self._recordings:
            return Playback(
                self._recordings[(self.opened - 1) % len(self._recordings)],
                session=session,
                ids=self.ids,
                line=line,
                tokens_per_second=config.tokens_per_second,
                faults=self.faults,
            )
        manner = Manner(
            config.tokens_per_second,
            config.item_done_quirk,
            hear=_ear(config.hear),
            mcp_servers=self._mcp_servers,
            carries_audio=carries_audio,
        )
        return Realtime(session, self.ids, line, self._brain, manner, self.faults)

    def _ended(self, call: Call) -> None:
        if self.calls.pop(call.id, None) is None:
            return
        self.ended[call.id] = call
        while len(self.ended) > _MAX_ENDED:
            self.ended.popitem(last=False)
        task = asyncio.create_task(call.close())
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)


def _ear(told: Sequence[str]) -> Callable[[float], str]:
    """Return the function that transcribes input audio: the texts of `--hear` in turn, else a sentence about its length."""
    if told:
        words = itertools.cycle(told)
        return lambda seconds: next(words)
    return lambda seconds: f"I spoke for {seconds:.1f} seconds."


def media_addresses(host: str) -> list[str]:
    """Return the addresses for media in the answer.

    A listener on one address offers that address, also loopback: ICE libraries leave it out, but with only `lo` up it is the only
    one. A name offers what it resolves to. A wildcard offers every IPv4 address of the machine. `::`, or a machine without IPv4,
    also offers the IPv6 addresses except link-local ones.
    """
    if host not in ("0.0.0.0", "", "::"):
        return _resolved(host)
    old: list[str] = []
    new: list[str] = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            if isinstance(ip.ip, str):
                old.append(ip.ip)
            elif not ipaddress.ip_address(ip.ip[0]).is_link_local:
                new.append(ip.ip[0])
    old, new = _usable(old), _usable(new)
    return [*old, *new] if host == "::" or not old else old


def _resolved(host: str) -> list[str]:
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    return _usable(list(dict.fromkeys(str(address[0]) for *_, address in found)))


def _usable(addresses: list[str]) -> list[str]:
    """Keep the addresses that can be bound: a family may be disabled while its addresses are still listed."""
    usable = []
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
            usable.append(address)
    return usable
