"""Reads a gateway's own metrics, as Prometheus would."""

import math
from collections.abc import Mapping, Sequence

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

PREFIX = "realtime_gateway_"
SCRAPE_SECONDS = 5.0

Samples = Mapping[str, Sequence[Sample]]
"""Samples by name, without the gateway's prefix."""

Buckets = Mapping[float, float]
"""Cumulative counts by upper bound."""


def parse(text: str) -> Samples:
    """Parse the Prometheus text format."""
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name.removeprefix(PREFIX), []).append(sample)
    return found


def total(samples: Samples, name: str, **labels: str) -> float:
    """Return the sum of the samples of a name that have these labels."""
    return sum(sample.value for sample in samples.get(name, ()) if labels.items() <= sample.labels.items())


def buckets(samples: Samples, name: str, **labels: str) -> Buckets:
    """Return one histogram's buckets."""
    found = samples.get(f"{name}_bucket", ())
    return {
        float(sample.labels["le"]): sample.value
        for sample in found
        if labels.items() <= sample.labels.items()
    }


async def histogram(admin_url: str, name: str, **labels: str) -> Buckets:
    """Scrape one histogram's buckets."""
    timeout = aiohttp.ClientTimeout(total=SCRAPE_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.get(f"{admin_url}/metrics", raise_for_status=True) as answer,
    ):
        return buckets(parse(await answer.text()), name, **labels)


def since(before: Buckets, after: Buckets) -> Buckets:
    """Return the counts between two scrapes."""
    return {bound: count - before.get(bound, 0) for bound, count in after.items()}


def quantile(buckets: Buckets, share: float) -> float | None:
    """Estimate a quantile as Prometheus's histogram_quantile does: linear within a bucket, and the last bound for values
    above it. Return None if there are no counts."""
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return None
    rank = share * buckets[bounds[-1]]
    low, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (rank - below) / (buckets[bound] - below or 1)
        low, below = bound, buckets[bound]
    return low
