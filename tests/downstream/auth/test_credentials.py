"""Client secrets and tickets."""

import string
from collections.abc import Callable

import pytest

from gateway.downstream.auth.credentials import Credential, Signatures

OLD, NEW = b"o" * 32, b"n" * 32


@pytest.mark.parametrize("kind", ["secret", "ticket"])
def test_word_names_its_session(kind: Credential) -> None:
    """What was signed is read again, by kind and session."""
    signatures = Signatures([NEW])

    assert signatures.read(signatures.sign(kind, "gws_abc")) == (kind, "gws_abc")


def test_signing_is_deterministic() -> None:
    """A repeated create can be answered anywhere with the same words."""
    assert Signatures([NEW]).sign("secret", "gws_a") == Signatures([NEW]).sign("secret", "gws_a")


def test_rotation_verifies_old_words_and_signs_with_the_first_key() -> None:
    """Words of an old key stay valid beside a new one, and are foreign once it is gone."""
    old_word = Signatures([OLD]).sign("ticket", "gws_a")
    both = Signatures([NEW, OLD])

    assert both.read(old_word) == ("ticket", "gws_a")
    assert Signatures([NEW]).read(both.sign("ticket", "gws_a")) == ("ticket", "gws_a")
    assert Signatures([NEW]).read(old_word) is None


@pytest.mark.parametrize(
    "forge",
    [
        lambda word: word.replace(".", ".x")[:-1],
        lambda word: word.replace("abc", "abd"),
        lambda word: word.replace("gwt_", "gwk_"),
        lambda word: word.replace("gwt_", "gwx_"),
        lambda word: "gwt_",
        lambda word: "gwt_abc",
        lambda word: "gwt_\udce9.\u00e9",
        lambda word: word + "é",
    ],
)
def test_forged_word_is_refused(forge: Callable[[str], str]) -> None:
    """A changed signature, session or kind makes the word worthless; nothing makes reading it fail."""
    signatures = Signatures([NEW])
    word = signatures.sign("ticket", "gws_abc")

    assert signatures.read(forge(word)) is None


def test_a_word_has_one_spelling() -> None:
    """The last character holds two bits that no signature has; with them changed it is another word."""
    signatures = Signatures([NEW])
    word = signatures.sign("secret", "gws_abc")
    alphabet = string.ascii_letters + string.digits + "-_"

    assert [last for last in alphabet if signatures.read(word[:-1] + last)] == [word[-1]]


def test_short_key_is_refused() -> None:
    """A key that could be guessed is a mistake of the configuration."""
    with pytest.raises(ValueError, match="32 bytes"):
        Signatures([b"short"])
