"""The interface of a brain, which answers a prompt token by token. No I/O.

`rules` implements the offline brain, `chat` one that asks a chat completions server.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.emulator.protocol.items import Item


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of a response: the items in order, the newest last, and the settings of the session or the request."""

    instructions: str
    items: Sequence[Item]
    tools: Sequence[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    model: str


@dataclass(frozen=True, slots=True)
class Comment:
    """A token of a message before a function call. The newer models mark such messages `commentary`."""

    token: str


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A function that the brain wants called; `arguments` is JSON text."""

    name: str
    arguments: str


Piece = str | Comment | FunctionCall


class BrainError(Exception):
    """The brain could not answer; the response ends as failed with `code` and this message."""

    def __init__(self, code: str | None, message: str) -> None:
        super().__init__(message)
        self.code = code


class Brain(Protocol):
    """Anything that answers."""

    def answer(self, prompt: Prompt) -> AsyncIterator[Piece]:
        """Return the answer's tokens in order (a bare string is one), function calls among them; raises BrainError."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
