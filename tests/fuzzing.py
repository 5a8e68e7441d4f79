"""Nonsense in numbers: messages that hypothesis draws, in many orders.

Drawing costs a millisecond and more each, so a smaller pool is drawn once and the batches are put together from it.
Draw before anything is connected: nothing else runs on the loop meanwhile, and a call without answers is given up.
"""

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES, LENGTH = 20, 100


def batches(
    frame: st.SearchStrategy[str | bytes], count: int, size: int, seed: int = 0
) -> list[list[str | bytes]]:
    """Return batches of messages, the same ones in each run: what a test of them finds is found again."""
    pool: list[str | bytes] = []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(frame, min_size=LENGTH, max_size=LENGTH))
    def draw(frames: list[str | bytes]) -> None:
        pool.extend(frames)

    draw()
    order = random.Random(seed)
    return [order.choices(pool, k=size) for _ in range(count)]
