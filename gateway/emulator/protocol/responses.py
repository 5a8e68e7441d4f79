"""One response: the events it causes, in the recorded order.

It does not know where the text comes from or at which pace. Callers call `token`, `function_call` and `finish`, and it sends
the events. It is a plain object without a task, so that a cancelled response can still end as on the service.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.emulator.protocol.ids import IdSource
from gateway.emulator.protocol.items import Item
from gateway.emulator.protocol.live import LiveSession
from gateway.emulator.protocol.sound import TOKEN_MS, tone
from gateway.emulator.protocol.tokens import count
from gateway.emulator.protocol.usage import Output as Written

Json = dict[str, Any]
Emit = Callable[[Json], None]
Phase = Literal["commentary", "final_answer"]
# Recorded: padding fills a short delta up to 16 characters.
_PADDED = 16
# Recorded: audio follows its transcript, and begins after the third delta.
_HEARD_AFTER = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """The settings of a response, echoed in its object.

    `phased` is the form of gpt-realtime-2 and later, whose messages say whether they comment or answer. `carries_audio`
    puts audio into events (`response.output_audio.delta`, WebSocket); a call has it on its audio track.
    """

    modalities: list[str]
    max_output_tokens: int | str
    audio: Json
    metadata: Json | None
    phased: bool
    item_done_quirk: bool
    carries_audio: bool


@dataclass(slots=True)
class _Output:
    """One output item while it is written."""

    index: int
    item: Item
    pieces: list[str] = field(default_factory=list)
    # The constant parts of the delta event, encoded once. This halves the cost of a delta.
    frame: tuple[str, str] = ("", "")


class Response:
    """A response being written.

    With `default` it writes to the conversation. One out of band does not: its items cause no `conversation.*` event.
    """

    def __init__(self, live: LiveSession, shape: Shape, *, default: bool) -> None:
        self.id = live.ids.response()
        self.status = "in_progress"
        self.output: list[Item] = []
        self._live = live
        self._conversation = live.conversation if default else None
        self._shape = shape
        self._open: list[_Output] = []
        self._count = 0
        self.speaking = False
        self._started = False
        self.written = Written(spoken=shape.modalities == ["audio"])
        self._live.emit({"type": "response.created", "response": self.describe(None, None)})

    def describe(self, status_details: Json | None, usage: Json | None) -> Json:
        """Return the current response object."""
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": self.status,
            "status_details": status_details,
            "output": list(self.output),
            "conversation_id": self._conversation.id if self._conversation is not None else None,
            "output_modalities": self._shape.modalities,
            "max_output_tokens": self._shape.max_output_tokens,
            "audio": self._shape.audio,
            "usage": usage,
            "metadata": self._shape.metadata,
        }

    def token(self, text: str, phase: Phase = "final_answer") -> None:
        """Write one token of the message; begin the message if none is open."""
        output = next((o for o in self._open if o.item["type"] == "message"), None) or self._begin_message(
            phase
        )
        self.written.message_tokens += 1
        self._delta(output, text)
        if self.written.spoken:
            self._sound(output)

    def begin_call(self, name: str) -> None:
        """Begin a function call; a message before it ends first, unless this model interleaves them."""
        if not self._shape.phased:
            self._end_all("completed")
        item: Item = {
            "id": self._live.ids.item(),
            "type": "function_call",
            "status": "in_progress",
            "name": name,
            "call_id": self._live.ids.function_call(),
            "arguments": "",
        }
        output = self._begin(item)
        member = f'"call_id":{json.dumps(item["call_id"])},"delta":'
        output.frame = self._delta_frame("response.function_call_arguments.delta", output, member)
        self.written.calls += 1
        self.written.call_tokens += 1

    def begin_mcp_call(self, name: str, server_label: str) -> None:
        """Begin a call of an MCP server's tool."""
        if not self._shape.phased:
            self._end_all("completed")
        output = self._begin(new_mcp_call(self._live.ids, name, server_label, "", None))
        output.frame = self._delta_frame("response.mcp_call_arguments.delta", output, '"delta":')
        self.written.calls += 1
        self.written.call_tokens += 1

    def end_mcp_call(self, answer: tuple[str | None, Json | None]) -> None:
        """End the open MCP call with its output and its error."""
        output = self._open[-1]
        item = output.item
        item["arguments"] = "".join(output.pieces)
        place = {"item_id": item["id"], "output_index": output.index}
        self._live.emit(
            {
                "type": "response.mcp_call_arguments.done",
                "response_id": self.id,
                **place,
                "arguments": item["arguments"],
            }
        )
        emit_mcp_call(self._live.emit, item, output.index, answer)
        self._end_all("completed")

    def ask_approval(self, name: str, server_label: str, arguments: str) -> Item:
        """Ask the client whether a tool may be called, and return the item that asks; it contains the complete arguments."""
        if not self._shape.phased:
            self._end_all("completed")
        item = {"id": self._live.ids.item(), "type": "mcp_approval_request", "server_label": server_label}
        item |= {"name": name, "arguments": arguments}
        self._begin(item)
        self.written.calls += 1
        self.written.call_tokens += count(arguments)
        self._end_all("completed")
        return item

    def argument(self, text: str) -> None:
        """Write one token of the open call's arguments."""
        self.written.call_tokens += 1
        self._delta(self._open[-1], text)

    def end_call(self) -> None:
        """End the open function call, and the message that it interrupted, if any."""
        self._end_all("completed")

    def finish(self, status: str, details: Json | None, usage: Json) -> None:
        """End the response; do nothing if it has already ended."""
        if self.status != "in_progress":
            return
        self._end_all("completed" if status == "completed" else "incomplete")
        self.status = status
        self._live.emit({"type": "response.done", "response": self.describe(details, usage)})

    # -- one output item ------------------------------------------------------------------------------------------

    def _begin_message(self, phase: Phase) -> _Output:
        item: Item = {
            "id": self._live.ids.item(),
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
        }
        if self._shape.phased:
            item["phase"] = phase
        item["content"] = []
        output = self._begin(item)
        part = {"type": "audio", "transcript": ""} if self.written.spoken else {"type": "text", "text": ""}
        self._live.emit({"type": "response.content_part.added", **self._place(output), "part": part})
        kind = (
            "response.output_audio_transcript.delta" if self.written.spoken else "response.output_text.delta"
        )
        output.frame = self._delta_frame(kind, output, '"content_index":0,"delta":')
        self.written.messages += 1
        return output

    def _begin(self, item: Item) -> _Output:
        output = _Output(self._count, item)
        self._count += 1
        self._open.append(output)
        self._live.emit(
            {
                "type": "response.output_item.added",
                "response_id": self.id,
                "output_index": output.index,
                "item": dict(item),
            }
        )
        if self._conversation is not None:
            self._live.add(item)
        return output

    def _delta_frame(self, kind: str, output: _Output, members: str) -> tuple[str, str]:
        """Encode the constant parts of an item's deltas: before the event ID, and after it."""
        return (
            f'{{"type":"{kind}","event_id":"',
            (
                f'","response_id":"{self.id}","item_id":{json.dumps(output.item["id"])},'
                f'"output_index":{output.index},{members}'
            ),
        )

    def _delta(self, output: _Output, text: str) -> None:
        output.pieces.append(text)
        before, between = output.frame
        padding = self._live.ids.draw(-len(text) % _PADDED or _PADDED)
        self._live.send(
            f'{before}{self._live.ids.event()}{between}{json.dumps(text, ensure_ascii=False)},"obfuscation":"{padding}"}}'
        )

    def hush(self) -> None:
        """Stop speaking: the client has cleared the output buffer."""
        self.speaking = False

    def _sound(self, output: _Output) -> None:
        if self._shape.carries_audio:
            delta = tone(self._shape.audio["output"]["format"]["type"])
            self._live.emit({"type": "response.output_audio.delta", **self._place(output), "delta": delta})
        elif len(output.pieces) == _HEARD_AFTER:
            self._speak()

    def _speak(self) -> None:
        if not self._started and not self._shape.carries_audio:
            self._started = self.speaking = True
            self._live.emit({"type": "output_audio_buffer.started", "response_id": self.id})

    def _end_all(self, status: str) -> None:
        open_outputs, self._open = self._open, []
        for output in open_outputs:
            self._end(output, status)

    def _end(self, output: _Output, status: str) -> None:
        text = "".join(output.pieces)
        item = output.item
        if item["type"] == "message":
            self._end_content(output, text)
        elif item["type"] == "function_call":
            item["arguments"] = text
            self._live.emit(
                {
                    "type": "response.function_call_arguments.done",
                    "response_id": self.id,
                    "item_id": item["id"],
                    "output_index": output.index,
                    "call_id": item["call_id"],
                    "name": item["name"],
                    "arguments": text,
                }
            )
        if "status" in item:
            item["status"] = status
        self.output.append(item)
        if self._conversation is not None and self._conversation.find(item["id"]) is not None:
            before = self._conversation.before(item["id"])
            if self._shape.item_done_quirk and self._conversation.is_first(before):
                # Recorded: null where the item before is the conversation's first.
                before = None
            self._live.finish(item, before)
        self._live.emit(
            {
                "type": "response.output_item.done",
                "response_id": self.id,
                "output_index": output.index,
                "item": item,
            }
        )

    def _end_content(self, output: _Output, text: str) -> None:
        place = self._place(output)
        if self.written.spoken:
            self._speak()
            if self._conversation is not None:
                self._conversation.sounds[output.item["id"]] = len(output.pieces) * TOKEN_MS
            self._live.emit({"type": "response.output_audio.done", **place})
            self._live.emit({"type": "response.output_audio_transcript.done", **place, "transcript": text})
            part = {"type": "audio", "transcript": text}
            output.item["content"] = [{"type": "output_audio", "transcript": text}]
        else:
            self._live.emit({"type": "response.output_text.done", **place, "text": text})
            part = {"type": "text", "text": text}
            output.item["content"] = [{"type": "output_text", "text": text}]
        self._live.emit({"type": "response.content_part.done", **place, "part": part})

    def _place(self, output: _Output) -> Json:
        return {
            "response_id": self.id,
            "item_id": output.item["id"],
            "output_index": output.index,
            "content_index": 0,
        }


def new_mcp_call(ids: IdSource, name: str, server_label: str, arguments: str, request_id: str | None) -> Item:
    """Make the item of an MCP call that has not run; `request_id` names its approval."""
    return {
        "id": ids.item(),
        "type": "mcp_call",
        "server_label": server_label,
        "name": name,
        "arguments": arguments,
        "approval_request_id": request_id,
        "output": None,
        "error": None,
    }


def emit_mcp_call(emit: Emit, item: Item, index: int, answer: tuple[str | None, Json | None]) -> None:
    """Send the events of a running and ended MCP call, and put its result in the item."""
    place = {"output_index": index, "item_id": item["id"]}
    emit({"type": "response.mcp_call.in_progress", **place})
    item["output"], item["error"] = answer
    ended = "failed" if item["error"] is not None else "completed"
    emit({"type": f"response.mcp_call.{ended}", **place})
