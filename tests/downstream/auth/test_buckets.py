"""Token buckets."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.downstream.auth.buckets import Bucket


def test_bucket_gives_its_burst_then_its_rate() -> None:
    """A full bucket allows its burst at once, and then its rate."""
    bucket = Bucket.full(rate=2, burst=4, now=0)
    bucket.take(4, 0)

    assert bucket.wait(1, 0) == 0.5
    assert bucket.wait(1, 0.5) == 0


def test_bucket_gives_more_than_its_burst_when_full_and_then_waits_longer() -> None:
    """A request larger than the burst is allowed when the bucket is full, and leads to a longer wait afterwards."""
    bucket = Bucket.full(rate=1, burst=2, now=0)

    assert bucket.wait(10, 0) == 0
    bucket.take(10, 0)
    assert bucket.wait(1, 0) == 9


def test_bucket_saves_up_no_more_than_its_burst() -> None:
    """An idle hour adds no more than the burst."""
    bucket = Bucket.full(rate=1, burst=2, now=0)
    bucket.take(2, 3600)

    assert bucket.wait(1, 3600) == 1


@given(
    rate=st.floats(0.1, 100),
    burst=st.floats(1, 100),
    steps=st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 50)), max_size=50),
)
def test_bucket_never_gives_more_than_rate_and_burst(
    rate: float, burst: float, steps: list[tuple[float, float]]
) -> None:
    """Over any time, the amount taken is at most the burst, the refill, and one oversized request."""
    bucket, now, given_away = Bucket.full(rate, burst, 0), 0.0, 0.0
    for pause, amount in steps:
        now += pause
        if bucket.wait(amount, now) == 0:
            bucket.take(amount, now)
            given_away += amount

    largest = max((amount for _, amount in steps), default=0)
    assert given_away <= burst + rate * now + largest + 1e-6
