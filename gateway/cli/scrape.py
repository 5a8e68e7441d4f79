"""Reads a gateway's own histograms, as Prometheus would."""

import math
from collections.abc import Mapping

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

PREFIX = "realtime_gateway_"
SCRAPE_SECONDS = 5.0

Buckets = Mapping[float, float]
"""Cumulated counts by upper bound."""


async def histogram(admin_url: str, name: str, **labels: str) -> Buckets:
    """Scrape one histogram's buckets."""
    timeout = aiohttp.ClientTimeout(total=SCRAPE_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.get(f"{admin_url}/metrics", raise_for_status=True) as answer,
    ):
        text = await answer.text()
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(text)
        if family.name == PREFIX + name
        for sample in family.samples
        if sample.name.endswith("_bucket") and labels.items() <= sample.labels.items()
    }


def since(before: Buckets, after: Buckets) -> Buckets:
    """Give what was counted in between."""
    return {bound: count - before.get(bound, 0) for bound, count in after.items()}


def quantile(buckets: Buckets, share: float) -> float | None:
    """Estimate a quantile as Prometheus' histogram_quantile does: evenly spread within a bucket, the last bound for all
    beyond it. None where nothing was counted."""
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
