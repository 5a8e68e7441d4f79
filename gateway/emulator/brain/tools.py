"""Chooses a function to call and arguments that fit its JSON schema. No I/O.

Matching is by words only. A function is chosen when the text contains its name, a word of its name, or several words of its
description. Arguments are taken from the text where a value fits, and invented otherwise.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from gateway.emulator.brain.arithmetic import number_word
from gateway.emulator.protocol.brain import FunctionCall

Schema = dict[str, Any]
_GENERIC = frozenset(
    "a an and any at by call do fetch find for from function get give in into is it list look make of on or query read run"
    " search set show tell that the this to tool up use what when where which with you your".split()
)
_MAX_DEPTH = 8
_MAX_ITEMS = 64
_MAX_LENGTH = 4096
_PLACES = frozenset("city location place town country address where destination region area".split())
_FORMATS = {
    "date": "2026-01-31",
    "time": "12:00:00Z",
    "date-time": "2026-01-31T12:00:00Z",
    "email": "ada@example.com",
    "uri": "https://example.com/",
    "url": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
}
_SAMPLES = (
    "a",
    "A",
    "abc",
    "ABC",
    "0",
    "00",
    "000",
    "0000",
    "00000",
    "a1",
    "A1",
    "AB12",
    "#000000",
    "+1555",
    "EUR",
)


def choose(text: str, tools: Sequence[Schema], choice: str | Schema) -> list[FunctionCall]:
    """Return the calls that `text` asks for, under `tool_choice`; often there are none."""
    functions = [t for t in tools if t.get("type") == "function" and isinstance(t.get("name"), str)]
    if choice == "none" or not functions:
        return []
    if isinstance(choice, dict):
        wanted = [t for t in functions if t["name"] == choice.get("name")]
    else:
        wanted = [t for t in functions if _asked_for(text, t)]
        if choice == "required" and not wanted:
            wanted = functions[:1]
    return [FunctionCall(t["name"], arguments(t.get("parameters") or {}, text)) for t in wanted]


def arguments(schema: Schema, text: str) -> str:
    """Make JSON text that fits `schema`, an object's at the top."""
    value = _Maker(schema, text).make(schema, "", 0)
    return json.dumps(value if isinstance(value, dict) else {}, ensure_ascii=False)


def _words(text: str) -> list[str]:
    spread = re.sub(r"([a-z])([A-Z])", r"\1 \2", text).replace("_", " ").replace("-", " ").lower()
    return [w.removesuffix("s") for w in re.findall(r"[^\W\d_]{2,}", spread) if w not in _GENERIC]


def _asked_for(text: str, tool: Schema) -> bool:
    said = set(_words(text))
    if tool["name"].lower() in text.lower() or said & set(_words(tool["name"])):
        return True
    return len(said & set(_words(str(tool.get("description", ""))))) >= 2


