"""Tokens: they join to the text, and are split as recorded."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.emulator.protocol.tokens import count, tokenize


@given(st.text(max_size=200))
@example("naïve ½ café_x \t\n\n 12345 ... 👩‍🚀 internationalization")
def test_tokens_join_to_the_text(text: str) -> None:
    """For any text, joining its tokens returns it, and no token is empty."""
    tokens = tokenize(text)

    assert "".join(tokens) == text
    assert all(tokens)
    assert count(text) == len(tokens)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello there!", ["Hello", " there", "!"]),
        ("It is 12 degrees.", ["It", " is", " ", "12", " degrees", "."]),
        ("1, 2", ["1", ",", " ", "2"]),
    ],
)
def test_text_is_cut_as_recorded(text: str, tokens: list[str]) -> None:
    """A word includes the space before it, a number is separate, and a punctuation mark is its own token."""
    assert tokenize(text) == tokens
