"""Escapes of lone surrogates."""

import json
from unittest import mock

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.relay.events import surrogates
from gateway.relay.events.jsontext import finish
from gateway.relay.events.surrogates import mended_roughly


@given(
    st.lists(st.sampled_from(["\\ud800", "\\uDC00", "\\uD83D\\uDe00", "\\u00e9", "\\ud7ff", "a", "\\\\"])),
    st.integers(0, 4),
)
def test_lone_surrogates_are_replaced_in_one_step(parts: list[str], mended: int) -> None:
    """Up to a bound exactly; behind it a text is at least JSON again, of the same length."""
    text = '{"a":"' + "".join(parts) + '"}'
    expected = json.loads(text)["a"].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    whole = finish(mended_roughly(text.encode()))
    with mock.patch.object(surrogates, "MENDED_EXACTLY", mended):
        some = finish(mended_roughly(text.encode()))

    assert msgspec.json.decode(whole)["a"].count("\ufffd") == expected.count("\ufffd")
    assert len(some) == len(text)
    assert isinstance(msgspec.json.decode(some), dict)
