"""The offline brain: a list of rules, tried in order. No I/O.

The same conversation always gets the same answer. The rules cover what demos and tests need: greet, work out sums,
count, spell, repeat, remember facts, say the date from the instructions, write long texts, follow a few
instructions, call functions and use their results.
"""

import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.emulator.brain import memory, tools
from gateway.emulator.brain.arithmetic import number_word, solve
from gateway.emulator.brain.prose import write
from gateway.emulator.brain.style import Reply, opening, styled
from gateway.emulator.protocol.brain import Comment, Piece, Prompt
from gateway.emulator.protocol.items import Item, text_of
from gateway.emulator.protocol.session import is_reasoning
from gateway.emulator.protocol.tokens import tokenize

_COUNT_LIMIT = 10_000
_HEAD = 500
_RESULTS = ("function_call_output", "mcp_call")
_CAPITALS = {
    "argentina": "Buenos Aires", "australia": "Canberra", "austria": "Vienna", "belgium": "Brussels",
    "brazil": "Brasília", "canada": "Ottawa", "china": "Beijing", "denmark": "Copenhagen", "egypt": "Cairo",
    "finland": "Helsinki", "france": "Paris", "germany": "Berlin", "greece": "Athens", "india": "New Delhi",
    "ireland": "Dublin", "italy": "Rome", "japan": "Tokyo", "kenya": "Nairobi", "mexico": "Mexico City",
    "netherlands": "Amsterdam", "norway": "Oslo", "poland": "Warsaw", "portugal": "Lisbon", "spain": "Madrid",
    "sweden": "Stockholm", "switzerland": "Bern", "turkey": "Ankara", "ukraine": "Kyiv",
    "united kingdom": "London", "united states": "Washington, D.C.",
}  # fmt: skip
_LISTS = {
    "color": "red orange yellow green blue indigo violet brown pink grey".split(),
    "fruit": "apple banana cherry date elderberry fig grape lemon mango nectarine".split(),
    "planet": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split(),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "month": "January February March April May June July August September October November December".split(),
    "season": "spring summer autumn winter".split(),
    "animal": "ant bear cat dog eagle fox goat horse ibis jackal".split(),
}
_JOKES = (
    "Why did the packet cross the network? Because the other side acknowledged it.",
    "I would tell you a joke about UDP, but you might not get it.",
    "There are ten kinds of people: those who read binary and those who do not.",
)
_GIVEN_TIME = re.compile(
    r"\b(?:the\s+)?(?:current\s+|local\s+|today's\s+)?(date and time|date|time|day|today)\s*(?:is|:|=)\s*"
    r"([^\n]+?)(?=\.\s|\.?$|\n|;)",
    re.I,
)


@dataclass(frozen=True, slots=True)
class _Question:
    text: str
    items: Sequence[Item]
    instructions: str

    @property
    def head(self) -> str:
        """The beginning of the text. Most rules look only at this, which bounds their cost."""
        return self.text[:_HEAD]

    @property
    def told(self) -> list[str]:
        return [text_of(i) for i in self.items if i.get("role") in ("user", "system")]


Rule = Callable[[_Question], Reply | None]


class RuleBrain:
    """The brain that follows rules and needs no server."""

    async def answer(self, prompt: Prompt) -> AsyncIterator[Piece]:
        """Answer the newest item: a function's result, or what the user said last."""
        asked = _last(prompt.items)
        spoken = asked is not None and asked.get("role") == "user"
        # A tool choice can force a call for any newest item, as with the service's models.
        if spoken or prompt.tool_choice not in ("auto", "none"):
            text = text_of(asked) if asked is not None and spoken else ""
            calls = tools.choose(text, prompt.tools, prompt.tool_choice)
            if calls:
                if is_reasoning(prompt.model):
                    # The newer models announce the call in the same response.
                    for token in tokenize("Let me check."):
                        yield Comment(token)
                for call in calls:
                    yield call
                return
        for token in tokenize(reply(prompt)):
            yield token

    async def close(self) -> None:
        """Do nothing: there is no connection to close."""


def reply(prompt: Prompt) -> str:
    """Answer in text."""
    asked = _last(prompt.items)
    if asked is None:
        return styled(opening(prompt.instructions), prompt.instructions)
    if asked.get("type") == "mcp_approval_response":
        return "All right, I will not do that."
    if asked.get("type") in _RESULTS:
        return _result(asked)
    question = _Question(text_of(asked), prompt.items, prompt.instructions)
    answer = next((r for r in (rule(question) for rule in _RULES) if r is not None), None)
    return styled(answer or _unknown(question), prompt.instructions)


def _last(items: Sequence[Item]) -> Item | None:
    return next(
        (
            i
            for i in reversed(items)
            if i.get("role") in ("user", "system") or i.get("type") in (*_RESULTS, "mcp_approval_response")
        ),
        None,
    )


