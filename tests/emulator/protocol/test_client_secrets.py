"""The store of ephemeral keys."""

import pytest

from gateway.emulator.protocol.client_secrets import ClientSecrets
from gateway.emulator.protocol.ids import IdSource


def test_oldest_secrets_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is bounded."""
    monkeypatch.setattr("gateway.emulator.protocol.client_secrets.MAX_SECRETS", 2)
    secrets = ClientSecrets(IdSource())
    first, *others = [secrets.create({}, 0, "p") for _ in range(3)]

    assert secrets.find(first.value) is None
    assert [secrets.find(other.value) for other in others] == others
