"""A call over real ICE, DTLS and SCTP: opened, used, lost and closed. The far end is stock aiortc in this process,
or in its own process where threads and sockets are counted."""

import asyncio
import gc
import json
import logging
import os
import shutil
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
import uvloop
from aiohttp import web
from aiortc import RTCIceTransport, RTCPeerConnection

from gateway.errors import CallerError, UpstreamError
from gateway.relay.events.jsontext import LARGE_BYTES
from gateway.relay.ports import LossCause
from gateway.upstream.call import WebRTCUpstream
from gateway.upstream.connection import Connection
from gateway.upstream.loopturn import LoopTurn
from gateway.upstream.tuning import ALL_HOOKS, Hook
from gateway.upstream.webrtc import WebRTCDialer
from tests.facts import Facts
from tests.serving import serving
from tests.upstream.farend import Farend, answering, farend, program
from tests.upstream.kit import REQUEST, Remembering, dialling, order, peer_connections_left
from tests.waiting import until

STOCK: frozenset[Hook] = frozenset()
# The fallback without hooks runs with the slow tests, because it is not used with the tested versions.
HOOKS = pytest.mark.parametrize(
    "hooks",
    [pytest.param(ALL_HOOKS, id="tuned"), pytest.param(STOCK, id="stock", marks=pytest.mark.slow)],
)

Run = Callable[[Coroutine[Any, Any, None]], None]


@asynccontextmanager
async def open_call(
    far: Farend | None = None, facts: Facts | None = None, **options: Any
) -> AsyncIterator[tuple[WebRTCUpstream, Remembering]]:
    """Return an open call to a far end in this process, and its sink."""
    async with answering(far or Farend()) as url, dialling(url, facts, **options) as dialer:
        sink = Remembering()
        yield await dialer.dial(REQUEST, sink), sink


# --- open and send


@HOOKS
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_call_opens_and_carries_text_both_ways(run: Run, hooks: frozenset[Hook]) -> None:
    """On either loop, with and without the hooks, sent text is returned unchanged and in order."""

    async def main() -> None:
        async with open_call(hooks=hooks) as (call, sink):
            texts = [json.dumps({"n": n, "text": "ü€😀" * n}, ensure_ascii=False) for n in range(200)]
            call.send(texts)
            await sink.until(lambda sink: len(sink.texts) == 201)
            assert sink.texts[0] == '{"type": "session.created"}'
            assert sink.texts[1:] == texts
            await call.close(hang_up=False)

    run(main())


@HOOKS
async def test_call_with_the_emulator_answers_a_turn(hooks: frozenset[Hook]) -> None:
    """With the second implementation of the protocol and its strict ICE-lite answer, a turn completes."""
    async with (
        program("-m", "gateway", "emulate", "--port", "0", "--consent", "strict") as url,
        dialling(url, hooks=hooks) as dialer,
    ):
        sink = Remembering()
        call = await dialer.dial(REQUEST, sink)
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
        call.send(
            [json.dumps({"type": "conversation.item.create", "item": item}), '{"type":"response.create"}']
        )
        await sink.until(lambda sink: any('"response.done"' in text for text in sink.texts))
        await call.close(hang_up=True)

    assert json.loads(sink.texts[0])["type"] == "session.created"
    assert call.call_id is not None


@HOOKS
async def test_call_measures_every_phase(hooks: frozenset[Hook]) -> None:
    """The phases of `connect_seconds` (docs/api.md) are reported once each, and add up to the total."""
    facts = Facts()
    async with open_call(facts=facts, hooks=hooks) as (call, _):
        phases = dict(facts.of("connect_phase"))
        diagnostics = call.diagnostics

    assert list(phases) == ["gather", "signalling", "ice", "dtls", "channel", "total"]
    assert sum(phases.values()) == pytest.approx(2 * phases["total"], rel=0.01)
    assert diagnostics["candidates"]["selected"] in (["host", "host"], ["host", "prflx"])  # type: ignore[index]