def _result(item: Item) -> str:
    if item.get("error"):
        return "Something went wrong, and I have no result."
    output = str(item.get("output") or "").strip()
    try:
        value: Any = json.loads(output)
    except (ValueError, RecursionError):
        value = output
    if isinstance(value, dict):
        return "Here is what I found: " + "; ".join(f"{k} is {_plain(v)}" for k, v in value.items()) + "."
    if isinstance(value, list):
        return "Here is what I found: " + ", ".join(_plain(v) for v in value) + "."
    return _plain(value) if value != "" else "Done."


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# -- rules, in the order in which they are tried -----------------------------------------------------------------------


def _repeat(question: _Question) -> Reply | None:
    match = re.match(
        r"\s*(?:please\s+)?(?:(repeat after me(?: exactly)?|(?:repeat|say) exactly|echo)|repeat|say)\s*([:,]\s*|\s)(.+)\s*$",
        question.text,
        re.I | re.S,
    )
    if match is None:
        return None
    # "Say hello" and "repeat my name" ask for something else, unless a colon or quotes mark the words to repeat.
    plain = match[1] is not None or ":" in match[2]
    if not plain and re.match(r"(?:hello|hi|something|it again|my |the )\b", match[3], re.I):
        return None
    said = match[3].strip()
    if said[-1] == "." and said[0] in "\"'“" and said[-2:-1] in "\"'”":
        said = said[:-1]
    if len(said) > 1 and said[0] in "\"'“" and said[-1] in "\"'”":
        said = said[1:-1]
    return Reply(said)


def _greeting(question: _Question) -> Reply | None:
    text = question.head.strip().lower()
    if re.match(r"(?:please )?say (?:hello|hi)\b", text):
        return Reply("Hello there!", "Hello there")
    match = re.fullmatch(
        r"(?:hello|hi|hey|good (?:morning|evening|afternoon)|greetings)(?: there| again)?[\s,!.]*(\w*)[\s!.]*",
        text,
    )
    if match is None:
        return None
    name = memory.facts_in(question.told).get("name")
    return Reply(
        f"Hello {name[1]}! How can I help you?" if name else "Hello! How can I help you?", "Hello there"
    )


def _told_now(question: _Question) -> Reply | None:
    if question.text.rstrip().endswith("?"):
        return None
    facts = memory.facts_in([question.text])
    if "name" in facts and facts["name"][0] == "my":
        others = [k for k in facts if k != "name"]
        return Reply(f"Nice to meet you, {facts['name'][1]}!" + (" I will remember that." if others else ""))
    if memory.remembered([question.text]):
        return Reply("I will remember that.", "Noted")
    mine = [k for k, (whose, _) in facts.items() if whose == "my"]
    return Reply(f"Good to know. I will remember your {mine[0]}.", "Noted") if mine else None


def _recall(question: _Question) -> Reply | None:
    if re.search(
        r"\bwhat (?:did|have) i (?:tell|told|ask(?:ed)?) you(?: to remember)?\b", question.head, re.I
    ):
        kept = memory.remembered(question.told)
        if kept:
            return Reply("You asked me to remember this: " + " ".join(kept))
    found = memory.answer(question.head, memory.facts_in(question.told))
    return Reply(*found) if found else None


def _clock(question: _Question) -> Reply | None:
    match = re.search(r"\b(?:what|which|tell)\b.*\b(date|time|day|today)\b", question.head, re.I)
    if match is None:
        return None
    given = {m[1].lower(): m[2].strip() for m in _GIVEN_TIME.finditer(question.instructions)}
    wanted = match[1].lower()
    for key in (wanted, "date and time", "today", "date", "time", "day"):
        if key in given:
            return Reply(f"It is {given[key]}.", given[key])
    return Reply("Nobody has told me the date or the time.", "No idea")


def _counting(question: _Question) -> Reply | None:
    match = re.search(
        r"\bcount\s+(down\s+)?(?:from\s+([\w-]+)\s*)?(?:up\s+)?(?:(?:to|until)\s+([\w-]+))?(?:\s+(?:by|in)\s+(\w+))?",
        question.head,
        re.I,
    )
    if match is None or not (match[2] or match[3]):
        return None
    down = match[1] is not None
    step = (number_word(match[4].removesuffix("s")) if match[4] else 1) or 1
    start = number_word(match[2]) if match[2] else (10 if down else step)
    end = number_word(match[3]) if match[3] else (1 if down else None)
    if start is None or end is None:
        return None
    down = down or end < start
    numbers = range(start, end - 1, -step) if down else range(start, end + 1, step)
    return Reply(", ".join(str(n) for n in numbers[:_COUNT_LIMIT]) + ".")


def _sum(question: _Question) -> Reply | None:
    solved = solve(question.head)
    return Reply(f"That is {solved}.", solved) if solved is not None else None


