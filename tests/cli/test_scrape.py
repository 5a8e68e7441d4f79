"""Quantiles of a gateway's own histograms."""

import math

import pytest

from gateway.cli.scrape import Buckets, histogram, quantile, since
from gateway.client import Client
from tests.cli.conftest import Start
from tests.cli.test_serve import SERVE, addresses

pytestmark = pytest.mark.slow

BUCKETS: Buckets = {0.001: 50, 0.002: 90, 0.01: 100, math.inf: 100}


@pytest.mark.parametrize(
    ("share", "value"), [(0.25, 0.0005), (0.5, 0.001), (0.7, 0.0015), (0.95, 0.006), (1.0, 0.01)]
)
def test_quantile_is_spread_evenly_within_its_bucket(share: float, value: float) -> None:
    """Values are assumed to be spread evenly within a bucket, as in Prometheus' histogram_quantile."""
    assert quantile(BUCKETS, share) == pytest.approx(value)


def test_quantile_beyond_the_last_bound_is_the_last_bound() -> None:
    """A quantile beyond the last bound is that bound, because the histogram has no more detail."""
    assert quantile({0.001: 1, math.inf: 10}, 0.99) == 0.001


def test_quantile_of_nothing_is_nothing() -> None:
    """Without events there is no figure."""
    assert quantile({0.001: 0, math.inf: 0}, 0.5) is None
    assert quantile({}, 0.5) is None


def test_only_what_came_in_between_counts() -> None:
    """Only events between two scrapes count; the warm-up is subtracted."""
    assert since({0.001: 10, math.inf: 12}, {0.001: 10, math.inf: 15}) == {0.001: 0, math.inf: 3}


async def test_gateway_is_scraped(start: Start, emulator: str) -> None:
    """The histogram scraped from a real gateway contains a real turn."""
    running = await start(*SERVE, emulator, OPENAI_API_KEY="sk-test")
    url, admin = await addresses(running)
    before = await histogram(admin, "relay_seconds", direction="down")
    async with Client(url) as client:
        session = await client.open()
        events = session.events()
        await anext(events)
        await session.send({"type": "response.create"})
        async for event in events:
            if event.type == "response.done":
                break
        await events.aclose()
        await session.close()
    counted = since(before, await histogram(admin, "relay_seconds", direction="down"))

    assert counted[math.inf] >= 5
    assert 0 < (quantile(counted, 0.5) or 0) < 1
