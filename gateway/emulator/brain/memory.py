"""Finds facts that users stated about themselves earlier in the conversation. No I/O.

It stores nothing: each question searches the conversation it is given. So facts from before a lost call are known afterwards
if, and only if, the conversation was carried over.
"""

import re
from collections.abc import Iterable

_STOP = r"(?=[.,;!?\n]|\s+(?:and|but|so)\s+(?:my|the|i|call|please|remember)\b|$)"
_TOLD = [
    # The introduction matches in any case. A further word of the name must be capitalised.
    (re.compile(r"\b(?i:my name is|call me|i am called|i'm called)\s+([\w'’-]+(?:\s+[A-Z][\w'’-]+)*)"), "name"),
    (re.compile(r"\bi(?: am|'m|’m)\s+(\d{1,3}\s+years old)", re.I), "age"),
    (re.compile(rf"\bi (?:live|stay) in\s+(.+?){_STOP}", re.I), "home"),
    (re.compile(rf"\bi(?: am|'m|’m) from\s+(.+?){_STOP}", re.I), "origin"),
]  # fmt: skip
_OWN = re.compile(rf"\b(my|our)\s+((?:[\w'’-]+\s+){{0,3}}?[\w'’-]+)\s+(?:is|are|=)\s+(.+?){_STOP}", re.I)
_OF = re.compile(
    rf"\b(?:the|a)\s+((?:[\w'’-]+\s+){{0,3}}?[\w'’-]+)\s+(?:is|are|was|=)\s+(?:called\s+)?(.+?){_STOP}", re.I
)
_REMEMBER = re.compile(
    r"\b(?:remember|note|keep in mind|don't forget)\b(?:\s+this)?(?:\s+that|\s*:)?\s*(.+)", re.I
)
_ASKED = re.compile(
    r"\b(?:what(?:'s|’s| is| was| are| were)|tell me|do you (?:know|remember)|repeat|recall)\s+(?:again\s+)?"
    r"(?:what\s+)?((?:my|the|our)\s+.+?)(?:\s+(?:is|was|are|again|please))*\s*[?.!]*$",
    re.I,
)
_QUESTIONS = [
    (re.compile(r"\bwho am i\b|\bhow (?:am|was) i called\b", re.I), "name"),
    (re.compile(r"\bhow old am i\b", re.I), "age"),
    (re.compile(r"\bwhere do i live\b", re.I), "home"),
    (re.compile(r"\bwhere am i from\b", re.I), "origin"),
]
_SAID = {
    "age": ("You are {}", "You have not told me how old you are"),
    "home": ("You live in {}", "You have not told me where you live"),
    "origin": ("You are from {}", "You have not told me where you are from"),
}
_MAX_FACTS = 500
Facts = dict[str, tuple[str, str]]


def facts_in(texts: Iterable[str]) -> Facts:
    """Collect the stated facts: key to (whose, value). A later statement replaces an earlier one."""
    facts: Facts = {}
    for text in texts:
        # "What is my name?" states no fact.
        for sentence in re.split(r"(?<=[.!?\n])\s+", text):
            if sentence.rstrip().endswith("?") or len(sentence) > 2000:
                continue
            _read(sentence, facts)
            if len(facts) > _MAX_FACTS:
                return facts
    return facts


def remembered(texts: Iterable[str]) -> list[str]:
    """List what users asked to have remembered, in their words."""
    found = (_REMEMBER.search(text) for text in texts if not text.rstrip().endswith("?"))
    return [match[1].strip() for match in found if match]


def answer(question: str, facts: Facts) -> tuple[str, str] | None:
    """Answer a question about a stated fact, as (sentence, bare value); None if the question is about something else."""
    for pattern, key in _QUESTIONS:
        if pattern.search(question):
            return _one(key, "my", facts)
    match = _ASKED.search(question.strip())
    if match is None:
        return None
    wanted = _wanted(match[1])
    if not any(key in facts or whose != "the" for whose, key in wanted):
        return None
    if len(wanted) == 1:
        return _one(wanted[0][1], wanted[0][0], facts)
    found = [_clause(whose, key, facts) for whose, key in wanted]
    sentence = ", and ".join([", ".join(found[:-1]), found[-1]])
    values = ", ".join(facts[key][1] for _, key in wanted if key in facts)
    return sentence[0].upper() + sentence[1:] + "!", values


def _read(sentence: str, facts: Facts) -> None:
    for pattern, key in _TOLD:
        if match := pattern.search(sentence):
            facts[key] = ("my", match[1].strip())
    for match in _OWN.finditer(sentence):
        facts[_key(match[2])] = ("my", match[3].strip())
    for match in _OF.finditer(sentence):
        key = _key(match[1])
        if key not in facts or facts[key][0] == "the":
            facts[key] = ("the", match[2].strip())


def _key(noun: str) -> str:
    return noun.lower().replace("favourite", "favorite").replace("colour", "color")


def _wanted(nouns: str) -> list[tuple[str, str]]:
    whose, wanted = "my", []
    for part in re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", nouns):
        words = part.split()
        if words and words[0].lower() in ("my", "the", "our"):
            whose = "the" if words[0].lower() == "the" else "my"
            words = words[1:]
        if words:
            wanted.append((whose, _key(" ".join(words))))
    return wanted


def _clause(whose: str, key: str, facts: Facts) -> str:
    owner = "your" if whose == "my" else "the"
    return f"{owner} {key} is {facts[key][1]}" if key in facts else f"I do not know {owner} {key}"


def _one(key: str, whose: str, facts: Facts) -> tuple[str, str] | None:
    if key in facts:
        value = facts[key][1]
        said = _SAID[key][0].format(value) if key in _SAID else _clause(whose, key, facts)
        return said[0].upper() + said[1:] + ".", value
    if key in _SAID:
        return _SAID[key][1] + ".", "unknown"
    return (f"You have not told me your {key}.", "unknown") if whose == "my" else None