class _Maker:
    """Makes values; numbers and names found in the text are used once each, in order."""

    def __init__(self, root: Schema, text: str) -> None:
        self.root = root
        self.text = text
        self.numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", text)[:_MAX_ITEMS]]
        if not self.numbers:
            named = (number_word(word) for word in re.findall(r"[a-zA-Z]+", text)[:_MAX_ITEMS])
            self.numbers = [float(n) for n in named if n is not None]
        self.quoted = re.findall(r"[\"“']([^\"”']{1,80})[\"”']", text)
        self.names = self._named()

    def make(self, schema: Any, name: str, depth: int) -> Any:
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return None
        schema = self._resolve(schema, depth)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self._chosen(schema["enum"])
        kind = self._kind(schema)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, name, depth)
        if kind in ("integer", "number"):
            return self._number(schema, kind)
        if kind == "boolean":
            return re.search(r"\b(?:no|not|without|off|don't|never)\b", self.text, re.I) is None
        if kind == "null":
            return None
        return self._string(schema, name)

    def _resolve(self, schema: Schema, depth: int) -> Schema:
        for _ in range(_MAX_DEPTH):
            reference = schema.get("$ref")
            if not isinstance(reference, str) or not reference.startswith("#/"):
                break
            found: Any = self.root
            for step in reference[2:].split("/"):
                found = found.get(step) if isinstance(found, dict) else None
            schema = found if isinstance(found, dict) else {}
        for key in ("anyOf", "oneOf"):
            options = [o for o in schema.get(key) or [] if isinstance(o, dict)]
            if options and depth <= _MAX_DEPTH:
                rest = {k: v for k, v in schema.items() if k != key}
                picked = next((o for o in options if o.get("type") != "null"), options[0])
                return self._resolve(rest | picked, depth + 1)
        merged = schema
        for part in schema.get("allOf") or []:
            if isinstance(part, dict) and depth <= _MAX_DEPTH:
                merged = _merge(merged, self._resolve(part, depth + 1))
        return merged

    @staticmethod
    def _kind(schema: Schema) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((k for k in kind if k != "null"), "null")
        if isinstance(kind, str):
            return kind
        return "object" if "properties" in schema else "array" if "items" in schema else "string"

    def _object(self, schema: Schema, depth: int) -> Schema:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        required = [k for k in required if isinstance(k, str)] if isinstance(required, list) else []
        made = {key: self.make(properties.get(key, {}), key, depth + 1) for key in required[:_MAX_ITEMS]}
        for key, inner in properties.items():
            # An optional member with an enum is filled only if the text names one of its values.
            options = inner.get("enum") if isinstance(inner, dict) else None
            if key not in made and isinstance(options, list) and self._named_option(options) is not None:
                made[key] = self._chosen(options)
        return made

    def _array(self, schema: Schema, name: str, depth: int) -> list[Any]:
        least = _bound(schema, "minItems", 1)
        most = _bound(schema, "maxItems", max(1, least))
        count = max(0, min(max(least, 1), most, _MAX_ITEMS))
        return [self.make(schema.get("items", {}), name, depth + 1) for _ in range(count)]

    def _number(self, schema: Schema, kind: str) -> int | float:
        value = self.numbers.pop(0) if self.numbers else 1.0
        low, high = (
            _limit(schema, "minimum", "exclusiveMinimum", 1),
            _limit(schema, "maximum", "exclusiveMaximum", -1),
        )
        if low is not None:
            value = max(value, low)
        if high is not None:
            value = min(value, high)
        step = schema.get("multipleOf")
        if isinstance(step, (int, float)) and step > 0:
            value = value // step * step
            value = value + step if low is not None and value < low else value
        whole = kind == "integer" or value.is_integer()
        return int(value) if whole else value

    def _string(self, schema: Schema, name: str) -> str:
        if isinstance(schema.get("default"), str):
            return str(schema["default"])
        found = _FORMATS.get(str(schema.get("format")))
        if found is None:
            found = self._from_text(name)
        least = min(_bound(schema, "minLength", 0), _MAX_LENGTH)
        found = found.ljust(least, "x")[: max(least, _bound(schema, "maxLength", _MAX_LENGTH))]
        pattern = schema.get("pattern")
        return _matching(pattern, found) if isinstance(pattern, str) else found

    def _from_text(self, name: str) -> str:
        if self.quoted:
            return str(self.quoted.pop(0))
        if self.names and (set(_words(name)) & _PLACES or name):
            return self.names.pop(0)
        return " ".join(self.text.split())[:200] or name or "text"

    def _named(self) -> list[str]:
        """Names in the text: what follows "in", "for", "at" or "to", then other capitalised words but the first."""
        after = re.findall(r"\b(?:in|for|at|to|from|near)\s+([A-Z][\w’'-]*(?:\s+[A-Z][\w’'-]*)*)", self.text)
        others = re.findall(r"(?<=[\w,]\s)([A-Z][\w’'-]+(?:\s+[A-Z][\w’'-]+)*)", self.text)
        return list(dict.fromkeys(after + others))

    def _named_option(self, options: list[Any]) -> Any:
        said = self.text.lower()
        return next((o for o in options if isinstance(o, str) and o and o.lower() in said), None)

    def _chosen(self, options: list[Any]) -> Any:
        named = self._named_option(options)
        return options[0] if named is None else named


def _merge(left: Schema, right: Schema) -> Schema:
    merged = {**left, **right}
    for key, empty in (("properties", {}), ("required", [])):
        if key in left and key in right and type(left[key]) is type(right[key]) is type(empty):
            merged[key] = {**left[key], **right[key]} if key == "properties" else left[key] + right[key]
    return merged


def _bound(schema: Schema, key: str, default: int) -> int:
    value = schema.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default


def _limit(schema: Schema, inclusive: str, exclusive: str, step: int) -> float | None:
    for key, beyond in ((inclusive, 0), (exclusive, step)):
        value = schema.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value + beyond)
    return None


def _matching(pattern: str, found: str) -> str:
    try:
        wanted = re.compile(pattern)
    except re.error:
        return found
    # Short samples only: on 20 characters a pattern of exponential time takes a tenth of a second, on 32 it takes hours.
    return next((s for s in (found[:20], *_SAMPLES) if wanted.search(s)), found)
