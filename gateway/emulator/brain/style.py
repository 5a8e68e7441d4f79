"""Follows the few instructions that the offline brain understands. No I/O."""

import re
from dataclasses import dataclass

from gateway.emulator.brain.arithmetic import number_word


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; `short` is the fact alone, for instructions that ask for few words."""

    text: str
    short: str | None = None


def opening(instructions: str) -> Reply:
    """Greet, by the name that the instructions give."""
    name = re.search(r"\byour name is (\w+)", instructions, re.I)
    return Reply(
        f"Hello! I am {name[1]}. How can I help you?" if name else "Hello! How can I help you?", "Hello there"
    )


def styled(answer: Reply, instructions: str) -> str:
    """Return an answer in the form the instructions ask for: fixed words, a number of words, upper case, an ending."""
    text = answer.text
    if match := re.search(
        r"(?:^|[.!]\s|\balways )(?:answer|reply|respond)(?: only)? with [\"“](.+?)[\"”]", instructions, re.I
    ):
        return match[1]
    if match := re.search(
        r"\b(?:answer|reply|respond|speak)\w* (?:only )?(?:in|with) (?:exactly |at most )?([\w-]+) words?\b",
        instructions,
        re.I,
    ):
        limit = number_word(match[1])
        if limit:
            text = _in_words(answer, limit)
    elif re.search(r"\bin (?:one|a single) (?:short )?sentence\b", instructions, re.I):
        text = re.split(r"(?<=[.!?])\s", text)[0]
    if re.search(r"\b(?:upper ?case|capital letters|all caps)\b", instructions, re.I):
        text = text.upper()
    elif re.search(r"\blower ?case\b", instructions, re.I):
        text = text.lower()
    if match := re.search(r"\b(?:end|finish)\b[^.]*?\bwith [\"“](.+?)[\"”]", instructions, re.I):
        text = f"{text} {match[1]}"
    return text


def _in_words(answer: Reply, limit: int) -> str:
    if len(answer.text.split()) <= limit:
        return answer.text
    source = answer.short if answer.short and len(answer.short.split()) <= limit else answer.text
    words = " ".join(source.split()[:limit]).rstrip(".,;:!?")
    return words + ("!" if answer.text.startswith("Hello") else ".")
