"""The Realtime protocol of one session: client events in, server events out.

Refuses to know WebRTC and HTTP: it is given a function that sends text and one that waits for room. Each active response
has one task that feeds it from the brain; everything else happens within `receive`.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gateway.emulator import session as session_object
from gateway.emulator import usage
from gateway.emulator.brain import Brain, FunctionCall, Prompt
from gateway.emulator.errors import Refusal
from gateway.emulator.ids import IdSource
from gateway.emulator.items import Conversation, Item
from gateway.emulator.responses import Response
from gateway.emulator.tokens import tokenize

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """The way out: `send` puts a text on the channel, `writable` waits until there is room for more."""

    send: Callable[[str], None]
    writable: Callable[[], Awaitable[None]]


@dataclass(slots=True)
class _Active:
    response: Response
    segments: list[usage.Segment]
    default: bool
    task: asyncio.Task[None] | None = None


class Realtime:
    """One session of the service."""

    def __init__(
        self, *, session: Json, ids: IdSource, line: Line, brain: Brain, tokens_per_second: float, quirk: bool
    ) -> None:
        self.session = session
        self.conversation = Conversation(ids.conversation())
        self._ids = ids
        self._line = line
        self._brain = brain
        self._rate = tokens_per_second
        self._quirk = quirk
        self._active: dict[str, _Active] = {}
        self._seen: list[usage.Segment] = []
        self._spent = 0
        self._closed = False
        self._handlers: dict[str, Callable[[Json], None]] = {
            "session.update": self._session_update,
            "conversation.item.create": self._item_create,
            "response.create": self._response_create,
            "response.cancel": self._response_cancel,
        }

    def opened(self) -> None:
        """Speak first, as the service does when the channel opens."""
        self._emit({"type": "session.created", "session": self.session})

    def receive(self, frame: str | bytes) -> None:
        """Take one client event."""
        client_id: str | None = None
        try:
            event = _parse(frame)
            given = event.get("event_id")
            client_id = given if isinstance(given, str) else None
            self._handle(event)
        except Refusal as refusal:
            self.refuse(refusal, client_id)

    def refuse(self, refusal: Refusal, client_id: str | None = None) -> None:
        """Send an `error` event."""
        self._emit(
            {
                "type": "error",
                "error": {
                    "type": refusal.kind,
                    "code": refusal.code,
                    "message": refusal.message,
                    "param": refusal.param,
                    "event_id": client_id,
                },
            }
        )

    async def close(self) -> None:
        """Stop every response, without a word."""
        self._closed = True
        tasks = [active.task for active in self._active.values() if active.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._active.clear()

    def _handle(self, event: Json) -> None:
        kind = event.get("type")
        if not isinstance(kind, str):
            raise Refusal("missing_required_parameter", "Missing required parameter: 'type'.", param="type")
        handler = self._handlers.get(kind)
        if handler is None:
            supported = ", ".join(f"'{name}'" for name in self._handlers)
            raise Refusal(
                "invalid_value", f"Invalid value: '{kind}'. Supported values are: {supported}.", param="type"
            )
        handler(event)

    # -- client events --------------------------------------------------------------------------------------------

    def _session_update(self, event: Json) -> None:
        session_object.update(self.session, event["session"])
        self._emit({"type": "session.updated", "session": self.session})

    def _item_create(self, event: Json) -> None:
        item = self._item(event["item"])
        before = self.conversation.place(item, event.get("previous_item_id"))
        for kind in ("conversation.item.added", "conversation.item.done"):
            self._emit({"type": kind, "previous_item_id": before, "item": item})

    def _response_create(self, event: Json) -> None:
        options: Json = event.get("response") or {}
        default = options.get("conversation", "auto") != "none"
        running = next((a for a in self._active.values() if a.default), None)
        if default and running is not None:
            raise Refusal(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {running.response.id}. "
                "Wait until the response is finished before creating a new one.",
            )
        self._start(options, default)

    def _response_cancel(self, event: Json) -> None:
        wanted = event.get("response_id")
        active = (
            self._active.get(wanted)
            if wanted is not None
            else next((a for a in self._active.values() if a.default), None)
        )
        if active is None:
            raise Refusal("response_cancel_not_active", "Cancellation failed: no active response found")
        if active.task is not None:
            active.task.cancel()
        self._finish(active, "cancelled", {"type": "cancelled", "reason": "client_cancelled"})

    # -- responses ------------------------------------------------------------------------------------------------

    def _start(self, options: Json, default: bool) -> None:
        session = self.session
        items = list(self.conversation)
        instructions = options.get("instructions") or session["instructions"]
        tools = options.get("tools", session["tools"])
        voice = session["audio"]["output"]
        response = Response(
            ids=self._ids,
            emit=self._emit,
            emit_text=self._line.send,
            conversation=self.conversation if default else None,
            shape={
                "output_modalities": options.get("output_modalities", session["output_modalities"]),
                "max_output_tokens": options.get("max_output_tokens", session["max_output_tokens"]),
                "audio": {"output": {"format": voice["format"], "voice": voice["voice"]}},
                "metadata": options.get("metadata"),
            },
            phased=str(session["model"]).startswith("gpt-realtime-2"),
            item_done_quirk=self._quirk,
        )
        active = _Active(response, usage.segments(instructions, tools, items), default)
        self._active[response.id] = active
        prompt = Prompt(
            instructions=instructions,
            items=items,
            tools=tools,
            tool_choice=options.get("tool_choice", session["tool_choice"]),
            model=session["model"],
        )
        active.task = asyncio.create_task(self._run(active, prompt))

    async def _run(self, active: _Active, prompt: Prompt) -> None:
        response = active.response
        async for piece in self._brain.answer(prompt):
            if isinstance(piece, FunctionCall):
                response.begin_call(piece.name)
                for token in tokenize(piece.arguments):
                    await self._pace(active)
                    response.argument(token)
                response.end_call()
            else:
                await self._pace(active)
                response.token(piece)
        self._finish(active, "completed", None)

    async def _pace(self, active: _Active) -> None:
        if self._rate > 0:
            await asyncio.sleep(1 / self._rate)
        await self._line.writable()

    def _finish(self, active: _Active, status: str, details: Json | None) -> None:
        response = active.response
        if self._active.pop(response.id, None) is None:
            return
        spent = sum(tokens for _, tokens in active.segments)
        written = response.written
        cached = usage.cached(self._seen, active.segments)
        self._seen = active.segments + [(str(item["id"]), written.text_tokens) for item in response.output]
        counted = usage.account(spent, cached, written)
        response.finish(status, details, counted)
        self._spent += counted["total_tokens"]
        self._emit(
            {
                "type": "rate_limits.updated",
                "rate_limits": [
                    {
                        "name": "tokens",
                        "limit": 15000000,
                        "remaining": 15000000 - counted["total_tokens"],
                        "reset_seconds": 0.004,
                    }
                ],
            }
        )
        if response.spoke:
            self._emit({"type": "output_audio_buffer.stopped", "response_id": response.id})

    def _item(self, given: Json) -> Item:
        item: Item = {"id": given.get("id") or self._ids.item(), "type": given["type"]}
        if given["type"] in ("message", "function_call"):
            item["status"] = "completed"
        item.update({k: v for k, v in given.items() if k not in ("id", "type", "status", "object")})
        if item["type"] == "function_call" and not item.get("call_id"):
            item["call_id"] = self._ids.function_call()
        return item

    def _emit(self, event: Json) -> None:
        if self._closed:
            return
        kind = event["type"]
        event_id = (
            self._ids.audio_buffer_event() if kind.startswith("output_audio_buffer.") else self._ids.event()
        )
        body = {"type": kind, "event_id": event_id, **event}
        self._line.send(json.dumps(body, ensure_ascii=False, separators=(",", ":")))


def _parse(frame: str | bytes) -> Json:
    try:
        event = json.loads(frame)
    except (ValueError, RecursionError):
        raise Refusal("invalid_json", "The event is not valid JSON.") from None
    if not isinstance(event, dict):
        raise Refusal("invalid_event", "The event is not a JSON object.")
    return event