def _letters(question: _Question) -> Reply | None:
    text = question.head.strip().rstrip("?.!")
    if match := re.search(r"\bspell\s+(?:the word\s+|out\s+)?[\"']?([\w-]+)[\"']?$", text, re.I):
        spelled = "-".join(match[1].upper())
        return Reply(f"{spelled}.", spelled)
    if match := re.search(r"\b(?:reverse|spell backwards)\s+(?:the word\s+)?[\"']?(.+?)[\"']?$", text, re.I):
        return Reply(match[1][::-1])
    if match := re.search(
        r"\bhow many letters (?:are |does )?(?:in )?(?:the word )?[\"']?([\w-]+)[\"']?", text, re.I
    ):
        return Reply(f"The word {match[1]} has {len(match[1])} letters.", str(len(match[1])))
    return None


def _long_text(question: _Question) -> Reply | None:
    match = re.search(
        r"\b(?:write|tell|give|compose|explain|describe)\b.*?(?:([\d,]+|\w+)[\s-]+words?)?"
        r".*?\b(?:about|on|of)\s+(.+)$",
        question.head.strip(),
        re.I | re.S,
    )
    counted = re.search(r"\b(\d[\d,]*)[\s-]+words?\b", question.head)
    kind = re.search(
        r"\b(story|essay|poem|text|article|paragraph|speech|letter|words)\b", question.head, re.I
    )
    if match is None or not (counted or kind):
        return None
    words = (
        int(counted[1].replace(",", "")[:6]) if counted else 60 if kind and kind[1] == "paragraph" else 200
    )
    subject = re.sub(r"\s+in\s+[\d,]+\s+words\b", "", match[2]).strip(" .?!\"'")
    return Reply(write(words, subject))


def _knowledge(question: _Question) -> Reply | None:
    text = question.head.lower()
    if match := re.search(r"\bcapital (?:city )?of (?:the )?([a-z ]+)", text):
        country = match[1].strip()
        capital = next((city for name, city in _CAPITALS.items() if country.startswith(name)), None)
        if capital:
            return Reply(f"The capital of {country.title()} is {capital}.", capital)
    if match := re.search(
        r"\b(?:name|list|tell me|give me)\s+(?:me\s+)?(?:the\s+)?(?:(\w+)\s+)?(\w+?)s?\b", text
    ):
        words = [w.removesuffix("s") for w in re.findall(r"[a-z]+", text)]
        kind = next((k for k in _LISTS if k in words or k + "our" in words), None)
        if kind:
            wanted = next(
                (n for n in (number_word(w) for w in re.findall(r"\w+", text)) if n), len(_LISTS[kind])
            )
            return Reply(", ".join(_LISTS[kind][: max(1, wanted)]) + ".")
    return None


def _small_talk(question: _Question) -> Reply | None:
    text = question.head.lower()
    for pattern, answer, short in _TALK:
        if re.search(pattern, text):
            return Reply(answer, short)
    if re.search(r"\bjoke\b", text):
        return Reply(_JOKES[sum(i.get("role") == "user" for i in question.items) % len(_JOKES)])
    return None


_TALK = (
    (r"\bthank", "You are welcome!", "You're welcome"),
    (r"\b(?:bye|goodbye|see you)\b", "Goodbye! It was good to talk to you.", "Goodbye"),
    (
        r"\b(?:who|what) are you\b",
        (
            "I am the offline brain of an emulated Realtime service. I follow rules, so the same question always gets the "
            "same answer."
        ),
        "An emulator",
    ),
    (r"\bhow are you\b", "I am fine, thank you. How are you?", "Fine, thanks"),
    (
        r"\b(?:what can you do|help)\b",
        (
            "I can greet, count, work out sums, spell, repeat after you, remember what you tell me, name capitals, call your "
            "functions, and write as many words as you like about anything."
        ),
        "Quite a bit",
    ),
    (r"\bmeaning of life\b", "The answer is 42.", "42"),
    (
        r"^\s*(?:yes|no|ok|okay|sure|fine)\b[.!]?\s*$",
        "All right. What would you like to do next?",
        "All right",
    ),
    (r"^\s*(?:ping)\b", "Pong!", "Pong"),
)


def _unknown(question: _Question) -> Reply:
    text = " ".join(question.text.split())
    shown = text if len(text) <= 120 else text[:117].rstrip() + "..."
    if not text:
        return Reply("I heard nothing. Could you say that again?", "Pardon?")
    if text.endswith("?"):
        return Reply(f'I am only a set of rules and do not know the answer to "{shown}"', "No idea")
    return Reply(f'You said: "{shown}"', "I see")


_RULES: tuple[Rule, ...] = (
    _repeat,
    _greeting,
    _recall,
    _told_now,
    _counting,
    _sum,
    _letters,
    _long_text,
    _clock,
    _knowledge,
    _small_talk,
)
