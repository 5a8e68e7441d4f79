"""Every client event and session member of the Realtime API, as shapes. No I/O.

It does not act on them. Each entry is from the API's reference (Realtime: client events, session object). A member that is
not listed here is refused as unknown, as on the service.
"""

from gateway.emulator.protocol.shapes import (
    Anything,
    Either,
    Flag,
    Nullable,
    Number,
    Record,
    Series,
    Shape,
    Table,
    Tagged,
    Text,
    Word,
)

_ANY_TEXT = Text()
_NULLABLE_TEXT = Nullable(Text())
# Realtime: conversation.item.create. IDs chosen by clients are short strings.
_ID = Text(longest=32)
# Reported: a `call_id` with a slash is refused, naming this pattern (livekit/agents#5652).
_CALL_ID = Text(longest=32, pattern="[a-zA-Z0-9_-]+")


def _format(*required: str) -> Tagged:
    rate = Number(24_000, 24_000, whole=True)
    pcm = Record({"type": _ANY_TEXT, "rate": rate}, required)
    bare = Record({"type": _ANY_TEXT})
    return Tagged({"audio/pcm": pcm, "audio/pcmu": bare, "audio/pcma": bare})


_INPUT_FORMAT = _format()
# Reported: without a rate the service refuses `audio/pcm` as the output's format, though its schema has it optional.
_OUTPUT_FORMAT = _format("rate")
_INF = Either(Word(("inf",)), Number(1, 4096, whole=True))
_MODALITIES = Series(Word(("text", "audio")), most=1, least=1)
# Realtime: metadata, 16 pairs, keys of 64, values of 512 characters.
_METADATA = Nullable(Table(Text(longest=512), most=16, longest_key=64))
_PROMPT = Nullable(
    Record(
        {"id": _ANY_TEXT, "version": _NULLABLE_TEXT, "variables": Nullable(Table(Anything(), 256, 256))},
        ("id",),
    )
)
_REASONING = Nullable(Record({"effort": Nullable(Word(("minimal", "low", "medium", "high", "xhigh")))}))
_TRACING = Nullable(
    Either(
        Word(("auto",)),
        Record({"workflow_name": _ANY_TEXT, "group_id": _ANY_TEXT, "metadata": Anything()}),
    )
)
_TRUNCATION = Either(
    Word(("auto", "disabled")),
    Record(
        {
            "type": Word(("retention_ratio",)),
            "retention_ratio": Number(0, 1),
            "token_limits": Nullable(Record({"post_instructions": Number(0, 1_000_000, whole=True)})),
        },
        ("type", "retention_ratio"),
    ),
)
_FUNCTION = Record(
    {
        "type": _ANY_TEXT,
        "name": Text(longest=128),
        "description": _NULLABLE_TEXT,
        "parameters": Nullable(Table(Anything(), 1000, 1000)),
    },
    ("name",),
)
_WORDS = Series(_ANY_TEXT)
_TOOL_FILTER = Record({"read_only": Flag(), "tool_names": _WORDS})
_APPROVAL = Either(
    Word(("always", "never")), Record({"always": Nullable(_TOOL_FILTER), "never": Nullable(_TOOL_FILTER)})
)
_MCP = Record(
    {
        "type": _ANY_TEXT,
        "server_label": _ANY_TEXT,
        "server_url": _NULLABLE_TEXT,
        "connector_id": _NULLABLE_TEXT,
        "tunnel_id": _NULLABLE_TEXT,
        "authorization": _NULLABLE_TEXT,
        "headers": Nullable(Table(_ANY_TEXT, 1000, 1000)),
        "allowed_callers": Nullable(Series(Word(("direct", "programmatic")))),
        "allowed_tools": Nullable(Either(_WORDS, _TOOL_FILTER)),
        "require_approval": Nullable(_APPROVAL),
        "server_description": _NULLABLE_TEXT,
        "defer_loading": Nullable(Flag()),
    },
    ("server_label",),
)
_TOOLS = Series(Tagged({"function": _FUNCTION, "mcp": _MCP}), most=512)
_TOOL_CHOICE = Either(
    Word(("none", "auto", "required")),
    Tagged(
        {
            "function": Record({"type": _ANY_TEXT, "name": _ANY_TEXT}, ("name",)),
            "mcp": Record(
                {"type": _ANY_TEXT, "server_label": _ANY_TEXT, "name": _NULLABLE_TEXT}, ("server_label",)
            ),
        }
    ),
)
_VOICE = Either(Text(), Record({"id": _ANY_TEXT}, ("id",)))
_EAGERNESS = Word(("low", "medium", "high", "auto"))
_TURN_DETECTION = Tagged(
    {
        "server_vad": Record(
            {
                "type": _ANY_TEXT,
                "threshold": Nullable(Number(0, 1)),
                "prefix_padding_ms": Nullable(Number(0, 10_000, whole=True)),
                "silence_duration_ms": Nullable(Number(0, 10_000, whole=True)),
                "idle_timeout_ms": Nullable(Number(5000, 30_000, whole=True)),
                "create_response": Flag(),
                "interrupt_response": Flag(),
            }
        ),
        "semantic_vad": Record(
            {
                "type": _ANY_TEXT,
                "eagerness": _EAGERNESS,
                "create_response": Flag(),
                "interrupt_response": Flag(),
            }
        ),
    }
)
_TRANSCRIPTION = Record(
    {
        "model": _ANY_TEXT,
        "language": _NULLABLE_TEXT,
        "languages": Nullable(_WORDS),
        "prompt": _NULLABLE_TEXT,
        "keywords": Nullable(_WORDS),
        "delay": Nullable(Word(("minimal", "low", "medium", "high", "xhigh"))),
    }
)
_NOISE_REDUCTION = Record(
    {"type": Word(("near_field", "far_field")), "strength": Nullable(Number(0, 1))},
)
_INPUT = Record(
    {
        "format": _INPUT_FORMAT,
        "transcription": Nullable(_TRANSCRIPTION),
        "noise_reduction": Nullable(_NOISE_REDUCTION),
        "turn_detection": Nullable(_TURN_DETECTION),
    }
)
_AUDIO = Record(
    {
        "input": Nullable(_INPUT),
        "output": Nullable(Record({"format": _OUTPUT_FORMAT, "voice": _VOICE, "speed": Number(0.25, 1.5)})),
    }
)
_INCLUDE = Nullable(Series(Word(("item.input_audio_transcription.logprobs",))))
# GA: `type` is required. The beta's members `modalities`, `voice`, `temperature` and others are unknown now.
REALTIME_SESSION = Record(
    {
        "type": Word(("realtime",)),
        "model": _ANY_TEXT,
        "output_modalities": _MODALITIES,
        "instructions": _ANY_TEXT,
        "tools": _TOOLS,
        "tool_choice": _TOOL_CHOICE,
        "parallel_tool_calls": Nullable(Flag()),
        "max_output_tokens": _INF,
        "tracing": _TRACING,
        "truncation": _TRUNCATION,
        "prompt": _PROMPT,
        "reasoning": _REASONING,
        "audio": Nullable(_AUDIO),
        "include": _INCLUDE,
    },
    ("type",),
)
_TRANSCRIPTION_SESSION = Record(
    {"type": _ANY_TEXT, "audio": Nullable(Record({"input": Nullable(_INPUT)})), "include": _INCLUDE}
)
SESSION = Tagged({"realtime": REALTIME_SESSION, "transcription": _TRANSCRIPTION_SESSION})