async def test_open_call_holds_no_session_object() -> None:
    """A session object may have a megabyte, so it is dropped once the call is open."""
    async with open_call() as (call, _):
        assert call._request.session == {}


async def test_call_costs_three_tasks_one_socket_and_no_thread(far_end: str) -> None:
    """An open call has ICE's monitor, its consent checks and DTLS's reader, one UDP socket, and nothing else."""
    async with dialling(far_end) as dialer:
        first = await dialer.dial(REQUEST, Remembering())
        tasks, threads, sockets = (
            len(asyncio.all_tasks()),
            threading.active_count(),
            len(os.listdir("/proc/self/fd")),
        )
        calls = [await dialer.dial(REQUEST, Remembering()) for _ in range(5)]

        assert len(asyncio.all_tasks()) - tasks == 5 * 3
        assert threading.active_count() - threads == 0
        assert len(os.listdir("/proc/self/fd")) - sockets == 5
        for call in [first, *calls]:
            await call.close(hang_up=False)


async def test_offer_that_is_sent_is_what_the_service_takes() -> None:
    """The sent offer has audio before data, one fingerprint each, and allows the largest server event."""
    far = Farend()
    async with open_call(far, max_server_event_bytes=3_000_000):
        offer = far.offers[0]

    assert offer.index("m=audio") < offer.index("m=application")
    assert offer.count("a=fingerprint:") == offer.count("a=fingerprint:sha-256") == 2
    assert "a=max-message-size:3000000\r\n" in offer
    assert "a=sendrecv" in offer
    assert offer.endswith("\r\n")


async def test_call_without_the_reassembly_hook_asks_for_a_megabyte() -> None:
    """Without the hook large messages would block the loop, so at most 1 MiB is requested."""
    far = Farend()
    async with open_call(far, hooks=ALL_HOOKS - {Hook.PACED_REASSEMBLY}):
        assert "a=max-message-size:1048576\r\n" in far.offers[0]


@pytest.mark.slow
async def test_call_opens_where_only_loopback_is_up() -> None:
    """On a machine without a network, a service on the same machine can be reached."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("an empty network namespace needs root, unshare and ip")
    command = f"ip link set lo up && exec {sys.executable} -m tests.upstream.lonely"
    process = await asyncio.create_subprocess_exec(
        "unshare",
        "--net",
        "sh",
        "-c",
        command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()

    assert out.decode().strip() == "open", err.decode()


async def test_call_by_an_ephemeral_key_asks_for_its_session_on_the_channel() -> None:
    """The key's own session lacks what the caller requested, so that is requested once the channel is open."""
    far = Bare()
    async with answering(far) as url, dialling(url, auth="client") as dialer:
        sink = Remembering()
        await dialer.dial(replace(REQUEST, bearer="ek_1234"), sink)
        await sink.until(lambda sink: len(sink.texts) == 2)

    asked = json.loads(sink.texts[1])
    assert asked["type"] == "session.update"
    assert asked["session"] == {"type": "realtime", "output_modalities": ["text"]}


class Bare(Farend):
    """A far end that takes the offer as the whole body, as the service does with an ephemeral key."""

    async def call(self, request: web.Request) -> web.Response:
        return await self.answer((await request.read()).decode())


# --- frames


@HOOKS
async def test_message_of_any_size_arrives_whole(hooks: frozenset[Hook]) -> None:
    """A message with one fragment more or less than a packet holds arrives unchanged."""
    sizes = [1, 1159, 1160, 1161, 2320, 2321, 100_000, 700_000]
    async with open_call(hooks=hooks) as (call, sink):
        call.send([order("text", size=size) for size in sizes])
        await sink.until(lambda sink: len(sink.texts) == 1 + len(sizes))

    assert [len(text) for text in sink.texts[1:]] == sizes


async def test_large_message_is_delivered_before_the_loss_of_its_call() -> None:
    """A large text, taken in steps, comes in its order, and its call is not reported as lost before it."""
    size = LARGE_BYTES + 1
    async with open_call() as (call, sink):
        call.send([order("text", size=size), "small", order("text", size=size, close=True)])
        await sink.until(lambda sink: sink.losses)

    assert [len(text) for text in sink.texts[1:]] == [size, len("small"), size]
    assert sink.losses == [(0, LossCause.CHANNEL_CLOSED)]


