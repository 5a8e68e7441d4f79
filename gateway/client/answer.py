"""The answer to a turn as values: text, function calls, usage. No I/O."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

Json = dict[str, Any]  # JSON as the parser returns it; the service defines its content


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A function call that the model requests. `arguments` is JSON text."""

    name: str
    call_id: str
    arguments: str

    def values(self) -> Json:
        """Return the arguments as a dict. Raises ValueError if they are not a JSON object."""
        values = json.loads(self.arguments)
        if not isinstance(values, dict):
            raise ValueError(f"the arguments of {self.name} are not a JSON object")  # noqa: TRY004  # one error for both
        return values

    def output(self, output: str) -> Json:
        """Return the item that answers this call, for the next turn's input."""
        return {"type": "function_call_output", "call_id": self.call_id, "output": output}


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of a response. `cached` is a part of `input`, `audio` a part of both."""

    input: int = 0
    output: int = 0
    cached: int = 0
    audio: int = 0

    @classmethod
    def of(cls, usage: Mapping[str, Any] | None) -> Self:
        """Parse OpenAI's usage object."""
        usage = usage or {}
        before, after = usage.get("input_token_details") or {}, usage.get("output_token_details") or {}
        return cls(
            input=usage.get("input_tokens") or 0,
            output=usage.get("output_tokens") or 0,
            cached=before.get("cached_tokens") or 0,
            audio=(before.get("audio_tokens") or 0) + (after.get("audio_tokens") or 0),
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `status` is `completed`, `incomplete`, `cancelled` or `failed`; `error` says why it failed."""

    id: str
    status: str
    text: str
    output: list[Json]
    usage: Usage
    error: Json | None
    raw: Json = field(repr=False)
    """The gateway's JSON, or OpenAI's response object if the turn was streamed."""

    @property
    def calls(self) -> list[FunctionCall]:
        """The function calls that the model requests, in order."""
        return [
            FunctionCall(str(item["name"]), str(item["call_id"]), str(item.get("arguments", "")))
            for item in self.output
            if item.get("type") == "function_call"
        ]

    @classmethod
    def of(cls, response: Mapping[str, Any]) -> Self:
        """Parse the JSON of a turn, or OpenAI's response object."""
        output = list(response.get("output") or [])
        text = response.get("output_text")
        error = response.get("error") or (response.get("status_details") or {}).get("error")
        return cls(
            id=str(response.get("id", "")),
            status=str(response.get("status", "")),
            text=_text(output) if text is None else str(text),
            output=output,
            usage=Usage.of(response.get("usage")),
            error=error,
            raw=dict(response),
        )


def _text(output: list[Json]) -> str:
    parts = [part for item in output if item.get("type") == "message" for part in item.get("content") or []]
    return "".join(str(part.get("text") or part.get("transcript") or "") for part in parts)
