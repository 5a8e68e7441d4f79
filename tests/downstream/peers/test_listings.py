"""gateway/downstream/peers/listings.py: lists of the sessions of all nodes."""

import hashlib
from typing import cast

import pytest

from gateway.downstream.auth.access import AccessRules, KeyRule
from gateway.relay.journal import Peer
from gateway.relay.session import Session
from tests.downstream.peers.conftest import Pair

KEYED = AccessRules(keys=(KeyRule("ada", (hashlib.sha256(b"ada-key").digest(),)),))
KEY = {"Authorization": "Bearer ada-key"}
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def listed(pair: Pair) -> Pair:
    """Return two nodes that know a key and each other."""
    for harness in (pair.owner, pair.edge):
        harness.access.replace(KEYED)
    pair.table.peers = [Peer("owner", pair.owner.server.peers_url, serving=True, room=1)]
    return pair


async def open_on_owner(pair: Pair, **body: object) -> str:
    """Open a session on the owner."""
    return str((await pair.owner.open(body, headers=KEY))["id"])


def keep(pair: Pair, session_id: str) -> None:
    """Store a session's snapshot in the directory."""
    session = cast(Session, pair.owner.hub.find(session_id, None))
    pair.table.kept[session_id] = session.dump()


async def test_sessions_of_a_node_that_does_not_answer_are_listed(listed: Pair) -> None:
    """They are listed as their last snapshot describes them, as recovering or closed, also for the operator."""
    session_id = await open_on_owner(listed, metadata={"a": "b"})
    before = await listed.edge.call("GET", "/v1/sessions", headers=KEY)
    listed.table.peers = [Peer("owner", NOWHERE, serving=True, room=1)]
    keep(listed, session_id)
    silent = await listed.edge.call("GET", "/v1/sessions", headers=KEY)
    operator = await listed.edge.call("GET", f"{listed.edge.server.admin_url}/sessions")

    [seen], [shown] = before.json["data"], silent.json["data"]
    assert (seen["id"], seen["state"]) == (session_id, "connected")
    assert (shown["id"], shown["state"], shown["metadata"]) == (session_id, "recovering", {"a": "b"})
    assert shown.keys() == seen.keys()
    assert [one["state"] for one in operator.json["data"]] == ["recovering"]


async def test_pages_go_on_over_sessions_that_nobody_lists(listed: Pair) -> None:
    """`after` and `has_more` include those sessions; snapshots of another version are left out."""
    ids = [await open_on_owner(listed) for _ in range(3)]
    for session_id in ids:
        keep(listed, session_id)
    listed.table.kept["gws_other_version"] = b'{"v": 99}'
    listed.table.peers = []
    first = await listed.edge.call("GET", "/v1/sessions?limit=2", headers=KEY)
    rest = await listed.edge.call("GET", f"/v1/sessions?after={ids[1]}", headers=KEY)
    unknown = await listed.edge.call("GET", "/v1/sessions?after=gws_x", headers=KEY)

    assert [one["id"] for one in first.json["data"]] == ids[:2]
    assert first.json["has_more"] is True
    assert [one["id"] for one in rest.json["data"]] == ids[2:]
    assert (unknown.status, unknown.code) == (404, "session-unknown")