@pytest.mark.slow
async def test_message_of_four_megabytes_leaves_the_loop_running(far_end: str) -> None:
    """While the largest server event arrives, the loop is never blocked for more than 50 ms of CPU time."""
    longest = 0.0
    done = False
    # As the gateway does at start: the heap here is the whole suite's, and scanning it is not the gateway's work.
    gc.collect()
    gc.freeze()

    async def tick() -> None:
        nonlocal longest
        while not done:
            before = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    async with dialling(far_end) as dialer:
        sink = Remembering()
        call = await dialer.dial(REQUEST, sink)
        ticking = asyncio.create_task(tick())
        call.send([order("text", size=4 * 1024 * 1024)])
        await sink.until(lambda sink: len(sink.texts) == 2)
        done = True
        await ticking
    gc.unfreeze()

    assert len(sink.texts[1]) == 4 * 1024 * 1024
    assert longest < 0.05


@pytest.mark.parametrize("do", ["garbled", "binary"])
async def test_frame_that_is_not_text_is_counted_and_survived(do: str) -> None:
    """A text frame that is not UTF-8 and a binary one are counted, and the call continues."""
    async with open_call() as (call, sink):
        call.send([order(do), "still here"])
        await sink.until(lambda sink: "still here" in sink.texts)

    assert len(sink.sizes) == 1
    assert sink.losses == []


async def test_sink_that_raises_does_not_end_the_call() -> None:
    """An exception in the sink is reported with its traceback, and the next event arrives."""

    class Raising(Remembering):
        def received(self, generation: int, text: str) -> None:
            super().received(generation, text)
            raise RuntimeError("a mistake")

    facts = Facts()
    async with answering(Farend()) as url, dialling(url, facts) as dialer:
        sink = Raising()
        call = await dialer.dial(REQUEST, sink)
        call.send(["one", "two"])
        await sink.until(lambda sink: "two" in sink.texts)

    assert len(facts.of("relay_failed")) >= 2
    assert sink.losses == []


# --- sending


async def test_send_of_a_text_too_large_for_the_far_end_sends_nothing() -> None:
    """If one text of a batch is too large nothing is sent, and the error names the limit."""

    class Small(Farend):
        def rewrite(self, answer: str) -> str:
            return answer.replace("a=max-message-size:1073741823", "a=max-message-size:1000")

    async with open_call(Small()) as (call, sink):
        with pytest.raises(CallerError) as caught:
            call.send(["first", "€" * 334])
        call.send(["€" * 333])
        await sink.until(lambda sink: len(sink.texts) == 2)

    assert caught.value.code == "too-large"
    assert caught.value.members == {"limit": 1000}
    assert "first" not in sink.texts


async def test_send_on_a_closed_call_is_an_error_of_upstream() -> None:
    """After a close or a loss, sending raises an upstream error."""
    async with open_call() as (call, _):
        await call.close(hang_up=False)
        with pytest.raises(UpstreamError, match="not open"):
            call.send(["too late"])

    assert call.buffered == 0


@HOOKS
async def test_what_the_far_end_has_acknowledged_is_counted(hooks: frozenset[Hook]) -> None:
    """Buffered counts what the transport has not taken; acknowledged grows up to what was sent, and not earlier."""
    async with open_call(hooks=hooks) as (call, sink):
        call.send(["z" * 60_000] * 10)
        buffered, acknowledged = call.buffered, call.acknowledged
        await sink.until(lambda sink: len(sink.texts) == 11)
        async with asyncio.timeout(10):
            while call.acknowledged < 10:
                await asyncio.sleep(0.01)

    assert buffered > 500_000
    assert acknowledged < 10
    assert call.acknowledged == 10


# --- loss


