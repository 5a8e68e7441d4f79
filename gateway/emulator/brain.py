"""What the far end says."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.emulator.items import Item, text_of
from gateway.emulator.tokens import tokenize


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a response is made from."""

    instructions: str
    items: Sequence[Item]
    tools: Sequence[dict[str, Any]]
    tool_choice: Any
    model: str


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A brain's wish to call a function; `arguments` is JSON text."""

    name: str
    arguments: str


class Brain(Protocol):
    """Anything that answers."""

    def answer(self, prompt: Prompt) -> AsyncIterator[str | FunctionCall]:
        """Give the answer's tokens in order, and function calls among them."""
        ...


class RuleBrain:
    """The brain that needs nothing."""

    async def answer(self, prompt: Prompt) -> AsyncIterator[str | FunctionCall]:
        asked = next((text_of(i) for i in reversed(prompt.items) if i.get("role") == "user"), "")
        words = asked.lower()
        if "two words" in prompt.instructions or "hello" in words:
            text = "Hello there!"
        else:
            text = f"You said: {asked}"
        for token in tokenize(text):
            yield token
