"""Text in pieces whose borders may be inside a character."""

import pytest

from gateway.client.pieces import Pieces


@pytest.mark.parametrize(
    ("given", "joined", "rest"),
    [
        (["a", "é😀"], ["a", "é😀"], ""),
        (["a\ud83d", "\ude00b"], ["a", "😀b"], ""),
        (["\ud83d", "", "b"], ["", "", "\ufffdb"], ""),
        (["\ude00", "\ud83d"], ["\ufffd", ""], "\ufffd"),
    ],
)
def test_halves_are_joined_or_replaced(given: list[str], joined: list[str], rest: str) -> None:
    """A half of a surrogate pair waits for the other one, and is replaced if that does not come."""
    pieces = Pieces()

    assert [pieces.add(piece) for piece in given] == joined
    assert pieces.rest() == rest
