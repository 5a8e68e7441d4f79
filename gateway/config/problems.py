"""Says what is wrong with a value, in the words of the person who wrote the configuration, not in those of pydantic."""

from collections.abc import Iterator, Sequence

from pydantic_core import ErrorDetails

_EXPECTED = {
    "missing": "is missing",
    "too_short": "must not be empty",
    "tuple_type": 'expected a list, such as ["a", "b"]',
    "dict_type": "expected a table",
    "model_type": "expected a table",
    "string_type": "expected text in quotation marks",
    "path_type": "expected a path in quotation marks",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def plain(details: ErrorDetails) -> str:
    """Return what was expected, without the setting's name."""
    kind = details["type"]
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"must be {words} {details['ctx'][bound]}"
    message = details["msg"].removeprefix("Value error, ")
    return (message[:1].lower() + message[1:]).replace("input should be", "expected")


def causes(errors: Sequence[ErrorDetails]) -> Iterator[ErrorDetails]:
    """Yield the errors except those that only follow from another one: a list is too short if its element is invalid."""
    for details in errors:
        place = details["loc"]
        follows = any(other["loc"][: len(place)] == place for other in errors if other["loc"] != place)
        if not (details["type"] == "too_short" and follows):
            yield details
