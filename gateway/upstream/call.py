"""One upstream call over WebRTC (ports.Upstream): set up in phases, used, judged lost, closed.

A set-up has phases. Each is measured, and named in the error if the deadline passes in it:

```
   gather ─▶ signalling ─▶ ice ─▶ dtls ─▶ channel ─▶ open
```

One deadline covers all of them. aiortc has none: without it, a far end that answers and never connects would keep a
connection checking for ever.

This file does not interpret events.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from aiortc import RTCDataChannel

from gateway.errors import CallerError, Phase, UpstreamError
from gateway.relay.ports import CallRequest, Json, LossCause, Sink
from gateway.upstream import sdp, signalling, tuning
from gateway.upstream.connection import Connection
from gateway.upstream.descriptors import exhausted, no_descriptor
from gateway.upstream.resources import UNHEARD, CallResources

# Any label is accepted; the service's examples use this one.
CHANNEL_LABEL = "oai-events"

# After the loss of a stock connection its parts report one after the other; the last report is the true cause.
CAUSE_SETTLES_SECONDS = 0.05


class WebRTCUpstream:
    """One call (ports.Upstream)."""

    def __init__(
        self,
        resources: CallResources,
        request: CallRequest,
        sink: Sink,
        closed: "Callable[[WebRTCUpstream], None]",
    ) -> None:
        self.call_id: str | None = None
        self._resources = resources
        self._closed = closed
        self._request = request
        self._generation = request.generation
        self._sink = sink
        self._phase: Phase = "ice"
        self._phases: dict[str, float] = {}
        self._candidates: dict[str, object] = {}
        self.max_message_bytes: int | None = sdp.DEFAULT_MAX_MESSAGE_BYTES
        self._frames = {"received": 0, "sent": 0, "unreadable": 0}
        self._acknowledged = self._own_sends = 0
        self._open = self._lost = False
        self._gathering: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._hanging_up: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._began = self._since = resources.clock.monotonic()
        self._pc: Connection | None = None
        self._channel: RTCDataChannel | None = None

    # --- set-up

    async def open(self) -> None:
        """Run all phases; raises UpstreamError. The dialer closes a call that did not open."""
        seconds = self._resources.config.connect_timeout_seconds
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                await self._connect(seconds)
        except TimeoutError as error:
            # The socket's own, or the deadline over it all.
            failure = UpstreamError("upstream-failed", "The connection to OpenAI timed out.")
            if deadline.expired():
                detail = f"No connection to OpenAI within {seconds:g} s; it stopped at: {self._phase}."
                failure = UpstreamError("upstream-timeout", detail, members={"phase": self._phase})
            self._resources.telemetry.upstream_error(failure.code)
            raise failure from error
        except OSError as error:
            if exhausted(error):
                raise no_descriptor() from error
            raise
        except UpstreamError as error:
            told = error.members.get("upstream")
            word = (told.get("code") or told.get("type")) if isinstance(told, dict) else None
            self._resources.telemetry.upstream_error(str(word or error.code))
            raise

    async def _connect(self, seconds: float) -> None:
        resources = self._resources
        pc = self._build()
        # Must not be cancelled: sockets that aioice has opened but not recorded yet would leak.
        self._gathering = resources.own(pc.gather())
        await asyncio.shield(self._gathering)
        self._mark("gather", "signalling")
        offer = pc.offer(tuning.largest_message(resources.hooks, resources.config.max_server_event_bytes))
        local = offer.kinds
        without_relay = resources.config.has_turn and not any(kind.startswith("relay") for kind in local)
        if without_relay:
            resources.telemetry.turn_unavailable()
        if not local:
            raise resources.no_address(without_relay)
        self._candidates["local"] = list(local)
        left = seconds - (resources.clock.monotonic() - self._began)
        created = await resources.signaller.create(offer.text(secrets.randbits(63)), self._request, left)
        self.call_id = created.call_id
        self._mark("signalling", "ice")
        self._apply(pc, created)
        await self._opened
        tuning.forget_handshake(pc, resources.hooks)
        update = signalling.session_update(self._request.session)
        if update and signalling.is_ephemeral(self._request.bearer):
            # An ephemeral key carries its own session; the caller's members are applied over it.
            self.send([update])
            self._own_sends, self._frames["sent"] = 1, 0
        # The session object may have a megabyte, and is not needed again.
        self._request = replace(self._request, session={})

    def _build(self) -> Connection:
        resources = self._resources
        config = resources.config
        pc = self._pc = resources.connection(CHANNEL_LABEL)
        resources.telemetry.peer_connections(+1)
        channel = self._channel = pc.channel
        options = tuning.ConnectionOptions(
            addresses=resources.addresses(),
            consent_timeout=config.consent_timeout_seconds,
            max_message_bytes=config.max_server_event_bytes,
            turn=resources.turn,
            acks=resources.acks,
        )
        tuning.tune(pc, resources.hooks, options)

        channel.on("open", self._channel_opened)
        channel.on("message", self._received)
        channel.on("close", self._channel_closed)
        # Without this listener an exception in another would end the connection (pyee raises it where it is emitted).
        channel.on("error", lambda error: resources.telemetry.relay_failed(self.call_id or "", error))
        pc.dtls.on("statechange", self._dtls_changed)
        pc.ice.on("statechange", self._ice_changed)
        return pc

    def _apply(self, pc: Connection, created: signalling.CreatedCall) -> None:
        status = {"upstream": {"status": created.status}}
        try:
            answer = sdp.read_answer(created.sdp)
        except sdp.SdpError as error:
            detail = f"OpenAI's answer is not usable: {error}."
            raise UpstreamError("upstream-failed", detail, members=status) from error
        self.max_message_bytes = answer.max_message_bytes
        self._candidates.update(remote=list(answer.candidates), lite=answer.ice_lite, setup=answer.setup)
        try:
            connecting = pc.apply(answer)
        except (ValueError, AssertionError, IndexError) as error:
            # What aiortc raises for a candidate that it cannot read.
            detail = "OpenAI's answer cannot be applied."
            raise UpstreamError("upstream-failed", detail, members=status) from error
        connecting.add_done_callback(self._connected)

    def _connected(self, connecting: "asyncio.Task[None]") -> None:
        if not connecting.cancelled() and (error := connecting.exception()) is not None:
            self._connecting_failed(error)

    def _mark(self, phase: str, following: Phase) -> None:
        now = self._resources.clock.monotonic()
        self._phases[phase] = now - self._since
        self._resources.telemetry.connect_phase(phase, now - self._since)
        self._since = now
        self._phase = following

    def _fail(self, detail: str) -> None:
        if not self._opened.done():
            error = UpstreamError("upstream-failed", detail, members={"phase": self._phase})
            self._opened.set_exception(error)
            # If nothing awaits it any more, the unread exception is not an error.
            self._opened.exception()

    # --- what the connection reports; called by aiortc's emitters

    def _connecting_failed(self, error: BaseException) -> None:
        if exhausted(error) and not self._opened.done():
            self._opened.set_exception(error)  # `open` says what it means.
        self._fail(f"The connection to OpenAI's media server failed: {type(error).__name__}.")

    def _ice_changed(self) -> None:
        state = self._transport_state("ice")
        if state == "completed" and "ice" not in self._phases:
            self._mark("ice", "dtls")
        elif state == "failed":
            if self._open:
                self._judge()
            else:
                self._fail("No path to OpenAI's media server was found: UDP may be blocked here.")

    def _dtls_changed(self) -> None:
        state = self._transport_state("dtls")
        if state == "connected":
            assert self._pc is not None
            assert self._channel is not None
            tuning.go_direct(self._pc, self._received_texts, self._received_large)
            self._mark("dtls", "channel")
        elif state == "failed":
            self._fail("The DTLS handshake with OpenAI's media server failed.")
        elif state == "closed":
            if self._open:
                asyncio.get_running_loop().call_later(CAUSE_SETTLES_SECONDS, self._judge)
            else:
                self._fail("OpenAI's media server closed the connection while it was being set up.")

    def _channel_opened(self) -> None:
        if self._opened.done():
            return
        self._mark("channel", "channel")
        total = self._resources.clock.monotonic() - self._began
        self._phases["total"] = total
        self._resources.telemetry.connect_phase("total", total)
        self._open = True
        self._opened.set_result(None)

    def _channel_closed(self) -> None:
        if not self._open:
            self._fail("OpenAI closed the data channel while it was being set up.")
        elif self._transport_state("dtls") == "connected" and self._transport_state("ice") == "completed":
            self._judge()
        else:
            asyncio.get_running_loop().call_later(CAUSE_SETTLES_SECONDS, self._judge)

    def _received(self, message: str | bytes) -> None:
        if self._closing is not None:
            return
        try:
            if isinstance(message, str):
                self._frames["received"] += 1
                self._sink.received(self._generation, message)
            else:
                self._frames["unreadable"] += 1
                self._sink.unreadable(self._generation, len(message))
        except Exception as error:  # noqa: BLE001 - a sink never raises; if one does, the call must not pay for it
            self._resources.telemetry.relay_failed(self.call_id or "", error)

    def _received_texts(self, texts: list[str]) -> None:
        if self._closing is not None:
            return
        self._frames["received"] += len(texts)
        try:
            self._sink.received_together(self._generation, texts)
        except Exception as error:  # noqa: BLE001 - as above
            self._resources.telemetry.relay_failed(self.call_id or "", error)

    def _received_large(self, text: str) -> Iterator[None]:
        self._frames["received"] += 1
        try:
            for _ in self._sink.received_in_steps(self._generation, text):
                yield
                if self._closing is not None:
                    return
        except Exception as error:  # noqa: BLE001 - as above
            self._resources.telemetry.relay_failed(self.call_id or "", error)

    def _judge(self) -> None:
        """Report once to the sink that the call is lost, and why; begin to close."""
        if self._lost or self._closing is not None or self._pc is None:
            return
        if tuning.delivering(self._pc):
            # What was received before the end is delivered first.
            asyncio.get_running_loop().call_later(CAUSE_SETTLES_SECONDS, self._judge)
            return
        self._lost = True
        if tuning.consent_expired(self._pc):
            cause = LossCause.CONSENT_EXPIRED
            self._resources.telemetry.consent_failed()
        elif tuning.farewell_heard(self._pc):
            cause = LossCause.CHANNEL_CLOSED
        else:
            cause = LossCause.CONNECTION_FAILED
        _ = self.begin_close()
        self._sink.lost(self._generation, cause)

    def _transport_state(self, which: str) -> str:
        if self._pc is None:
            return "closed"
        return self._pc.dtls.state if which == "dtls" else self._pc.ice.state

    # --- ports.Upstream

    @property
    def buffered(self) -> int:
        return self._channel.bufferedAmount if self._channel is not None else 0

    @property
    def undelivered(self) -> bool:
        return self._pc is not None and tuning.undelivered(self._pc)

    @property
    def acknowledged(self) -> int:
        if self._pc is not None:
            count = tuning.acknowledged(self._pc, self._own_sends + self._frames["sent"])
            self._acknowledged = max(self._acknowledged, count)
        return max(0, self._acknowledged - self._own_sends)

    @property
    def diagnostics(self) -> Json:
        pair = tuning.selected_pair(self._pc) if self._pc is not None else None
        return {
            "phases": {name: round(seconds, 6) for name, seconds in self._phases.items()},
            "candidates": {**self._candidates, "selected": list(pair) if pair else None},
            "frames": dict(self._frames),
            "buffered": self.buffered,
            "hooks": sorted(self._resources.hooks),
        }

    def send(self, batch: Sequence[str]) -> None:
        """Hand over all of `batch`, or nothing (ports.Upstream)."""
        channel = self._channel
        if channel is None or self._closing is not None or channel.readyState != "open":
            raise UpstreamError("upstream-failed", "The data channel to OpenAI is not open.")
        limit = self.max_message_bytes
        if limit is not None:
            for text in batch:
                # A character has at most four bytes in UTF-8 (RFC 3629 3): most texts need not be encoded to check their size.
                if 4 * len(text) > limit and (size := len(text.encode())) > limit:
                    detail = (
                        f"OpenAI accepts events of up to {limit} bytes on this call, this one has {size}."
                    )
                    raise CallerError("too-large", detail, members={"limit": limit})
        for text in batch:
            channel.send(text)
        self._frames["sent"] += len(batch)

    async def probe(self, timeout: float) -> bool:
        """Check whether the far end is alive (ports.Upstream): the answer to a check or any event shows it."""
        pc, received = self._pc, self._frames["received"]
        if pc is None or self._closing is not None:
            return False
        try:
            answered = await asyncio.wait_for(tuning.alive(pc), timeout)
        except TimeoutError:
            answered = False
        return answered or self._frames["received"] > received

    async def close(self, hang_up: bool) -> None:
        """End the call (ports.Upstream). `CallResources` owns the task, so it continues if the caller is cancelled."""
        work = [self.begin_close()]
        if hang_up and (hanging_up := self.begin_hang_up()) is not None:
            work.append(hanging_up)
        await asyncio.wait(work)

    def begin_close(self) -> "asyncio.Task[None]":
        """Start closing the connection, once; return the task, which `CallResources` owns."""
        if self._closing is None:
            self._closing = self._resources.own(self._close())
        return self._closing

    def begin_hang_up(self) -> "asyncio.Task[None] | None":
        """Start the hang-up request, once; None if there is no call to end."""
        if self._hanging_up is None and self.call_id is not None:
            self._hanging_up = self._resources.own(self._hang_up(self.call_id))
        return self._hanging_up

    async def _close(self) -> None:
        pc = self._pc
        try:
            if pc is not None:
                await self._close_connection(pc)
        finally:
            _ = self.acknowledged  # kept: it is read after the end as well
            self._pc = self._channel = None
            self._sink = UNHEARD
            self._closed(self)

    async def _close_connection(self, pc: Connection) -> None:
        seconds, telemetry = self._resources.config.close_timeout_seconds, self._resources.telemetry
        if self._gathering is not None:
            await asyncio.wait({self._gathering}, timeout=seconds)
        closing = asyncio.create_task(pc.close())
        try:
            _, late = await asyncio.wait({closing}, timeout=seconds)
            error = None if late else closing.exception()
            if late or error is not None:
                closing.cancel()
                tuning.abandon(pc)
                await asyncio.wait({closing}, timeout=seconds)
                if late and closing.done() and not closing.cancelled():
                    error = closing.exception()
                telemetry.close_failed("peer connection", error or TimeoutError("it did not close in time"))
            await tuning.reap(pc, seconds)
            if not late and error is None:
                tuning.dismantle(pc)
        finally:
            # aiortc keeps these references, and they keep the call alive.
            pc.dtls.remove_all_listeners()
            telemetry.peer_connections(-1)

    async def _hang_up(self, call_id: str) -> None:
        await self._resources.hang_up(call_id, self._request.bearer)
