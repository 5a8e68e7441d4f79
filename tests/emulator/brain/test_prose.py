"""Prose of a given length."""

import pytest

from gateway.emulator.brain.prose import MAX_WORDS, write


@pytest.mark.parametrize("words", [1, 2, 7, 60, 500, 5000])
def test_prose_has_the_words_it_was_asked_for(words: int) -> None:
    """The same words each time, exactly as many as requested, ending like a sentence."""
    text = write(words, "the sea")

    assert len(text.split()) == words
    assert text == write(words, "the sea")
    assert text.endswith(".")


def test_prose_is_bounded() -> None:
    """The length is limited to a maximum, and is at least one word."""
    assert len(write(10**9, "x").split()) == MAX_WORDS
    assert len(write(-5, "").split()) == 1
