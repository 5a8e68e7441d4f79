"""Items of a conversation."""

import pytest

from gateway.emulator.protocol.ids import IdSource
from gateway.emulator.protocol.items import new_item


@pytest.mark.parametrize("given", [{"call_id": "call_1"}, {}])
def test_function_call_of_a_client_becomes_an_item(given: dict[str, str]) -> None:
    """The item has its own call id or a new one, and the recorded order of members."""
    item = new_item({"type": "function_call", "arguments": "{}", "name": "f", **given}, IdSource())

    assert list(item) == ["id", "type", "status", "name", "call_id", "arguments"]
    assert item["call_id"].startswith("call_")
