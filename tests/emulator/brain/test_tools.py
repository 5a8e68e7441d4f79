"""Choosing functions and making arguments that fit their schemas."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.emulator.brain.tools import arguments, choose

Json = dict[str, Any]


def obj(**properties: Any) -> Json:
    """Return an object's schema with every property required."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def made(schema: Json, text: str = "") -> Any:
    """Make arguments and return them parsed."""
    return json.loads(arguments(schema, text))


def test_pattern_of_exponential_time_ends() -> None:
    """A schema comes from a client, so a pattern that takes exponential time must not block other calls."""
    schema = {"type": "string", "pattern": "^(([a-z ])+)+[0-9]$"}

    assert made(obj(a=schema), "call it " + "a" * 40)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "weather in Oslo", "Oslo"),
        ({"type": "string"}, 'search for "blue whales"', "blue whales"),
        ({"type": "string", "enum": ["c", "f"]}, "in f please", "f"),
        ({"enum": [1, 2]}, "", 1),
        ({"const": 5}, "", 5),
        ({"type": "string", "default": "d"}, "x", "d"),
        ({"type": "string", "format": "date"}, "x", "2026-01-31"),
        ({"type": "string", "maxLength": 2}, "abcdef", "ab"),
        ({"type": "string", "minLength": 5}, "ab", "abxxx"),
        ({"type": "string", "pattern": r"^\d{5}$"}, "x", "00000"),
        ({"type": "string", "pattern": "("}, "x", "x"),
        ({"type": "integer"}, "give me 7 of 9", 7),
        ({"type": "integer"}, "give me seven", 7),
        ({"type": "integer", "minimum": 10, "maximum": 20}, "3", 10),
        ({"type": "integer", "exclusiveMaximum": 5}, "9", 4),
        ({"type": "integer", "multipleOf": 5}, "12", 10),
        ({"type": "number"}, "2.5 litres", 2.5),
        ({"type": "number"}, "nothing", 1),
        ({"type": "boolean"}, "with sugar", True),
        ({"type": "boolean"}, "without sugar", False),
        ({"type": "null"}, "", None),
        ({"type": ["null", "integer"]}, "3", 3),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, "1 and 2", [1, 2]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 0}, "1", []),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, "4", 4),
        ({"oneOf": [{"type": "boolean"}]}, "", True),
        ({"allOf": [obj(a={"const": 1}), obj(b={"const": 2})]}, "", {"a": 1, "b": 2}),
        ({"$ref": "#/nowhere"}, "hi", "hi"),
        ({"$ref": "#/properties/v"}, "hi", "hi"),
        ({"type": "integer", "allOf": [True]}, "4", 4),
        ({"properties": {"x": {"const": 1}}, "required": ["x"]}, "", {"x": 1}),
        ({"items": {"const": 1}}, "", [1]),
    ],
)
def test_value_fits_its_schema(schema: Json, text: str, value: Any) -> None:
    """A value is taken from the text if something in it fits, and made up otherwise."""
    assert made(obj(v=schema), text) == {"v": value}


def test_references_are_followed_and_recursion_ends() -> None:
    """A `$ref` to the root is resolved, and a recursive schema ends at a fixed depth."""
    tree = obj(child={"$ref": "#/$defs/node"}) | {"$defs": {"node": obj(child={"$ref": "#/$defs/node"})}}

    assert isinstance(made(tree)["child"]["child"], dict)


def test_only_what_is_required_or_named_is_given() -> None:
    """An optional member is left out unless the text names one of its values."""
    schema = obj(city={"type": "string"}) | {"required": ["city"]}
    schema["properties"]["unit"] = {"enum": ["celsius", "kelvin"]}

    assert made(schema, "weather in Rome") == {"city": "Rome"}
    assert made(schema, "weather in Rome in Kelvin") == {"city": "Rome", "unit": "kelvin"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("What is the weather like?", ["get_weather"]),
        ("Please call getTime", ["getTime"]),
        ("I need the hour shown on the clock", ["getTime"]),
        ("weather and time, please", ["get_weather", "getTime"]),
        ("Hello", []),
    ],
)
def test_tool_is_chosen_by_name_or_description(text: str, names: list[str]) -> None:
    """One word of a tool's name, or two of its description, select it; several tools can be selected."""
    tools = [
        {"type": "function", "name": "get_weather", "description": "Look it up."},
        {"type": "function", "name": "getTime", "description": "The hour that the clock shows."},
        {"type": "mcp", "server_label": "weather"},
    ]

    assert [call.name for call in choose(text, tools, "auto")] == names


_SCHEMAS = st.recursive(
    st.one_of(
        st.sampled_from(["string", "integer", "number", "boolean", "null", "object", "array", "x"]).map(
            lambda kind: {"type": kind}
        ),
        st.just({}),
        st.none(),
        st.fixed_dictionaries({"minLength": st.integers(), "pattern": st.text(max_size=5)}),
    ),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"items": inner, "minItems": st.integers(-5, 5)}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries(
            {"properties": st.dictionaries(st.text(max_size=3), inner), "required": st.just(["a"])}
        ),
    ),
    max_leaves=8,
)


@given(_SCHEMAS, st.text(max_size=40))
def test_no_schema_breaks_the_maker(schema: Any, text: str) -> None:
    """Whatever schema a client sends, the arguments are a JSON object."""
    assert isinstance(json.loads(arguments(obj(v=schema), text)), dict)