@HOOKS
@pytest.mark.parametrize("do", ["close-channel", "close", "abort"])
async def test_far_end_that_closes_is_a_channel_closed(do: str, hooks: frozenset[Hook]) -> None:
    """A data channel reset, an SCTP abort and a DTLS close are decisions of the far end; each is reported once and
    cleaned up."""
    facts = Facts()
    async with open_call(facts=facts, hooks=hooks) as (call, sink):
        call.send([order(do)])
        await sink.until(lambda sink: sink.losses)
        await until(lambda: peer_connections_left(facts) == 0)
        await call.close(hang_up=False)

    assert sink.losses == [(0, LossCause.CHANNEL_CLOSED)]


async def test_loss_is_not_told_after_close() -> None:
    """Closing a call does not report a loss."""
    async with open_call() as (call, sink):
        await call.close(hang_up=False)
        await asyncio.sleep(0.1)

    assert sink.losses == []


async def test_failure_of_our_own_is_a_connection_failed() -> None:
    """An internal failure is not attributed to the far end."""
    async with open_call() as (call, sink):
        assert call._pc is not None
        call._pc.sctp._receive_chunk = None  # type: ignore[assignment]
        call.send([order("text", size=5000)])
        await sink.until(lambda sink: sink.losses)

    assert sink.losses == [(0, LossCause.CONNECTION_FAILED)]


# --- set-up that fails


class Faulty(Farend):
    """A far end that answers and then fails in one phase."""

    def __init__(self, phase: str) -> None:
        super().__init__()
        self.phase = phase

    def prepare(self, pc: RTCPeerConnection) -> None:
        async def nothing(*_: object) -> None:
            return None

        assert pc.sctp is not None
        if self.phase == "dtls":
            pc.sctp.transport.start = nothing  # type: ignore[method-assign, assignment]
        elif self.phase == "channel":
            pc.sctp.start = nothing  # type: ignore[method-assign, assignment]

    def rewrite(self, answer: str) -> str:
        if self.phase == "ice":
            return answer.replace("a=ice-pwd:", "a=ice-pwd:wrong")
        return answer


@HOOKS
@pytest.mark.parametrize("phase", ["ice", "dtls", "channel"])
@pytest.mark.slow
async def test_set_up_that_stops_names_its_phase(phase: str, hooks: frozenset[Hook]) -> None:
    """One deadline covers the whole set-up; the error names the phase, the call is hung up and nothing is leaked."""
    facts, far = Facts(), Faulty(phase)
    async with (
        answering(far) as url,
        dialling(url, facts, hooks=hooks, connect_timeout_seconds=0.6) as dialer,
    ):
        with pytest.raises(UpstreamError) as caught:
            await dialer.dial(REQUEST, Remembering())
        await until(lambda: far.hung_up)

    assert caught.value.code == "upstream-timeout"
    assert caught.value.members["phase"] == phase
    assert peer_connections_left(facts) == 0


async def test_signalling_that_is_not_answered_names_its_phase() -> None:
    """A service that accepts the request and does not answer is a timeout of signalling."""
    release = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    async with fake(handler) as url, dialling(url, connect_timeout_seconds=0.3) as dialer:
        with pytest.raises(UpstreamError) as caught:
            await dialer.dial(REQUEST, Remembering())
        release.set()

    assert caught.value.code == "upstream-timeout"
    assert caught.value.members["phase"] == "signalling"


@asynccontextmanager
async def fake(handler: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    """Serve one handler for every path and return the base URL."""
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handler)
    async with serving(app) as url:
        yield f"{url}/v1"


def _answer(text: str, status: int = 201) -> Callable[[web.Request], Any]:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text, headers={"Location": "/v1/realtime/calls/rtc_1"})

    return handler


