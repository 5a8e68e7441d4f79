"""Validates a client's JSON, and refuses it with the service's messages. No I/O.

It does not know the events; `catalog` lists them. A shape checks a value, and raises `Refusal` with the code and the dotted
path (`session.audio.input.foo`) that the service would name. An unknown key makes the whole object invalid.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.emulator.protocol.errors import Refusal


class Shape(Protocol):
    """Anything that can check a value at a path."""

    def check(self, value: Any, path: str) -> None:
        """Pass, or raise Refusal."""
        ...


def _wrong(path: str, wanted: str, value: Any) -> Refusal:
    names = {
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        list: "an array",
        dict: "an object",
    }
    got = "null" if value is None else names.get(type(value), type(value).__name__)
    return Refusal(
        "invalid_type",
        f"Invalid type for '{path}': expected {wanted}, but got {got} instead.",
        param=path,
    )


def _invalid(path: str, message: str) -> Refusal:
    return Refusal("invalid_value", f"Invalid value for '{path}': {message}", param=path)


@dataclass(frozen=True, slots=True)
class Anything:
    """Any JSON value."""

    def check(self, value: Any, path: str) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Text:
    """A string, of at most `longest` characters and of the form `pattern`, where those are given."""

    longest: int | None = None
    wanted: str = "a string"
    pattern: str | None = None

    def check(self, value: Any, path: str) -> None:
        if not isinstance(value, str):
            raise _wrong(path, self.wanted, value)
        if self.longest is not None and len(value) > self.longest:
            raise Refusal(
                "string_above_max_length",
                f"Invalid '{path}': string too long. Expected a string with maximum length {self.longest}, "
                f"but got a string with length {len(value)} instead.",
                param=path,
            )
        if self.pattern is not None and re.fullmatch(self.pattern, value) is None:
            raise Refusal(
                "invalid_value",
                f"Invalid '{path}': string does not match pattern. "
                f"Expected a string that matches the pattern '^{self.pattern}$'.",
                param=path,
            )


@dataclass(frozen=True, slots=True)
class Word:
    """One of a few strings."""

    options: tuple[str, ...]

    def check(self, value: Any, path: str) -> None:
        if not isinstance(value, str):
            raise _wrong(path, "a string", value)
        if value not in self.options:
            listed = " and ".join(
                part
                for part in (", ".join(f"'{o}'" for o in self.options[:-1]), f"'{self.options[-1]}'")
                if part
            )
            raise Refusal(
                "invalid_value", f"Invalid value: '{value}'. Supported values are: {listed}.", param=path
            )


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def check(self, value: Any, path: str) -> None:
        if not isinstance(value, bool):
            raise _wrong(path, "a boolean", value)


@dataclass(frozen=True, slots=True)
class Number:
    """A number within bounds; `whole` asks for an integer."""

    low: float
    high: float
    whole: bool = False

    def check(self, value: Any, path: str) -> None:
        kinds = int if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise _wrong(path, "an integer" if self.whole else "a number", value)
        if value < self.low:
            below = "integer_below_min_value" if self.whole else "decimal_below_min_value"
            raise Refusal(
                below,
                f"Invalid '{path}': expected a value >= {self.low:g}, but got {value} instead.",
                param=path,
            )
        if value > self.high:
            above = "integer_above_max_value" if self.whole else "decimal_above_max_value"
            raise Refusal(
                above,
                f"Invalid '{path}': expected a value <= {self.high:g}, but got {value} instead.",
                param=path,
            )


@dataclass(frozen=True, slots=True)
class Nullable:
    """Null, or a value that `shape` accepts."""

    shape: Shape

    def check(self, value: Any, path: str) -> None:
        if value is not None:
            self.shape.check(value, path)


@dataclass(frozen=True, slots=True)
class Either:
    """A value that one of two shapes accepts; if neither does, the second one's error is raised."""

    first: Shape
    second: Shape

    def check(self, value: Any, path: str) -> None:
        try:
            self.first.check(value, path)
        except Refusal:
            self.second.check(value, path)


@dataclass(frozen=True, slots=True)
class Series:
    """An array of `least` to `most` values."""

    shape: Shape
    most: int = 10_000
    least: int = 0

    def check(self, value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise _wrong(path, "an array", value)
        if len(value) > self.most:
            raise Refusal(
                "array_above_max_length",
                f"Invalid '{path}': array too long. Expected an array with maximum length {self.most}.",
                param=path,
            )
        if len(value) < self.least:
            raise Refusal(
                "array_below_min_length",
                f"Invalid '{path}': array too short. Expected an array with minimum length {self.least}.",
                param=path,
            )
        for at, member in enumerate(value):
            self.shape.check(member, f"{path}[{at}]")


@dataclass(frozen=True, slots=True)
class Record:
    """An object with known keys."""

    members: Mapping[str, Shape]
    required: tuple[str, ...] = ()

    def check(self, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(path, "an object", value)
        at = f"{path}." if path else ""
        for key in self.required:
            if key not in value:
                raise Refusal(
                    "missing_required_parameter",
                    f"Missing required parameter: '{at}{key}'.",
                    param=f"{at}{key}",
                )
        for key, member in value.items():
            shape = self.members.get(key)
            if shape is None:
                raise Refusal("unknown_parameter", f"Unknown parameter: '{at}{key}'.", param=f"{at}{key}")
            shape.check(member, f"{at}{key}")


@dataclass(frozen=True, slots=True)
class Table:
    """An object with free keys, such as metadata: at most `most` pairs."""

    shape: Shape
    most: int
    longest_key: int

    def check(self, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(path, "an object", value)
        if len(value) > self.most:
            raise Refusal(
                "object_above_max_properties",
                f"Invalid '{path}': too many properties. Expected an object with at most {self.most} properties.",
                param=path,
            )
        for key, member in value.items():
            if len(key) > self.longest_key:
                raise _invalid(path, f"a key is longer than {self.longest_key} characters.")
            self.shape.check(member, f"{path}.{key}")


@dataclass(frozen=True, slots=True)
class Tagged:
    """An object whose `type` decides its shape."""

    shapes: Mapping[str, Shape]
    tag: str = "type"
    options: Word = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", Word(tuple(self.shapes)))

    def check(self, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(path, "an object", value)
        at = f"{path}.{self.tag}" if path else self.tag
        if self.tag not in value:
            raise Refusal("missing_required_parameter", f"Missing required parameter: '{at}'.", param=at)
        self.options.check(value[self.tag], at)
        self.shapes[value[self.tag]].check(value, path)
