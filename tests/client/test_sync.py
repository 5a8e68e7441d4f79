"""The client without `async`: what outlives its `with` block. `test_real` has it with a real gateway."""

import gc
import sys
from typing import Any

import pytest

from gateway.client.sync import Client


def test_iterator_that_outlives_the_client_ends_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script may keep an iterator to its end; its removal writes no traceback."""
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    with Client("http://127.0.0.1:1") as client:
        events = client.attach("gws_a").events()
        monkeypatch.setattr("gateway.client.session.read_blocks", blocks)
        assert next(events).type == "a"
    del events
    gc.collect()

    assert complaints == []


async def blocks(*_: object, **__: object) -> Any:
    """Yield one event."""
    from gateway.client.blocks import Block

    yield Block(id="k-1", data='{"type":"a"}')
    yield Block(id="k-2", data='{"type":"b"}')


def test_session_that_outlives_the_client_says_so() -> None:
    """The error says what to change."""
    with Client("http://127.0.0.1:1") as client:
        session = client.attach("gws_a")

    with pytest.raises(RuntimeError, match="inside its `with` block"):
        session.look()
