"""gateway/relay/sessionobject.py: merging and locking, also with unusual shapes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.relay.sessionobject import check_locked, merge, template

SCALAR = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
NAMES = st.sampled_from(["a", "b", "audio", "input"])
OBJECT = st.recursive(
    st.dictionaries(NAMES, SCALAR | st.lists(SCALAR, max_size=2), max_size=3),
    lambda inner: st.dictionaries(NAMES, inner | SCALAR, max_size=3),
    max_leaves=8,
)


def test_the_template_says_what_every_session_must() -> None:
    """Realtime: the type is required, so the template adds it; the operator's configuration has priority."""
    assert template({}) == {"type": "realtime"}
    assert template({"type": "transcription", "model": "x"}) == {"type": "transcription", "model": "x"}


@given(OBJECT)
def test_merging_with_nothing_changes_nothing(value: dict[str, object]) -> None:
    """Merging with the empty object changes nothing, on either side."""
    assert merge(value, {}) == value
    assert merge({}, value) == value


@given(OBJECT, OBJECT)
def test_what_is_wanted_is_had(template: dict[str, object], wanted: dict[str, object]) -> None:
    """After a merge the wanted members are set, a second merge changes nothing, and the arguments stay unchanged."""
    before = repr((template, wanted))
    merged = merge(template, wanted)

    assert merge(merged, wanted) == merged
    assert repr((template, wanted)) == before


def test_objects_merge_and_all_else_replaces() -> None:
    """Objects are merged; lists and scalars replace, null is a value, and an object replaces any other type."""
    template = {"audio": {"input": {"rate": 1, "kind": 2}}, "tools": [1, 2], "speed": 1, "voice": "x"}
    wanted = {"audio": {"input": {"rate": 9}}, "tools": [3], "speed": None, "voice": {"id": 1}}

    assert merge(template, wanted) == {
        "audio": {"input": {"rate": 9, "kind": 2}},
        "tools": [3],
        "speed": None,
        "voice": {"id": 1},
    }


@pytest.mark.parametrize(
    "members",
    [
        {"model": "x"},
        {"model": None},
        {"Model": "x"},
        {"audio": {"input": {"turn_detection": {}}}, "Audio": {}},
        {"AUDIO": {"Input": {"turn_Detection": {}}}},
        {"audio": {"input": {"turn_detection": None}}},
        {"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}},
        {"audio": {"input": None}},
        {"audio": {"input": "pcm"}},
        {"audio": None},
        {"audio": []},
        {"audio": "none"},
        None,
        [],
        "session",
        7,
    ],
)
def test_a_locked_member_is_refused_in_any_shape(members: object) -> None:
    """A member counts as set by a value, by null, and by a value that replaces the object that contains it."""
    with pytest.raises(GatewayError) as caught:
        check_locked(members, ("model", "audio.input.turn_detection"), "/session")
    assert caught.value.code == "member-locked"
    pointer = caught.value.flaws[0].pointer
    assert pointer is not None
    assert pointer.startswith("/session/")


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"models": 1},
        {"audio": {}},
        {"audio": {"input": {}}},
        {"audio": {"input": {"format": 1}, "output": None}},
        {"audio.input.turn_detection": 1},
    ],
)
def test_members_beside_a_locked_one_pass(members: object) -> None:
    """Only the member itself is locked, by its whole path."""
    check_locked(members, ("model", "audio.input.turn_detection"), "")


def test_the_flaw_points_at_the_locked_member() -> None:
    """The pointer leads from the request's root to the locked member, whatever the shape on the way."""
    with pytest.raises(GatewayError) as caught:
        check_locked({"audio": None}, ("audio.input.format",), "/3/session")
    assert caught.value.flaws[0].pointer == "/3/session/audio/input/format"