GOOD = (
    "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=fingerprint:sha-256 AA:BB\r\na=group:BUNDLE 0 1\r\n"
    "m=audio 9 UDP/TLS/RTP/SAVPF 96\r\na=setup:active\r\na=mid:0\r\na=ice-ufrag:user\r\na=ice-pwd:password0123456789012345\r\n"
    "a=rtcp-mux\r\na=rtpmap:96 opus/48000/2\r\na=candidate:1 1 udp 1 127.0.0.1 9 typ host\r\n"
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=setup:active\r\na=mid:1\r\na=sctp-port:5000\r\n"
    "a=ice-ufrag:user\r\na=ice-pwd:password0123456789012345\r\n"
)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "<html>",
        '{"error":{}}',
        "v=0\r\n",
        GOOD.replace("m=audio", "m=video"),
        GOOD.replace("udp 1 127.0.0.1 9", "udp x y z"),
        GOOD.replace("a=sctp-port:5000", "a=sctp-port:none"),
    ],
)
async def test_answer_that_is_broken_is_a_failure_of_upstream(answer: str) -> None:
    """Whatever the service sends instead of SDP, the caller gets one clear error, and nothing is left."""
    facts = Facts()
    async with fake(_answer(answer)) as url, dialling(url, facts) as dialer:
        with pytest.raises(UpstreamError) as caught:
            await dialer.dial(REQUEST, Remembering())

    assert caught.value.code == "upstream-failed"
    assert caught.value.members["upstream"] == {"status": 201}
    assert peer_connections_left(facts) == 0


async def test_refused_call_is_counted_by_its_code() -> None:
    """The metric of upstream errors uses the service's own code."""
    facts = Facts()
    body = '{"error":{"code":"invalid_offer","message":"Offer did not have an audio media section."}}'
    async with fake(_answer(body, 400)) as url, dialling(url, facts) as dialer:
        with pytest.raises(UpstreamError) as caught:
            await dialer.dial(REQUEST, Remembering())

    assert caught.value.code == "upstream-rejected"
    assert facts.of("upstream_error") == [("invalid_offer",)]
    assert peer_connections_left(facts) == 0


async def test_certificate_that_does_not_match_is_refused() -> None:
    """A far end with another certificate than its answer announced is refused."""

    class Impostor(Farend):
        def rewrite(self, answer: str) -> str:
            head, _, rest = answer.partition("a=fingerprint:sha-256 ")
            return f"{head}a=fingerprint:sha-256 00{rest[2:]}"

    async with answering(Impostor()) as url, dialling(url, connect_timeout_seconds=5) as dialer:
        with pytest.raises(UpstreamError, match="DTLS"):
            await dialer.dial(REQUEST, Remembering())


@pytest.mark.slow
@HOOKS
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_dial_cancelled_anywhere_leaves_nothing(run: Run, hooks: frozenset[Hook], far_end: str) -> None:
    """A caller who leaves at any turn of the loop leaves no connection, socket or task."""

    async def main() -> None:
        facts = Facts()
        async with dialling(far_end, facts, hooks=hooks) as dialer:
            await (await dialer.dial(REQUEST, Remembering())).close(hang_up=False)
            await dialer.signaller.close()
            await dialer.signaller.open()
            before = Counts()
            reached = set()
            dialing: asyncio.Task[WebRTCUpstream] | None = None
            for step in range(40):
                dialing = asyncio.create_task(dialer.dial(REQUEST, Remembering()))
                for _ in range(min(step, 20)):
                    await asyncio.sleep(0)
                # In steps of half a millisecond, because signalling takes longer than single turns of the loop.
                await asyncio.sleep(max(0, step - 20) / 2000)
                reached |= {call._phase for call in dialer._calls}
                dialing.cancel()
                await asyncio.wait({dialing})
                if not dialing.cancelled():
                    await dialing.result().close(hang_up=False)
            dialing = None
            assert {"ice", "signalling"} <= reached
            assert peer_connections_left(facts) == 0
            assert not dialer._calls
            await dialer.signaller.close()
            await settled_to(before, dialer)

    run(main())


# --- close


async def test_close_hangs_up_and_can_be_repeated() -> None:
    """The call is hung up once, and every `close` returns."""
    far = Farend()
    async with open_call(far) as (call, _):
        await asyncio.gather(*(call.close(hang_up=True) for _ in range(5)))
        await call.close(hang_up=True)

    assert far.hung_up == ["rtc_test_1"]


