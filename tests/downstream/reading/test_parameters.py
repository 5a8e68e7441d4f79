"""Parameters of a read: the cursor that a client sends."""

import pytest

from gateway.downstream.reading import parameters


@pytest.mark.parametrize(
    ("header", "query", "cursor"),
    [
        (None, {}, None),
        ("k-7", {"after": "k-1", "lastEventId": "k-2"}, "k-7"),
        (None, {"after": "k-1", "lastEventId": "k-2"}, "k-2"),
        (None, {"after": "k-1", "lastEventID": "k-2"}, "k-2"),
        (None, {"after": "k-1", "last_event_id": "k-2"}, "k-2"),
        (None, {"after": "k-1", "Last-Event-ID": "k-2"}, "k-2"),
        (None, {"after": "k-1"}, "k-1"),
        ("", {"lastEventId": "", "after": "k-1"}, "k-1"),
        ("", {"after": ""}, None),
    ],
)
def test_last_event_id_prefers_the_newest(
    header: str | None, query: dict[str, str], cursor: str | None
) -> None:
    """The header overrides the URL, the names that polyfills use override `after`, and an empty value counts as
    absent."""
    assert parameters.last_event_id(header, query) == cursor
