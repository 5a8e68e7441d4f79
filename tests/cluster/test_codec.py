"""Sealed values, and which keys open them."""

import pytest

from gateway.cluster.codec import Codec, UnreadableError

OLD, NEW = bytes(32), bytes(range(32))


def test_plain_values_pass_untouched() -> None:
    """Without encryption a value is stored unchanged."""
    assert Codec([OLD], encrypt=False).encode(b"text", "gws_1") == b"text"


def test_sealed_value_opens_with_any_key_and_whether_or_not_encryption_is_on() -> None:
    """Keys rotate, and encryption is switched, while sessions run."""
    sealed = Codec([OLD], encrypt=True).encode(b"text", "gws_1")

    assert b"text" not in sealed
    assert Codec([NEW, OLD], encrypt=False).decode(sealed, "gws_1") == b"text"
    assert Codec([NEW], encrypt=True).decode(b"plain", "gws_1") == b"plain"


def test_sealed_value_of_another_session_or_key_does_not_open() -> None:
    """A value that was copied from another session, or sealed with another key, is refused."""
    codec = Codec([OLD], encrypt=True)
    sealed = codec.encode(b"text", "gws_1")

    with pytest.raises(UnreadableError):
        codec.decode(sealed, "gws_2")
    with pytest.raises(UnreadableError):
        Codec([NEW], encrypt=True).decode(sealed, "gws_1")
