"""The Realtime protocol of one session: client events in, server events out.

It does not know WebRTC, HTTP or how answers are made. It gets a `Line` to send on and a brain, and `writing` creates the
responses. Everything here runs within `receive`.
"""

from collections.abc import Callable
from typing import Any

from gateway.emulator.faults import Faults
from gateway.emulator.protocol import events
from gateway.emulator.protocol import session as session_object
from gateway.emulator.protocol.brain import Brain
from gateway.emulator.protocol.catalog import EVENTS
from gateway.emulator.protocol.errors import Refusal
from gateway.emulator.protocol.ids import IdSource
from gateway.emulator.protocol.items import Conversation, Item, new_item
from gateway.emulator.protocol.listening import Listener, Turns
from gateway.emulator.protocol.live import LiveSession
from gateway.emulator.protocol.remote import RemoteTools
from gateway.emulator.protocol.writing import Line, Manner, Writer

# A conversation longer than this is refused: items are kept in memory, and each response reads them all.
MAX_ITEMS = 10_000
# An item's audio is PCM16 at 24 kHz.
_BYTES_A_SECOND = 48_000

Json = dict[str, Any]


class Realtime:
    """One session of the service."""

    def __init__(
        self, session: Json, ids: IdSource, line: Line, brain: Brain, manner: Manner, faults: Faults
    ) -> None:
        self._live = LiveSession(session, ids, faults, line.send)
        self._hear = manner.hear
        # With a WebSocket the service has no output buffer, and its reference does not list the event there.
        self._unknown = ("output_audio_buffer.clear",) if manner.carries_audio else ()
        self._remote = RemoteTools(self._live, manner.mcp_servers)
        turns = Turns(
            lambda: self._writer.begin({}),
            lambda: self._writer.interrupt(),  # noqa: PLW0108 - made below
            lambda: self._writer.busy,
        )
        self._listener = Listener(self._live, manner.hear, turns)
        self._writer = Writer(self._live, line, brain, manner, self._remote, self._listener.rest)
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

    @property
    def session(self) -> Json:
        """The session object."""
        return self._live.object

    @property
    def conversation(self) -> Conversation:
        return self._live.conversation

    @property
    def faults(self) -> Faults:
        return self._live.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._live.faults = faults

    def opened(self) -> None:
        """Send `session.created`, as the service does when the channel opens."""
        self._live.emit({"type": "session.created", "session": self.session})
        self._remote.load(self.session.get("tools", ()))

    def receive(self, frame: str | bytes) -> None:
        """Process one client event; an invalid one is answered with an `error` event."""
        client_id: str | None = None
        try:
            event = events.parse(frame)
            client_id = events.event_id(event)
            self._handlers[events.check(event, self._unknown)](event)
        except Refusal as refusal:
            self.refuse(refusal, client_id)

    def refuse(self, refusal: Refusal, client_id: str | None = None) -> None:
        """Send an `error` event; the session continues."""
        self._live.emit(refusal.event(client_id))

    async def close(self) -> None:
        """Stop every response without sending anything."""
        self._live.closed = True
        self._listener.wake()
        await self._writer.close()

    # -- session and items ----------------------------------------------------------------------------------------

    def _session_update(self, event: Json) -> None:
        session_object.check_update(self.session, event["session"], spoken=self._writer.spoken)
        session_object.update(self.session, event["session"])
        self._live.emit({"type": "session.updated", "session": self.session})
        self._remote.load(self.session.get("tools", ()))

    def _item_create(self, event: Json) -> None:
        if len(self.conversation) >= MAX_ITEMS:
            raise Refusal("conversation_too_long", f"A conversation holds at most {MAX_ITEMS} items.")
        item = new_item(event["item"], self._live.ids)
        if item["type"] == "function_call_output" and not self.conversation.has_call(item["call_id"]):
            # Reported: code and message are the service's, `param` is null (livekit/agents#3344).
            raise Refusal(
                "invalid_tool_call_id", f"Tool call ID '{item['call_id']}' not found in conversation."
            )
        if item["type"] == "mcp_approval_response":
            self._remote.check_approval(item)
        before = self._live.add(item, event.get("previous_item_id"))
        self._listen_to(item)
        self._live.finish(item, before)
        if item["type"] == "mcp_approval_response":
            self._remote.approved(item)

    def _listen_to(self, item: Item) -> None:
        """Transcribe the audio of an item that has no transcript."""
        for part in item.get("content") or ():
            if part["type"] == "input_audio" and part.get("audio") and not part.get("transcript"):
                seconds = len(part["audio"]) * 3 / 4 / _BYTES_A_SECOND
                self.conversation.heard[item["id"]] = self._hear(seconds)
                self.conversation.sounds[item["id"]] = round(seconds * 1000)

    def _item_retrieve(self, event: Json) -> None:
        self._live.emit(
            {"type": "conversation.item.retrieved", "item": self.conversation.get(event["item_id"])}
        )

    def _item_delete(self, event: Json) -> None:
        self.conversation.remove(event["item_id"])
        self._live.emit({"type": "conversation.item.deleted", "item_id": event["item_id"]})

    def _item_truncate(self, event: Json) -> None:
        item = self.conversation.get(event["item_id"])
        content = item.get("content") or []
        at = event["content_index"]
        spoken = (
            item.get("role") == "assistant" and at < len(content) and content[at]["type"] == "output_audio"
        )
        if not spoken:
            # Code and message as reported (livekit/agents#6157).
            raise Refusal(
                "unsupported_content_type",
                "Only model output audio messages can be truncated.",
                param="item_id" if item.get("role") != "assistant" else "content_index",
            )
        sounds, end = self.conversation.sounds, event["audio_end_ms"]
        if end > (length := sounds.get(event["item_id"], end)):
            raise Refusal(
                "invalid_value",
                f"Audio content of {length}ms is already shorter than {end}ms",
                param="audio_end_ms",
            )
        sounds[event["item_id"]] = end
        # The service drops the transcript too, so that no unheard text remains (conversation.item.truncate).
        content[at]["transcript"] = ""
        self._live.emit(
            {
                "type": "conversation.item.truncated",
                "item_id": event["item_id"],
                "content_index": at,
                "audio_end_ms": end,
            }
        )

    # -- audio buffers: events that need no transcription -------------------------------------------------------------

    def _audio_append(self, event: Json) -> None:
        self._listener.append(event["audio"])

    def _audio_clear(self, event: Json) -> None:
        self._listener.clear()

    def _audio_commit(self, event: Json) -> None:
        self._listener.commit()

    def _output_clear(self, event: Json) -> None:
        self._writer.hush()

    # -- responses ------------------------------------------------------------------------------------------------

    def _response_create(self, event: Json) -> None:
        if self.session["type"] == "transcription":
            raise Refusal("invalid_value", "A transcription session has no responses.", param="type")
        options = event.get("response") or {}
        self._listener.wake()
        self._remote.load(options.get("tools") or ())
        self._writer.begin(options)

    def _response_cancel(self, event: Json) -> None:
        self._writer.cancel(event.get("response_id"))