async def test_close_without_hang_up_tells_nobody() -> None:
    """A call that the service ended is not hung up."""
    far = Farend()
    async with open_call(far) as (call, _):
        await call.close(hang_up=False)

    assert far.hung_up == []


@HOOKS
async def test_close_that_is_cancelled_completes_all_the_same(hooks: frozenset[Hook]) -> None:
    """Cancelled at any point, the closing continues, and a second close returns."""
    for turns in range(6):
        facts = Facts()
        async with open_call(facts=facts, hooks=hooks) as (call, _):
            closing = asyncio.create_task(call.close(hang_up=True))
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait({closing})
            async with asyncio.timeout(10):
                await call.close(hang_up=True)

            assert peer_connections_left(facts) == 0


async def test_close_that_hangs_is_given_up_in_its_time() -> None:
    """A connection that does not close is abandoned: its socket is freed, and that is reported."""
    facts = Facts()
    async with open_call(facts=facts, close_timeout_seconds=0.2) as (call, _):
        assert call._pc is not None
        real, stuck = call._pc.close, asyncio.Event()
        call._pc.close = stuck.wait  # type: ignore[assignment, method-assign]
        pc = call._pc
        async with asyncio.timeout(10):
            await call.close(hang_up=False)

        assert [what for what, _ in facts.of("close_failed")] == ["peer connection"]
        assert peer_connections_left(facts) == 0
        protocols = pc.sctp.transport.transport._connection._protocols
        assert all(protocol.transport.is_closing() for protocol in protocols)
        stuck.set()
        await real()


async def test_closed_call_is_freed_without_a_garbage_collection() -> None:
    """The parts of a connection do not keep each other alive, so hundreds of closed calls are no work for the collector."""
    async with answering(Farend()) as url, dialling(url) as dialer:
        call = await dialer.dial(REQUEST, Remembering())
        pc = call._pc
        assert pc is not None
        sockets = pc.ice._connection._protocols
        parts: list[weakref.ref[Any]] = [
            weakref.ref(part)
            for part in (call, pc, pc.ice, pc.dtls, pc.sctp, pc.channel, pc.ice._connection, *sockets)
        ]
        gc.disable()
        try:
            await call.close(hang_up=False)
            del call, pc, sockets
            await until(lambda: not any(part() for part in parts))
        finally:
            gc.enable()

    assert len(parts) >= 8


async def test_error_of_a_close_that_is_given_up_is_reported() -> None:
    """A close that is cancelled because it is late, and then fails, is reported with its own error."""
    facts = Facts()
    async with open_call(facts=facts, close_timeout_seconds=0.2) as (call, _):
        assert call._pc is not None
        real = call._pc.close

        async def fails() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError("a bug")

        call._pc.close = fails  # type: ignore[method-assign]
        await call.close(hang_up=False)

        assert [str(error) for _, error in facts.of("close_failed")] == ["a bug"]
        await real()


async def test_hang_up_that_fails_is_reported_and_nothing_more() -> None:
    """A service that no longer answers does not prevent a session from ending."""

    class Deaf(Farend):
        async def hang_up(self, request: web.Request) -> web.Response:
            return web.Response(status=500)

    facts = Facts()
    async with open_call(Deaf(), facts) as (call, _):
        await call.close(hang_up=True)

    assert [what for what, _ in facts.of("close_failed")] == ["hang-up"]


async def test_dialer_closes_the_calls_that_are_left() -> None:
    """When the gateway stops, all connections are closed."""
    facts = Facts()
    async with open_call(facts=facts):
        pass

    assert peer_connections_left(facts) == 0


# --- leaks


class Counts:
    """The resources of a process: tasks, threads, open files, peer connections."""

    def __init__(self) -> None:
        gc.collect()
        self.tasks = len(asyncio.all_tasks())
        self.threads = threading.active_count()
        self.files = len(os.listdir("/proc/self/fd"))
        self.connections = sum(isinstance(each, Connection) for each in gc.get_objects())

    def __repr__(self) -> str:
        return f"{vars(self)}"


