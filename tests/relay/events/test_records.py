"""gateway/relay/events/records.py: the records of a session, encoded and decoded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.relay.events import records
from gateway.relay.events.records import (
    KINDS,
    Accepted,
    Acknowledged,
    Border,
    DoubtSettled,
    GatewayEvent,
    Handed,
    LineState,
    Record,
    Released,
    Sealed,
    ServerEvent,
    TurnFinished,
    TurnQueued,
    UnreadableRecord,
    decode,
    encode,
    sequence_of,
)

_EVENTS = st.sampled_from(['{"type":"x"}', '{"type":"x",\n"a":"é"}', "{}"])
_NUMBERS = st.integers(min_value=0, max_value=1 << 40)
_WORDS = st.none() | st.text(max_size=8)
RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(ServerEvent, _NUMBERS, _NUMBERS, st.sampled_from(["x", "", "two words"]), _EVENTS),
    st.builds(GatewayEvent, _NUMBERS, st.just("gateway.closed"), _EVENTS),
    st.builds(
        Accepted,
        _NUMBERS,
        st.lists(_EVENTS),
        st.booleans(),
        _NUMBERS,
        _WORDS,
        _WORDS,
        _WORDS,
        _NUMBERS,
        st.just(0.5),
    ),
    st.builds(Handed, _NUMBERS, st.just([])),
    st.builds(Acknowledged, _NUMBERS),
    st.builds(
        TurnQueued, _NUMBERS, st.just("t1"), _EVENTS, st.floats(0, 1e10), _WORDS, _WORDS, _WORDS, st.just(0.5)
    ),
    st.builds(TurnFinished, _NUMBERS, _NUMBERS, st.none() | st.just({"code": "upstream-failed"})),
    st.builds(
        LineState,
        st.just("connected"),
        _WORDS,
        st.none() | _NUMBERS,
        _WORDS,
        _WORDS,
        st.just({"a": "b"}),
        st.just(["c"]),
        st.just([]),
    ),
    st.just(DoubtSettled()),
    st.builds(Border, st.just("n_1"), st.just("e1"), st.none() | _NUMBERS),
    st.builds(Released, _WORDS),
    st.builds(Sealed, st.just("client")),
)


@given(RECORDS)
def test_a_record_read_back_is_the_same(record: Record) -> None:
    """Every kind of record round-trips with any text; the first byte is its kind."""
    data = encode(record)

    assert decode(data) == record
    assert type(decode(data)) is KINDS[chr(data[0])]


@pytest.mark.parametrize("type_", ["a\nb", "\ud800", "a\u2028b"])
def test_an_event_of_an_odd_type_is_read_back_with_its_text(type_: str) -> None:
    """Only the text is shown to clients; nothing follows from a type that no service has."""
    assert decode(encode(ServerEvent(3, 0, type_, '{"a":1}'))) == ServerEvent(3, 0, "", '{"a":1}')


def test_only_events_of_the_log_have_a_sequence() -> None:
    """Only events of the log have a sequence, by which an event that was written twice is recognized."""
    assert sequence_of(ServerEvent(3, 0, "x", "{}")) == 3
    assert sequence_of(GatewayEvent(4, "gateway.closed", "{}")) == 4
    assert sequence_of(Handed(9)) == 0


@pytest.mark.parametrize(
    "data", [b"", b"?[]", b"h[", b"h[]", b"h{}", b"e1 2 x", b"e1\n{}", b"gx y\n{}", b"h\xff"]
)
def test_what_is_no_record_is_refused(data: bytes) -> None:
    """A record that cannot be parsed raises an error, so that its session is not taken over."""
    with pytest.raises(UnreadableRecord):
        decode(data)


def test_members_that_a_later_version_added_are_ignored() -> None:
    """A version only adds members at the end, so an older node reads the ones that it knows."""
    assert decode(b'r["n_2","later"]') == Released("n_2")
    assert decode(b"d[true]") == DoubtSettled()


def test_a_kind_is_part_of_the_versions_from_its_own_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every version has the kinds of the first; a later kind belongs to its version and those after it."""
    monkeypatch.setattr(records, "SINCE", {Acknowledged: 2})

    assert [records.is_part_of(version, Acknowledged(1)) for version in (1, 2, 3)] == [False, True, True]
    assert records.is_part_of(1, ServerEvent(1, 0, "x", "{}"))