_STATUS = Nullable(Word(("completed", "incomplete", "in_progress")))
_OBJECT = Nullable(Word(("realtime.item",)))
_PARTS: dict[str, dict[str, Shape]] = {
    "input_text": {"text": _ANY_TEXT},
    "input_audio": {"audio": _NULLABLE_TEXT, "transcript": _NULLABLE_TEXT},
    "input_image": {"image_url": _ANY_TEXT, "detail": Nullable(Word(("auto", "low", "high")))},
    "output_text": {"text": _ANY_TEXT},
    "output_audio": {"audio": _NULLABLE_TEXT, "transcript": _NULLABLE_TEXT},
}
_NEEDED = {"input_text": ("text",), "output_text": ("text",), "input_image": ("image_url",)}
_PART_KINDS = {
    "user": ("input_text", "input_audio", "input_image"),
    "system": ("input_text",),
    "assistant": ("output_text", "output_audio"),
}


def _message(role: str) -> Record:
    parts = {
        kind: Record({"type": _ANY_TEXT, **_PARTS[kind]}, _NEEDED.get(kind, ())) for kind in _PART_KINDS[role]
    }
    return Record(
        {
            "id": _ID,
            "type": _ANY_TEXT,
            "object": _OBJECT,
            "status": _STATUS,
            "role": _ANY_TEXT,
            "content": Series(Tagged(parts)),
            "phase": Nullable(Word(("commentary", "final_answer"))),
        },
        ("content",),
    )


