"""Nonsense in numbers: messages that hypothesis draws.

Draw before anything is connected: it takes seconds in which nothing else runs on the loop, and a call without answers is
given up.
"""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def batches(frame: st.SearchStrategy[str | bytes], count: int, size: int) -> list[list[str | bytes]]:
    """Return batches of messages, the same ones in each run: what a test of them finds is found again."""
    drawn: list[list[str | bytes]] = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(frame, min_size=size, max_size=size))
    def draw(frames: list[str | bytes]) -> None:
        drawn.append(frames)

    draw()
    return drawn[:count]
