"""gateway/relay/strain.py and its use in the hub."""

import pytest

from gateway.errors import OverloadError
from gateway.relay.requests import Principal
from gateway.relay.strain import LASTING_SECONDS, RELIEF, Strain
from tests.relay.conftest import Build
from tests.relay.fakes import client_event

LIMIT = 0.25
LATE = LIMIT + 0.01


def strained(strain: Strain, seconds: float = LATE) -> None:
    """Report lag for just long enough."""
    for now in (10.0, 10.0 + LASTING_SECONDS):
        strain.lagged(seconds, now)


def test_lasting_lateness_is_strain() -> None:
    """A loop that is late at every sample for a second is overloaded."""
    strain = Strain(LIMIT)
    strain.lagged(LATE, 10.0)
    strain.lagged(LATE, 10.0 + LASTING_SECONDS - 0.01)
    before = strain.high
    strain.lagged(LATE, 10.0 + LASTING_SECONDS)

    assert (before, strain.high) == (False, True)


def test_a_single_pause_is_none_however_long() -> None:
    """A single pause is not overload, however long."""
    strain = Strain(LIMIT)
    strain.lagged(30 * LATE, 10.0)

    assert not strain.high


def test_a_moment_in_time_begins_the_count_anew() -> None:
    """One sample in time restarts the count, because the loop was not late for a whole second."""
    strain = Strain(LIMIT)
    strain.lagged(LATE, 10.0)
    strain.lagged(LIMIT, 10.5)
    strain.lagged(LATE, 11.0)
    strain.lagged(LATE, 11.5)

    assert not strain.high


def test_strain_is_over_well_below_the_limit() -> None:
    """Just below the limit the overload continues, so that it does not flap."""
    strain = Strain(LIMIT)
    strained(strain)
    strain.lagged(LIMIT * 0.9, 12.0)
    near = strain.high
    strain.lagged(LIMIT * RELIEF, 12.2)

    assert (near, strain.high) == (True, False)


def test_without_a_limit_there_is_no_strain() -> None:
    """A limit of 0 disables it."""
    strain = Strain(0)
    strained(strain, 100.0)

    assert not strain.high


async def test_a_strained_hub_opens_nothing_and_serves_on(build: Build) -> None:
    """An overloaded hub refuses new sessions for a while, and the running one accepts events."""
    harness = build()
    session = await harness.open()
    strained(harness.hub.strain)
    with pytest.raises(OverloadError) as caught:
        await harness.open()
    receipt = await session.submit([client_event("x")])
    harness.hub.strain.lagged(0, 20.0)

    assert (caught.value.code, caught.value.retry_after is not None) == ("capacity", True)
    assert receipt.accepted == 1
    assert (await harness.open()).view().close_reason is None


async def test_callers_keep_their_keys_apart(build: Build) -> None:
    """The Idempotency-Keys of one caller do not displace those of another."""
    harness = build()
    ann, bob = Principal("ann"), Principal("bob")
    harness.hub.idempotency(bob).claim("k", b"", 0.0)
    harness.hub.idempotency(bob).keep("k", "answer", 10)
    for count in range(2000):
        harness.hub.idempotency(ann).claim(f"k{count}", b"", 0.0)
        harness.hub.idempotency(ann).keep(f"k{count}", "other", 10)

    slot, new = harness.hub.idempotency(bob).claim("k", b"", 0.0)
    assert (slot.answer, new) == ("answer", False)
