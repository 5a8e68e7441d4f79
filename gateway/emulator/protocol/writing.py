"""Begins the responses of a session, writes them at a pace, and ends them.

`realtime` reads client events, not this file. Each response has one task that feeds it from the brain. The task is owned here
and awaited by `close`. One response at a time may write to the default conversation. Out-of-band responses
(`conversation: "none"`) run concurrently, add no items, and are distinguished by id and metadata. Faults in the middle of a
response are applied here.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gateway.emulator.protocol import session as session_object
from gateway.emulator.protocol import usage
from gateway.emulator.protocol.brain import Brain, BrainError, Comment, FunctionCall, Prompt
from gateway.emulator.protocol.errors import Refusal
from gateway.emulator.protocol.items import Item, new_item
from gateway.emulator.protocol.live import LiveSession
from gateway.emulator.protocol.mcp import McpServers
from gateway.emulator.protocol.pacing import Pacer
from gateway.emulator.protocol.remote import RemoteTools
from gateway.emulator.protocol.responses import Response, Shape
from gateway.emulator.protocol.tokens import tokenize

# The reference has no limit for out-of-band responses. This one keeps a faulty client from using up the process.
MAX_RESPONSES = 64
_TOKEN_LIMIT = 15_000_000
_REFILL_PER_SECOND = _TOKEN_LIMIT / 60
_LATE_SECONDS = 0.5
_HUGE_BYTES = 3 * 1024 * 1024

Json = dict[str, Any]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """The output: `send` puts one text on the channel, `send_frame` raw bytes, `writable` waits until there is room,
    `fail` triggers a fault."""

    send: Callable[[str], None]
    send_frame: Callable[[bytes], None]
    writable: Callable[[], Awaitable[None]]
    fail: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Manner:
    """Settings of a session that the protocol does not define.

    `hear(seconds)` returns the words in that much input audio. `mcp_servers` has the tools of the servers that it can reach.
    `carries_audio` is true for a WebSocket session, which sends audio in events; a call sends it on its track.
    """

    tokens_per_second: float
    item_done_quirk: bool
    hear: Callable[[float], str]
    mcp_servers: McpServers
    carries_audio: bool = False


@dataclass(slots=True)
class _Active:
    response: Response
    segments: list[usage.Segment]
    default: bool
    limit: int | None
    tools: list[Json]
    task: asyncio.Task[None] | None = None


class _Incomplete(Exception):
    """The response ends incomplete; the text is the reason."""


class Writer:
    """All responses of one session.

    `spoken` is true once an answer had audio.
    `ended(seconds)` is called when a response of the conversation has ended; `seconds` is the duration of its audio.
    """

    def __init__(
        self,
        live: LiveSession,
        line: Line,
        brain: Brain,
        manner: Manner,
        remote: RemoteTools,
        ended: Callable[[float], None],
    ) -> None:
        self.spoken = False
        self._live = live
        self._line = line
        self._brain = brain
        self._manner = manner
        self._remote = remote
        self._ended = ended
        self._active: dict[str, _Active] = {}
        self._seen: list[usage.Segment] = []
        self._deltas = 0
        # Includes ended responses until their tasks are done: a cancelled one may still be closing its brain's request.
        self._tasks: set[asyncio.Task[None]] = set()
        self._late: set[asyncio.TimerHandle] = set()

    def begin(self, options: Json) -> None:
        """Begin a response with the options of a checked `response.create`; raises Refusal."""
        options = {key: value for key, value in options.items() if value is not None}
        default = options.get("conversation", "auto") != "none"
        running = self._running()
        if default and running is not None:
            raise Refusal(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {running.response.id}. "
                "Wait until the response is finished before creating a new one.",
            )
        if len(self._active) >= MAX_RESPONSES:
            raise Refusal("too_many_responses", f"At most {MAX_RESPONSES} responses can be active at once.")
        self._start(options, self._input(options), default)

    @property
    def busy(self) -> bool:
        """Whether a response is writing to the conversation."""
        return self._running() is not None

    def cancel(self, response_id: str | None) -> None:
        """End the named response, by default the one that writes to the conversation; raises Refusal."""
        active = self._active.get(response_id) if response_id is not None else self._running()
        if active is None:
            raise Refusal("response_cancel_not_active", "Cancellation failed: no active response found")
        self._cut(active, "client_cancelled")

    def interrupt(self) -> None:
        """End the running response and its audio because the user speaks."""
        if (running := self._running()) is not None:
            self.hush()
            self._cut(running, "turn_detected")

    def _cut(self, active: _Active, reason: str) -> None:
        if active.task is not None:
            active.task.cancel()
        self._finish(active, "cancelled", {"type": "cancelled", "reason": reason})

    def hush(self) -> None:
        """Stop the audio of the response that is speaking, if any."""
        running = self._running()
        if running is not None and running.response.speaking:
            running.response.hush()
            self._live.emit({"type": "output_audio_buffer.cleared", "response_id": running.response.id})

    async def close(self) -> None:
        """Stop every response without sending anything."""
        for timer in self._late:
            timer.cancel()
        self._active.clear()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def _running(self) -> _Active | None:
        return next((active for active in self._active.values() if active.default), None)

    def _input(self, options: Json) -> list[Item]:
        if "input" not in options:
            return self._live.conversation.as_heard()
        return [
            self._live.conversation.get(given["id"], "response.input")
            if given["type"] == "item_reference"
            else new_item(given, self._live.ids)
            for given in options["input"]
        ]

    def _start(self, options: Json, items: list[Item], default: bool) -> None:
        session = self._live.object
        # Members that the request leaves out come from the session, which uses the same names.
        asked = session | options
        instructions = options.get("instructions") or session["instructions"]
        output = session["audio"]["output"] | ((options.get("audio") or {}).get("output") or {})
        limit = asked["max_output_tokens"]
        items = session_object.within_context(session, items)
        response = Response(
            self._live,
            Shape(
                modalities=asked["output_modalities"],
                max_output_tokens=limit,
                audio={"output": {"format": output["format"], "voice": output["voice"]}},
                metadata=options.get("metadata"),
                phased=session_object.is_reasoning(session["model"]),
                item_done_quirk=self._manner.item_done_quirk,
                carries_audio=self._manner.carries_audio,
            ),
            default=default,
        )
        tools = asked["tools"]
        segments = usage.segments(instructions, tools, items, self._live.conversation.sounds)
        active = _Active(response, segments, default, limit if isinstance(limit, int) else None, tools)
        self._active[response.id] = active
        choice = self._remote.choice(asked["tool_choice"], tools)
        prompt = Prompt(instructions, items, self._remote.offered(tools), choice, session["model"])
        active.task = asyncio.create_task(self._run(active, prompt))
        self._tasks.add(active.task)
        active.task.add_done_callback(self._tasks.discard)

    async def _run(self, active: _Active, prompt: Prompt) -> None:
        """Feed one response from the brain to its end."""
        try:
            await self._write(active, prompt)
        except _Incomplete as end:
            self._finish(active, "incomplete", {"type": "incomplete", "reason": str(end)})
        except BrainError as error:
            self._fail(active, error.code, str(error))
        except Exception as error:
            # An error in a brain ends its response, as an error in the service would. Nothing else waits for this task.
            _logger.error("brain_failed", exc_info=error)
            self._fail(active, None, "The server had an error while processing your request.")
        else:
            self._finish(active, "completed", None)

    async def _write(self, active: _Active, prompt: Prompt) -> None:
        faults, response = self._live.faults, active.response
        self._disturb()
        pacer = Pacer(self._manner.tokens_per_second, faults)
        if faults.fail_after_deltas == 0:
            self._go_wrong()
        async for piece in self._brain.answer(prompt):
            if isinstance(piece, FunctionCall):
                await self._call(active, piece, pacer)
            else:
                await self._room(active, pacer)
                if isinstance(piece, Comment):
                    response.token(piece.token, "commentary")
                else:
                    response.token(piece)
                self._counted()

    async def _call(self, active: _Active, call: FunctionCall, pacer: Pacer) -> None:
        response, remote = active.response, self._remote.find(call.name, active.tools)
        if remote is not None and remote.needs_approval:
            await self._room(active, pacer)
            request = response.ask_approval(call.name, remote.server_label, call.arguments)
            self._remote.await_approval(request)
            return
        if remote is None:
            response.begin_call(call.name)
        else:
            response.begin_mcp_call(call.name, remote.server_label)
        for token in tokenize(call.arguments):
            await self._room(active, pacer)
            response.argument(token)
            self._counted()
        if remote is None:
            response.end_call()
        else:
            response.end_mcp_call(self._remote.call(remote.tool, call.arguments))

    async def _room(self, active: _Active, pacer: Pacer) -> None:
        if active.limit is not None and active.response.written.tokens >= active.limit:
            raise _Incomplete("max_output_tokens")
        await pacer.next()
        await self._line.writable()

    def _counted(self) -> None:
        self._deltas += 1
        if self._deltas == (self._live.faults.fail_after_deltas or -1):
            self._go_wrong()

    def _fail(self, active: _Active, code: str | None, message: str) -> None:
        kind = "server_error" if code is None else "invalid_request_error"
        error = {"type": kind, "code": code, "message": message}
        self._finish(active, "failed", {"type": "failed", "error": error})

    def _finish(self, active: _Active, status: str, details: Json | None) -> None:
        response = active.response
        if self._active.pop(response.id, None) is None:
            return
        if status == "failed":
            # Recorded: a failed response is not charged.
            counted = usage.account(usage.NOTHING, usage.NOTHING, usage.Output())
        else:
            served = usage.cached(self._seen, active.segments)
            counted = usage.account(usage.total(active.segments), served, response.written)
            self._seen = active.segments
        response.finish(status, details, counted)
        self._rate_limits(counted["total_tokens"])
        self.spoken = self.spoken or response.written.seconds > 0
        if response.speaking:
            self._live.emit({"type": "output_audio_buffer.stopped", "response_id": response.id})
        if active.default:
            self._ended(response.written.seconds)

    def _rate_limits(self, spent: int) -> None:
        mode = self._live.faults.rate_limits
        tokens = {
            "name": "tokens",
            "limit": _TOKEN_LIMIT,
            "remaining": max(0, _TOKEN_LIMIT - spent),
            "reset_seconds": round(spent / _REFILL_PER_SECOND, 3),
        }
        event: Json = {"type": "rate_limits.updated", "rate_limits": [tokens]}
        if mode == "late":
            loop = asyncio.get_running_loop()
            self._late = {timer for timer in self._late if timer.when() > loop.time()}
            self._late.add(loop.call_later(_LATE_SECONDS, self._live.emit, event))
        else:
            for _ in range({"missing": 0, "doubled": 2}.get(mode or "", 1)):
                self._live.emit(event)

    # -- faults ---------------------------------------------------------------------------------------------------

    def _disturb(self) -> None:
        faults = self._live.faults
        if faults.unknown_event:
            self._live.emit(
                {"type": "response.premonition.updated", "premonition": {"of": None, "certainty": 0.5}}
            )
        if faults.garbage == "text":
            self._line.send("this is no JSON {")
        elif faults.garbage == "utf8":
            self._line.send_frame(b'{"type":"\xff\xfe\xfa"}')
        elif faults.garbage == "array":
            self._line.send('["response.done"]')
        elif faults.garbage == "huge":
            self._live.emit({"type": "response.padding.added", "padding": "x" * _HUGE_BYTES})

    def _go_wrong(self) -> None:
        faults = self._live.faults
        if faults.response_error is not None:
            raise BrainError(faults.response_error, f"The response failed: {faults.response_error}.")
        if faults.response_incomplete is not None:
            raise _Incomplete(faults.response_incomplete)
        if faults.fail is not None:
            self._line.fail(faults.fail)
