"""gateway/relay/clock.py: the default clock and tokens of the relay."""

import string
import time

from gateway.relay.clock import Clock
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


def test_an_epoch_reads_back_out_of_an_id() -> None:
    """An epoch has the characters of event ids and no dash, so it can be parsed from an id."""
    epochs = {Clock().epoch() for _ in range(1000)}

    assert all(EventId.parse(f"{epoch}-7") == EventId(epoch, 7) for epoch in epochs)
    assert len(epochs) > 900