async def settled_to(before: Counts, dialer: WebRTCDialer) -> None:
    """Wait until the process holds no more than before."""
    await until(lambda: vars(Counts()) == vars(before) and not dialer._tasks)


@pytest.mark.slow
@HOOKS
async def test_hundred_calls_opened_and_closed_leave_nothing(hooks: frozenset[Hook], far_end: str) -> None:
    """After 100 calls, ten at a time, tasks, threads, files and connections are as before."""
    async with dialling(far_end, hooks=hooks) as dialer:
        await (await dialer.dial(REQUEST, Remembering())).close(hang_up=True)
        before = Counts()
        for _ in range(10):
            calls = await asyncio.gather(*(dialer.dial(REQUEST, Remembering()) for _ in range(10)))
            await asyncio.gather(*(call.close(hang_up=True) for call in calls))
        await dialer.signaller.close()
        await dialer.signaller.open()
        await (await dialer.dial(REQUEST, Remembering())).close(hang_up=True)

        await settled_to(before, dialer)


@pytest.mark.slow
@HOOKS
async def test_lost_call_leaves_nothing(hooks: frozenset[Hook], far_end: str) -> None:
    """A loss of each kind cleans up even if `close` is never called."""
    async with dialling(far_end, hooks=hooks) as dialer:
        await (await dialer.dial(REQUEST, Remembering())).close(hang_up=True)
        before = Counts()
        for do in ("close-channel", "close", "abort"):
            sink = Remembering()
            call = await dialer.dial(REQUEST, sink)
            call.send([order(do)])
            await sink.until(lambda sink: sink.losses)
            del call

        await settled_to(before, dialer)


@pytest.mark.slow
async def test_refused_calls_leave_nothing() -> None:
    """After twenty refusals of each kind the process holds what it did before."""
    for handler in (_answer("{}", 500), _answer("v=0"), _answer("", 201)):
        async with fake(handler) as url, dialling(url) as dialer:
            with pytest.raises(UpstreamError):
                await dialer.dial(REQUEST, Remembering())
            before = Counts()
            for _ in range(20):
                with pytest.raises(UpstreamError):
                    await dialer.dial(REQUEST, Remembering())

            await settled_to(before, dialer)


async def test_nothing_is_logged_at_info_of_addresses_or_keys(caplog: pytest.LogCaptureFixture) -> None:
    """The libraries' own log lines, which contain addresses, are below the level that is shown."""
    with caplog.at_level(logging.INFO):
        async with open_call() as (call, _):
            await call.close(hang_up=True)

    assert "127.0.0.1" not in "".join(
        record.getMessage() for record in caplog.records if "ice" in record.name
    )


@pytest.mark.slow
async def test_probe_asks_for_a_sign_of_life() -> None:
    """A far end that is alive answers a probe at once; one that vanished does not, and a closed call cannot be
    probed."""
    async with farend() as url, dialling(url) as dialer:
        call = await dialer.dial(REQUEST, Remembering())
        alive = await call.probe(2.0)
        call.send([order("vanish")])
        await asyncio.sleep(0.2)
        vanished = await call.probe(0.3)
        await call.close(hang_up=False)

        assert (alive, vanished, await call.probe(0.3)) == (True, False, False)


@pytest.mark.slow
async def test_dead_far_end_is_noticed_when_it_answers_no_consent() -> None:
    """A process that disappears is reported as lost consent, here with a shortened time limit."""
    facts = Facts()
    async with farend() as url, dialling(url, facts, consent_timeout_seconds=0.1) as dialer:
        sink = Remembering()
        call = await dialer.dial(REQUEST, sink)
        call.send([order("vanish")])
        await sink.until(lambda sink: sink.losses, seconds=12)
        await call.close(hang_up=False)

    assert sink.losses == [(0, LossCause.CONSENT_EXPIRED)]
    assert facts.of("consent_failed") == [()]