_CODED = Record(
    {"type": _ANY_TEXT, "code": Number(-(2**31), 2**31, whole=True), "message": _ANY_TEXT},
    ("code", "message"),
)
_MCP_ERROR = Tagged(
    {
        "protocol_error": _CODED,
        "http_error": _CODED,
        "tool_execution_error": Record({"type": _ANY_TEXT, "message": _ANY_TEXT}, ("message",)),
    }
)
_ITEMS: dict[str, Shape] = {
    "message": Tagged({role: _message(role) for role in _PART_KINDS}, tag="role"),
    "function_call": Record(
        {
            "id": _ID,
            "type": _ANY_TEXT,
            "object": _OBJECT,
            "status": _STATUS,
            "name": _ANY_TEXT,
            "call_id": _CALL_ID,
            "arguments": _ANY_TEXT,
        },
        ("name", "arguments"),
    ),
    "function_call_output": Record(
        {
            "id": _ID,
            "type": _ANY_TEXT,
            "object": _OBJECT,
            "status": _STATUS,
            "call_id": _CALL_ID,
            "output": _ANY_TEXT,
        },
        ("call_id", "output"),
    ),
    # A history that is re-created in a new call includes the results of a server's own tools.
    "mcp_list_tools": Record(
        {
            "id": _ID,
            "type": _ANY_TEXT,
            "server_label": _ANY_TEXT,
            "tools": Series(
                Record(
                    {
                        "name": _ANY_TEXT,
                        "description": _NULLABLE_TEXT,
                        "input_schema": Anything(),
                        "annotations": Anything(),
                    },
                    ("name", "input_schema"),
                )
            ),
        },
        ("server_label", "tools"),
    ),
    "mcp_call": Record(
        {
            "id": _ID,
            "type": _ANY_TEXT,
            "server_label": _ANY_TEXT,
            "name": _ANY_TEXT,
            "arguments": _ANY_TEXT,
            "approval_request_id": _NULLABLE_TEXT,
            "output": _NULLABLE_TEXT,
            "error": Nullable(_MCP_ERROR),
        },
        ("server_label", "name", "arguments"),
    ),
    "mcp_approval_request": Record(
        {
            "id": _ID,
            "type": _ANY_TEXT,
            "server_label": _ANY_TEXT,
            "name": _ANY_TEXT,
            "arguments": _ANY_TEXT,
        },
        ("server_label", "name", "arguments"),
    ),
    "mcp_approval_response": Record(
        {
            "id": _ID,
            "type": _ANY_TEXT,
            "approval_request_id": _ANY_TEXT,
            "approve": Flag(),
            "reason": _NULLABLE_TEXT,
        },
        ("approval_request_id", "approve"),
    ),
}
_ITEM = Tagged(_ITEMS)
_INPUT_ITEM = Tagged(
    {**_ITEMS, "item_reference": Record({"type": _ANY_TEXT, "id": _ANY_TEXT}, ("id",))},
)
_RESPONSE = Record(
    {
        "conversation": Nullable(Word(("auto", "none"))),
        "input": Nullable(Series(_INPUT_ITEM)),
        "instructions": _NULLABLE_TEXT,
        "output_modalities": Nullable(_MODALITIES),
        "max_output_tokens": Nullable(_INF),
        "metadata": _METADATA,
        "tools": Nullable(_TOOLS),
        "tool_choice": Nullable(_TOOL_CHOICE),
        "parallel_tool_calls": Nullable(Flag()),
        "reasoning": _REASONING,
        "prompt": _PROMPT,
        "audio": Nullable(Record({"output": Nullable(Record({"format": _OUTPUT_FORMAT, "voice": _VOICE}))})),
    }
)


def _event(members: dict[str, Shape] | None = None, required: tuple[str, ...] = ()) -> Record:
    return Record({"type": _ANY_TEXT, "event_id": Nullable(Text(longest=512)), **(members or {})}, required)


EVENTS: dict[str, Record] = {
    "session.update": _event({"session": SESSION}, ("session",)),
    "conversation.item.create": _event({"item": _ITEM, "previous_item_id": _NULLABLE_TEXT}, ("item",)),
    "conversation.item.retrieve": _event({"item_id": _ANY_TEXT}, ("item_id",)),
    "conversation.item.truncate": _event(
        {
            "item_id": _ANY_TEXT,
            "content_index": Number(0, 1_000_000, whole=True),
            "audio_end_ms": Number(0, 2**31, whole=True),
        },
        ("item_id", "content_index", "audio_end_ms"),
    ),
    "conversation.item.delete": _event({"item_id": _ANY_TEXT}, ("item_id",)),
    "response.create": _event({"response": Nullable(_RESPONSE)}),
    "response.cancel": _event({"response_id": _NULLABLE_TEXT}),
    # Realtime: input_audio_buffer.append takes up to 15 MB an event.
    "input_audio_buffer.append": _event({"audio": Text(longest=15 * 1024 * 1024)}, ("audio",)),
    "input_audio_buffer.commit": _event(),
    "input_audio_buffer.clear": _event(),
    "output_audio_buffer.clear": _event(),
}
