"""Client secrets and tickets."""

import string
from collections.abc import Callable

import pytest

from gateway.downstream.auth.credentials import Credential, Signatures

OLD, NEW = b"o" * 32, b"n" * 32


@pytest.mark.parametrize("kind", ["secret", "ticket"])
def test_word_names_its_session(kind: Credential) -> None:
    """A signed credential names its kind and session."""
    signatures = Signatures([NEW])

    assert signatures.read(signatures.sign(kind, "gws_abc")) == (kind, "gws_abc")


def test_signing_is_deterministic() -> None:
    """Signing is deterministic, so that any node can repeat the answer to a create."""
    assert Signatures([NEW]).sign("secret", "gws_a") == Signatures([NEW]).sign("secret", "gws_a")


def test_rotation_verifies_old_words_and_signs_with_the_first_key() -> None:
    """Credentials signed with an old key are valid while that key is configured, and invalid afterwards."""
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
    """A credential with a changed signature, session or kind is refused, and no input makes parsing fail."""
    signatures = Signatures([NEW])
    word = signatures.sign("ticket", "gws_abc")

    assert signatures.read(forge(word)) is None


def test_a_word_has_one_spelling() -> None:
    """The last character holds two bits that are not part of the signature; changing them makes the credential
    invalid."""
    signatures = Signatures([NEW])
    word = signatures.sign("secret", "gws_abc")
    alphabet = string.ascii_letters + string.digits + "-_"

    assert [last for last in alphabet if signatures.read(word[:-1] + last)] == [word[-1]]


def test_short_key_is_refused() -> None:
    """A signing key short enough to guess is a configuration error."""
    with pytest.raises(ValueError, match="32 bytes"):
        Signatures([b"short"])
