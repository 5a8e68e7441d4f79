"""gateway/relay/calls/expiry.py: a call's end as a duration that does not depend on this machine's clock."""

import pytest

from gateway.relay.calls.expiry import LONGEST_LIFE_SECONDS, expiry


def test_an_end_is_counted_on_the_monotonic_clock() -> None:
    """A call is replaced in a pause from `lead` on, and in the middle of a response from `latest` on."""
    found = expiry(1_003_600, 1_000_000.0, 50.0, 120, 30)

    assert found is not None
    assert (found.at, found.lead, found.latest) == (3650.0, 120, 30)
    assert not found.due(3529)
    assert found.due(3530)
    assert not found.late(3619)
    assert found.late(3620)


def test_a_short_call_is_not_replaced_as_soon_as_it_begins() -> None:
    """The lead is a share of the call's duration."""
    found = expiry(108, 100.0, 0.0, 120, 30)

    assert found is not None
    assert (found.lead, found.latest) == (2.0, 0.5)


@pytest.mark.parametrize("life", [0, -1, -3600, LONGEST_LIFE_SECONDS + 1])
def test_an_end_that_makes_no_sense_is_none(life: float) -> None:
    """An implausible end is ignored: the clock is wrong by more than a call's duration, or the service is."""
    assert expiry(int(1_000_000 + life), 1_000_000.0, 0.0, 120, 30) is None
