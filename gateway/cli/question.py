"""The client events that ask a question, as the commands that hold conversations send them."""

from typing import Any


def question(text: str) -> list[dict[str, Any]]:  # OpenAI's events, with members of any type
    """Return the events that add a text of the user to the conversation and request an answer."""
    content = [{"type": "input_text", "text": text}]
    return [
        {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}},
        {"type": "response.create"},
    ]


def writing_task(words: int) -> list[dict[str, Any]]:
    """Return the events that request an answer of a certain length."""
    return question(f"Write {words} words about the sea.")
