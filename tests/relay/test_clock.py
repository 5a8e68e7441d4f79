"""gateway/relay/clock.py: the default clock and tokens of the relay."""

import os
import string
import time

import pytest

from gateway.relay.clock import Clock, random_word
from gateway.relay.events.eventlog import EventId


def test_clocks_are_the_machines() -> None:
    """The relay uses a monotonic clock, and Unix time for clients."""
    clock = Clock()

    assert abs(clock.monotonic() - time.monotonic()) < 1
    assert abs(clock.unix() - time.time()) < 1


def test_tokens_are_letters_and_digits_that_do_not_repeat() -> None:
    """Tokens are ids and capabilities, so they consist of letters and digits and never repeat."""
    tokens = {Clock().token(24) for _ in range(1000)}

    assert len(tokens) == 1000
    assert {len(token) for token in tokens} == {24}
    assert set("".join(tokens)) <= set(string.ascii_letters + string.digits)


def test_every_character_of_a_word_is_equally_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random number is as long as the word and 64 bits more, so its remainder says nothing."""
    asked: list[int] = []

    def zeros(count: int) -> bytes:
        asked.append(count)
        return bytes(count)

    words = "".join(random_word(3, "abcde") for _ in range(20_000))
    monkeypatch.setattr(os, "urandom", zeros)

    assert all(11_300 < words.count(letter) < 12_700 for letter in "abcde")
    assert (random_word(24, "xyz"), asked) == ("x" * 24, [32])


def test_an_epoch_reads_back_out_of_an_id() -> None:
    """An epoch has the characters of event ids and no dash, so it can be parsed from an id."""
    epochs = {Clock().epoch() for _ in range(1000)}

    assert all(EventId.parse(f"{epoch}-7") == EventId(epoch, 7) for epoch in epochs)
    assert len(epochs) > 900
