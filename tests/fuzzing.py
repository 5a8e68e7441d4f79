"""Nonsense in large numbers: messages drawn by hypothesis.

Draw before anything is connected: it takes seconds in which the loop does nothing else, and a call without answers
is given up.
"""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def batches(frame: st.SearchStrategy[str | bytes], count: int, size: int) -> list[list[str | bytes]]:
    """Return batches of messages, the same ones in each run, so that a failure repeats."""
    drawn: list[list[str | bytes]] = []

    @settings(
        max_examples=count,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(frame, min_size=size, max_size=size))
    def draw(frames: list[str | bytes]) -> None:
        drawn.append(frames)

    draw()
    return drawn[:count]
