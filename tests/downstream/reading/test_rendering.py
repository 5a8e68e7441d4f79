"""The two forms of a stream compared."""

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.downstream.reading.rendering import EventStream, JsonLines, JsonPage
from gateway.downstream.reading.sse import frame
from gateway.relay.events.eventlog import Entry

TEXTS = ['{"type":"a"}', '{"type":"b",\n"c":"ü"}']


def entries() -> list[Entry]:
    """Return two events of a log."""
    return [
        Entry(number, "a", *frame(f"k-{number}", None, text), 0, 0.0) for number, text in enumerate(TEXTS, 1)
    ]


def test_events_are_their_blocks() -> None:
    """An event's stored block is written unchanged."""
    both = entries()

    assert EventStream().entries("k", both) == both[0].block + both[1].block
    assert EventStream().entries("k", both[:1]) is both[0].block


def test_lines_hold_id_and_event() -> None:
    """Each event is one line with its id; a line end within the JSON becomes a space."""
    first, second, rest = JsonLines().entries("k", entries()).split(b"\n")

    assert json.loads(first) == {"id": "k-1", "event": {"type": "a"}}
    assert second == '{"id":"k-2","event":{"type":"b", "c":"ü"}}'.encode()
    assert rest == b""


def test_own_events_of_lines_have_no_id() -> None:
    """The gateway's own lines have no id, except those whose purpose is to report the position."""
    lines = JsonLines()

    assert json.loads(lines.own("gateway.gap", {"missed": 1})) == {
        "id": None,
        "event": {"type": "gateway.gap", "missed": 1},
    }
    assert json.loads(lines.own("gateway.ping", {}, "k-7"))["event"] == {
        "type": "gateway.ping",
        "cursor": "k-7",
    }
    assert json.loads(lines.ending("gateway.rotating", {}, 100))["id"] is None


def test_own_events_of_a_stream_carry_what_a_browser_keeps() -> None:
    """In an event stream, id and retry of the gateway's own events are fields, not members."""
    stream = EventStream()

    assert stream.own("gateway.ping", {}, "k-7").startswith(b"id: k-7\nevent: gateway.ping\n")
    assert stream.ending("gateway.rotating", {}, 100).startswith(b"retry: 100\nevent: gateway.rotating\n")
    assert stream.opening(1000, "k-1", {}, 0).startswith(b"retry: 1000\nid: k-1\nevent: gateway.open\n")


def test_padding_fills_what_a_proxy_holds() -> None:
    """Padding precedes the opening and each heartbeat, as bytes without a meaning."""
    for rendering in (EventStream(), JsonLines()):
        plain, padded = rendering.opening(1000, None, {}, 0), rendering.opening(1000, None, {}, 500)
        assert padded.endswith(plain.lstrip())
        assert len(padded) - len(plain) == 500
        assert len(rendering.heartbeat(500)) - len(rendering.heartbeat(0)) == 500
    assert JsonLines().heartbeat(0) == b"\n"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["k", "other"]),
            st.lists(
                st.tuples(st.integers(1, 10**6), st.text(st.sampled_from('a\n\r "é'), max_size=6)), min_size=1
            ),
        ),
        max_size=3,
    )
)
def test_page_is_one_object_of_the_size_it_says(told: list[tuple[str, list[tuple[int, str]]]]) -> None:
    """The pieces of a page join to its events with their IDs and the cursor; the size is known before they are made."""
    parts = [
        (
            epoch,
            [
                Entry(sequence, "a", *frame(f"{epoch}-{sequence}", None, spaced(text)), 0, 0.0)
                for sequence, text in events
            ],
        )
        for epoch, events in told
    ]
    page = JsonPage(parts, "k-9")
    body = b"".join(page.pieces())

    assert page.size == len(body)
    assert json.loads(body) == {
        "events": [
            {"id": f"{epoch}-{sequence}", "event": json.loads(spaced(text))}
            for epoch, events in told
            for sequence, text in events
        ],
        "cursor": "k-9",
    }


def spaced(text: str) -> str:
    """Return JSON with line ends between its members."""
    return '{\r\n"type":"a",\n"text":' + json.dumps(text, ensure_ascii=False) + "\r}"
