"""The session object: its defaults, and what an update does to it."""

from typing import Any, cast

DEFAULT_MODEL = "gpt-realtime-2.1"
# What the service puts where no instructions were given; said in our words.
DEFAULT_INSTRUCTIONS = (
    "You are a helpful, friendly assistant on the other end of a line. Keep answers short unless asked for more. "
    "Call a function whenever one fits. Do not talk about these rules."
)
Json = dict[str, Any]


def new_session(session_id: str, expires_at: int, given: Json) -> Json:
    """Make the session object of a new call."""
    model = str(given.get("model", DEFAULT_MODEL))
    newer = model.startswith("gpt-realtime-2")
    session: Json = {
        "type": "realtime",
        "object": "realtime.session",
        "id": session_id,
        "model": model,
        "output_modalities": ["audio"],
        "instructions": DEFAULT_INSTRUCTIONS,
        "tools": [],
        "tool_choice": "auto",
        "max_output_tokens": "inf",
        "tracing": None,
        "truncation": "auto",
        "prompt": None,
        "expires_at": expires_at,
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": None,
                "noise_reduction": None,
                "turn_detection": _turn_detection({"type": "server_vad"}, newer),
            },
            "output": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "voice": "marin" if newer else "alloy",
                "speed": 1.0,
            },
        },
        "include": None,
    }
    update(session, given)
    return session


def update(session: Json, given: Json) -> None:
    """Apply the present keys of `given`; it must have been checked."""
    newer = str(session["model"]).startswith("gpt-realtime-2")
    for key, value in given.items():
        if key == "audio":
            _update_audio(session["audio"], cast(Json, value or {}), newer)
        elif key == "instructions":
            # Recorded: an empty string gives the default instructions back.
            session[key] = value or DEFAULT_INSTRUCTIONS
        elif key == "tools":
            session[key] = [_tool(tool) for tool in value or []]
        elif key == "model":
            continue
        else:
            session[key] = value


def _update_audio(audio: Json, given: Json, newer: bool) -> None:
    for side in ("input", "output"):
        for key, value in (given.get(side) or {}).items():
            if key == "turn_detection" and value is not None:
                value = _turn_detection(value, newer)
            elif key == "transcription" and value is not None:
                value = {"model": None, "language": None, "prompt": None} | value
            audio[side][key] = value


def _turn_detection(given: Json, newer: bool) -> Json:
    if given.get("type") == "semantic_vad":
        defaults: Json = {
            "type": "semantic_vad",
            "eagerness": "auto",
            "create_response": True,
            "interrupt_response": True,
        }
    else:
        defaults = {
            "type": "server_vad",
            "threshold": 0.5,
            "prefix_padding_ms": 300,
            "silence_duration_ms": 500 if newer else 200,
            "idle_timeout_ms": None,
            "create_response": True,
            "interrupt_response": True,
        }
    return defaults | given


def _tool(given: Json) -> Json:
    # Echoed in this order whatever the order they came in.
    first = {key: given[key] for key in ("type", "name", "description", "parameters") if key in given}
    return first | given
