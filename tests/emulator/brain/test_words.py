"""Ids, tokens and prose."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.emulator.brain.prose import MAX_WORDS, write
from gateway.emulator.protocol.client_secrets import ClientSecrets
from gateway.emulator.protocol.ids import IdSource, session_of
from gateway.emulator.protocol.items import new_item
from gateway.emulator.protocol.tokens import count, tokenize


def test_ids_have_the_recorded_form_and_never_repeat() -> None:
    """Prefix, length and alphabet of each kind; ten thousand of them are ten thousand."""
    ids = IdSource()
    forms = {
        ids.event: r"event_\w{21}",
        ids.item: r"item_\w{21}",
        ids.response: r"resp_\w{21}",
        ids.conversation: r"conv_\w{21}",
        ids.function_call: r"call_\w{16}",
        ids.call: r"rtc_u1_\w{21}",
        ids.secret: r"ek_\w{32}",
        ids.audio_buffer_event: r"event_[0-9a-f]{16}",
    }
    for make, form in forms.items():
        made = make()
        assert re.fullmatch(form, made, re.ASCII)
        assert "_" not in made.split("_")[-1]

    assert len({ids.event() for _ in range(10_000)}) == 10_000
    assert session_of("rtc_u1_ABC") == "sess_u1_ABC"


@given(st.text(max_size=200))
@example("naïve ½ café_x \t\n\n 12345 ... 👩‍🚀 internationalization")
def test_tokens_join_to_the_text(text: str) -> None:
    """Whatever the text, its tokens give it back, and none is empty."""
    tokens = tokenize(text)

    assert "".join(tokens) == text
    assert all(tokens)
    assert count(text) == len(tokens)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello there!", ["Hello", " there", "!"]),
        ("It is 12 degrees.", ["It", " is", " ", "12", " degrees", "."]),
        ("1, 2", ["1", ",", " ", "2"]),
    ],
)
def test_text_is_cut_as_recorded(text: str, tokens: list[str]) -> None:
    """A word takes the space before it with it, a number stands apart, a mark is its own token."""
    assert tokenize(text) == tokens


@pytest.mark.parametrize("words", [1, 2, 7, 60, 500, 5000])
def test_prose_has_the_words_it_was_asked_for(words: int) -> None:
    """Exactly so many words, the same ones each time, ending like a sentence."""
    text = write(words, "the sea")

    assert len(text.split()) == words
    assert text == write(words, "the sea")
    assert text.endswith(".")


def test_prose_is_bounded() -> None:
    """Nobody gets more than the most there is, nor less than a word."""
    assert len(write(10**9, "x").split()) == MAX_WORDS
    assert len(write(-5, "").split()) == 1


def test_oldest_secrets_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is bounded."""
    monkeypatch.setattr("gateway.emulator.protocol.client_secrets.MAX_SECRETS", 2)
    secrets = ClientSecrets(IdSource())
    first, *others = [secrets.create({}, 0, "p") for _ in range(3)]

    assert secrets.find(first.value) is None
    assert [secrets.find(other.value) for other in others] == others


@pytest.mark.parametrize("given", [{"call_id": "call_1"}, {}])
def test_function_call_of_a_client_becomes_an_item(given: dict[str, str]) -> None:
    """With its own call id or a new one, in the recorded order of members."""
    item = new_item({"type": "function_call", "arguments": "{}", "name": "f", **given}, IdSource())

    assert list(item) == ["id", "type", "status", "name", "call_id", "arguments"]
    assert item["call_id"].startswith("call_")