async def test_far_end_sees_the_call_end() -> None:
    """Closing notifies the far end, which does not wait half a minute for silence."""
    async with farend() as url, dialling(url) as dialer, aiohttp.ClientSession() as client:
        call = await dialer.dial(REQUEST, Remembering())
        await call.close(hang_up=True)

        async def peers() -> int:
            async with client.get(url.replace("/v1", "/stats")) as response:
                return int((await response.json())["peers"])

        async with asyncio.timeout(10):
            while await peers():
                await asyncio.sleep(0.02)


async def test_acknowledged_counts_what_the_far_end_has() -> None:
    """Each text counts once it is acknowledged, also a large one, and the count can be read after the end."""
    async with open_call() as (call, _sink):
        assert call.acknowledged == 0
        call.send(["one", "two", "x" * 50_000])
        call.send(["three"])
        await until(lambda: call.acknowledged == 4)
        await call.close(hang_up=False)

    assert call.acknowledged == 4


async def test_acknowledged_stands_still_while_the_far_end_hears_nothing() -> None:
    """Text that is sent into a dead path is not counted."""
    async with open_call() as (call, _sink):
        call.send(["one"])
        await until(lambda: call.acknowledged == 1)
        connection: Any = call._pc.sctp.transport.transport._connection  # type: ignore[union-attr]
        connection.put = lambda _: None
        call.send(["two"])
        await asyncio.sleep(0.2)

        assert call.acknowledged == 1


async def test_part_of_a_message_is_undelivered() -> None:
    """While a fragment of a message is missing the call reports it as undelivered; without one it does not."""
    async with open_call() as (call, sink):
        assert not call.undelivered
        connection: Any = call._pc.sctp.transport.transport._connection  # type: ignore[union-attr]
        take = connection.direct
        connection.direct = lambda datagram: None if len(datagram) < 1000 else take(datagram)
        call.send([order("text", size=100_000)])
        await until(lambda: call.undelivered)
        connection.direct = take
        await sink.until(lambda sink: any(len(text) == 100_000 for text in sink.texts))

        assert not call.undelivered


async def test_loss_is_told_after_what_was_received_before_it() -> None:
    """Messages that wait for a turn of the loop when the far end ends the call are delivered before the loss is
    reported."""
    async with open_call() as (call, sink):
        await sink.until(lambda sink: sink.texts)
        association: Any = call._pc.sctp  # type: ignore[union-attr]
        turn, association.turn = association.turn, _NoTime()
        told: list[int] = []
        lost = sink.lost

        def note(generation: int, cause: LossCause) -> None:
            told.append(len(sink.texts))
            lost(generation, cause)

        sink.lost = note  # type: ignore[method-assign]
        call.send([order("stream", count=50, size=30, burst=50, pause=0), order("abort")])
        await until(lambda: call._transport_state("dtls") == "closed" or association.state == "closed")
        assert len(sink.texts) == 1
        association.turn = turn
        turn.wait(association)
        await sink.until(lambda sink: sink.losses)

    assert told == [51]


class _NoTime(LoopTurn):
    def has_time(self) -> bool:
        return False

    def wait(self, backlog: Any) -> None:
        return None


async def test_a_connection_whose_task_fails_is_a_failed_call(
    far_end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in a task of the set-up becomes an upstream error of the dial."""

    async def fail(self: RTCIceTransport, _: object) -> None:
        raise ConnectionError("not connected")

    monkeypatch.setattr(RTCIceTransport, "start", fail)
    async with dialling(far_end) as dialer:
        with pytest.raises(UpstreamError, match="failed: ConnectionError"):
            await dialer.dial(REQUEST, Remembering())


async def test_open_call_keeps_nothing_of_its_handshake() -> None:
    """What only the set-up needed is freed once the channel is open. Events, checks and closing do not need it."""
    async with open_call() as (call, sink):
        pc: Any = call._pc
        connection = pc.ice._connection
        assert pc.connecting is None
        assert not {"_check_list_state", "_early_checks"} & vars(connection).keys()
        call.send(["still here"])
        await sink.until(lambda sink: "still here" in sink.texts)
        assert await call.probe(5.0)
        await call.close(hang_up=False)

    assert connection._closed
