"""The Realtime protocol of one session: client events in, server events out.

Refuses to know WebRTC and HTTP: it is given a way out (`Line`) and a brain. Everything but the writing of a response
happens within `receive`; each response has one task that feeds it from the brain, owned here and awaited by `close`.

One response at a time may write to the default conversation. Those out of band (`conversation: "none"`) run beside it,
write nowhere, and are told apart by id and metadata.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gateway.emulator import events, usage
from gateway.emulator import session as session_object
from gateway.emulator.audio import AudioBuffer
from gateway.emulator.brain import Brain, BrainError, Comment, FunctionCall, Prompt
from gateway.emulator.catalog import EVENTS
from gateway.emulator.errors import Refusal
from gateway.emulator.faults import Faults
from gateway.emulator.ids import IdSource
from gateway.emulator.items import Conversation, Item, new_item
from gateway.emulator.pacing import Pacer
from gateway.emulator.responses import Response, Shape
from gateway.emulator.tokens import tokenize

# Out-of-band responses have no limit in the reference; this one keeps a runaway client from owning the process.
MAX_RESPONSES = 64
# A conversation longer than this is refused: items are kept in memory, and each response reads them all.
MAX_ITEMS = 10_000
_TOKEN_LIMIT = 15_000_000
_REFILL_PER_SECOND = _TOKEN_LIMIT / 60
_LATE_SECONDS = 0.5
_HUGE_BYTES = 3 * 1024 * 1024

Json = dict[str, Any]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """The way out: `send` puts one text on the channel, `send_frame` raw bytes, `writable` waits until there is room."""

    send: Callable[[str], None]
    send_frame: Callable[[bytes], None]
    writable: Callable[[], Awaitable[None]]
    fail: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Manner:
    """How a session behaves where the protocol leaves it open."""

    tokens_per_second: float
    item_done_quirk: bool


@dataclass(slots=True)
class _Active:
    response: Response
    segments: list[usage.Segment]
    default: bool
    limit: int | None
    task: asyncio.Task[None] | None = None


class _Limited(Exception):
    """The response has used up its `max_output_tokens`."""


class Realtime:
    """One session of the service; `faults` may be replaced at any time."""

    def __init__(
        self, *, session: Json, ids: IdSource, line: Line, brain: Brain, manner: Manner, faults: Faults
    ) -> None:
        self.session = session
        self.conversation = Conversation(ids.conversation())
        self.faults = faults
        self._ids = ids
        self._line = line
        self._brain = brain
        self._manner = manner
        self._audio = AudioBuffer()
        self._active: dict[str, _Active] = {}
        self._seen: list[usage.Segment] = []
        self._deltas = 0
        self._spoken = False
        self._closed = False
        self._late: set[asyncio.TimerHandle] = set()
        self._handlers: dict[str, Callable[[Json], None]] = {
            "session.update": self._session_update,
            "conversation.item.create": self._item_create,
            "conversation.item.retrieve": self._item_retrieve,
            "conversation.item.truncate": self._item_truncate,
            "conversation.item.delete": self._item_delete,
            "response.create": self._response_create,
            "response.cancel": self._response_cancel,
            "input_audio_buffer.append": self._audio_append,
            "input_audio_buffer.commit": self._audio_commit,
            "input_audio_buffer.clear": self._audio_clear,
            "output_audio_buffer.clear": self._output_clear,
        }
        assert self._handlers.keys() == EVENTS.keys()

    def opened(self) -> None:
        """Speak first, as the service does when the channel opens."""
        self._emit({"type": "session.created", "session": self.session})

    def receive(self, frame: str | bytes) -> None:
        """Take one client event; whatever is wrong with it is answered with an `error` event."""
        client_id: str | None = None
        try:
            event = events.parse(frame)
            client_id = events.event_id(event)
            self._handlers[events.check(event)](event)
        except Refusal as refusal:
            self.refuse(refusal, client_id)

    def refuse(self, refusal: Refusal, client_id: str | None = None) -> None:
        """Send an `error` event; the session goes on."""
        error = {
            "type": refusal.kind,
            "code": refusal.code,
            "message": refusal.message,
            "param": refusal.param,
            "event_id": client_id,
        }
        self._emit({"type": "error", "error": error})

    async def close(self) -> None:
        """Stop every response, without a word."""
        self._closed = True
        for timer in self._late:
            timer.cancel()
        tasks = [active.task for active in self._active.values() if active.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._active.clear()

    # -- session and items ----------------------------------------------------------------------------------------

    def _session_update(self, event: Json) -> None:
        session_object.check_update(self.session, event["session"], spoken=self._spoken)
        session_object.update(self.session, event["session"])
        self._emit({"type": "session.updated", "session": self.session})

    def _item_create(self, event: Json) -> None:
        if len(self.conversation) >= MAX_ITEMS:
            raise Refusal("conversation_too_long", f"A conversation holds at most {MAX_ITEMS} items.")
        item = new_item(event["item"], self._ids)
        before = self.conversation.place(item, event.get("previous_item_id"))
        for kind in ("conversation.item.added", "conversation.item.done"):
            self._emit({"type": kind, "previous_item_id": before, "item": item})

    def _item_retrieve(self, event: Json) -> None:
        self._emit({"type": "conversation.item.retrieved", "item": self.conversation.get(event["item_id"])})

    def _item_delete(self, event: Json) -> None:
        self.conversation.remove(event["item_id"])
        self._emit({"type": "conversation.item.deleted", "item_id": event["item_id"]})

    def _item_truncate(self, event: Json) -> None:
        item = self.conversation.get(event["item_id"])
        content = item.get("content") or []
        at = event["content_index"]
        spoken = (
            item.get("role") == "assistant" and at < len(content) and content[at]["type"] == "output_audio"
        )
        if not spoken:
            raise Refusal(
                "invalid_value",
                "Only model output audio messages can be truncated.",
                param="item_id" if item.get("role") != "assistant" else "content_index",
            )
        # The service drops the transcript with the audio: what was not heard was not said (conversation.item.truncate).
        content[at]["transcript"] = ""
        self._emit(
            {
                "type": "conversation.item.truncated",
                "item_id": event["item_id"],
                "content_index": at,
                "audio_end_ms": event["audio_end_ms"],
            }
        )

    # -- audio buffers: what can be answered without hearing ---------------------------------------------------------

    def _audio_append(self, event: Json) -> None:
        self._audio.append(event["audio"])

    def _audio_clear(self, event: Json) -> None:
        self._audio.clear()
        self._emit({"type": "input_audio_buffer.cleared"})

    def _audio_commit(self, event: Json) -> None:
        self._audio.commit()
        given = {"type": "message", "role": "user", "content": [{"type": "input_audio", "transcript": None}]}
        item = new_item(given, self._ids)
        before = self.conversation.place(item, None)
        self._emit(
            {"type": "input_audio_buffer.committed", "previous_item_id": before, "item_id": item["id"]}
        )
        for kind in ("conversation.item.added", "conversation.item.done"):
            self._emit({"type": kind, "previous_item_id": before, "item": item})

    def _output_clear(self, event: Json) -> None:
        running = self._running()
        if running is not None and running.response.speaking:
            running.response.hush()
            self._emit({"type": "output_audio_buffer.cleared", "response_id": running.response.id})

    # -- responses ------------------------------------------------------------------------------------------------

    def _response_create(self, event: Json) -> None:
        options = {k: v for k, v in (event.get("response") or {}).items() if v is not None}
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

    def _response_cancel(self, event: Json) -> None:
        wanted = event.get("response_id")
        active = self._active.get(wanted) if wanted is not None else self._running()
        if active is None:
            raise Refusal("response_cancel_not_active", "Cancellation failed: no active response found")
        if active.task is not None:
            active.task.cancel()
        self._finish(active, "cancelled", {"type": "cancelled", "reason": "client_cancelled"})

    def _running(self) -> _Active | None:
        return next((a for a in self._active.values() if a.default), None)

    def _input(self, options: Json) -> list[Item]:
        if "input" not in options:
            return list(self.conversation)
        return [
            self.conversation.get(given["id"], "response.input")
            if given["type"] == "item_reference"
            else new_item(given, self._ids)
            for given in options["input"]
        ]

    def _start(self, options: Json, items: list[Item], default: bool) -> None:
        session = self.session
        # What a response does not say for itself it takes from the session; the members' names are the same.
        asked = session | options
        instructions = options.get("instructions") or session["instructions"]
        output = session["audio"]["output"] | ((options.get("audio") or {}).get("output") or {})
        limit = asked["max_output_tokens"]
        items = session_object.within_context(session, items)
        response = Response(
            ids=self._ids,
            emit=self._emit,
            emit_text=self._line.send,
            conversation=self.conversation if default else None,
            shape=Shape(
                modalities=asked["output_modalities"],
                max_output_tokens=limit,
                audio={"output": {"format": output["format"], "voice": output["voice"]}},
                metadata=options.get("metadata"),
                phased=session_object.is_reasoning(session["model"]),
                item_done_quirk=self._manner.item_done_quirk,
            ),
        )
        segments = usage.segments(instructions, asked["tools"], items)
        active = _Active(response, segments, default, limit if isinstance(limit, int) else None)
        self._active[response.id] = active
        prompt = Prompt(instructions, items, asked["tools"], asked["tool_choice"], session["model"])
        active.task = asyncio.create_task(self._run(active, prompt))

    async def _run(self, active: _Active, prompt: Prompt) -> None:
        """Feed one response from the brain to its end."""
        try:
            await self._write(active, prompt)
        except _Limited:
            self._finish(active, "incomplete", {"type": "incomplete", "reason": "max_output_tokens"})
        except BrainError as error:
            self._fail(active, error.code, str(error))
        except Exception as error:
            _logger.error("brain_failed", exc_info=error)
            self._fail(active, None, "The server had an error while processing your request.")
        else:
            self._finish(active, "completed", None)

    async def _write(self, active: _Active, prompt: Prompt) -> None:
        faults, response = self.faults, active.response
        self._disturb()
        rate = (
            self._manner.tokens_per_second if faults.tokens_per_second is None else faults.tokens_per_second
        )
        pacer = Pacer(rate=rate, burst=faults.burst, first=faults.first_delta_seconds)
        if faults.fail_after_deltas == 0:
            await self._go_wrong(active)
        async for piece in self._brain.answer(prompt):
            if isinstance(piece, FunctionCall):
                response.begin_call(piece.name)
                for token in tokenize(piece.arguments):
                    await self._room(active, pacer)
                    response.argument(token)
                    await self._counted(active)
                response.end_call()
            else:
                await self._room(active, pacer)
                if isinstance(piece, Comment):
                    response.token(piece.token, "commentary")
                else:
                    response.token(piece)
                await self._counted(active)

    async def _room(self, active: _Active, pacer: Pacer) -> None:
        if active.limit is not None and active.response.tokens >= active.limit:
            raise _Limited
        await pacer.next()
        await self._line.writable()

    async def _counted(self, active: _Active) -> None:
        self._deltas += 1
        if self.faults.fail_after_deltas and self._deltas == self.faults.fail_after_deltas:
            await self._go_wrong(active)

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
            counted = usage.account(0, 0, usage.Output())
        else:
            spent = sum(tokens for _, tokens in active.segments)
            counted = usage.account(spent, usage.cached(self._seen, active.segments), response.written)
            self._seen = active.segments
        response.finish(status, details, counted)
        self._rate_limits(counted["total_tokens"])
        if response.speaking:
            self._spoken = True
            self._emit({"type": "output_audio_buffer.stopped", "response_id": response.id})

    def _rate_limits(self, spent: int) -> None:
        mode = self.faults.rate_limits
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
            self._late.add(loop.call_later(_LATE_SECONDS, self._emit, event))
        else:
            for _ in range({"missing": 0, "doubled": 2}.get(mode or "", 1)):
                self._emit(event)

    # -- faults ---------------------------------------------------------------------------------------------------

    def _disturb(self) -> None:
        faults = self.faults
        if faults.unknown_event:
            self._emit(
                {"type": "response.premonition.updated", "premonition": {"of": None, "certainty": 0.5}}
            )
        if faults.garbage == "text":
            self._line.send("this is no JSON {")
        elif faults.garbage == "utf8":
            self._line.send_frame(b'{"type":"\xff\xfe\xfa"}')
        elif faults.garbage == "array":
            self._line.send('["response.done"]')
        elif faults.garbage == "huge":
            self._emit({"type": "response.padding.added", "padding": "x" * _HUGE_BYTES})

    async def _go_wrong(self, active: _Active) -> None:
        faults = self.faults
        if faults.response_error is not None:
            raise BrainError(faults.response_error, f"The response failed: {faults.response_error}.")
        if faults.response_incomplete is not None:
            details = {"type": "incomplete", "reason": faults.response_incomplete}
            self._finish(active, "incomplete", details)
        if faults.fail is not None:
            self._line.fail(faults.fail)

    # -- out ------------------------------------------------------------------------------------------------------

    def _emit(self, event: Json) -> None:
        if self._closed:
            return
        kind = event["type"]
        heard = kind.startswith("output_audio_buffer.")
        event_id = self._ids.audio_buffer_event() if heard else self._ids.event()
        body = {"type": kind, "event_id": event_id, **event}
        self._line.send(json.dumps(body, ensure_ascii=False, separators=(",", ":")))
