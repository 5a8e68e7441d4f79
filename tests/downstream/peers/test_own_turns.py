"""gateway/downstream/turns/once.py: a turn in its own session, repeated at other nodes."""

import asyncio
from typing import Any

from gateway.errors import OverloadError
from gateway.relay.journal import Promised
from gateway.relay.requests import Principal
from gateway.relay.states import CloseReason
from tests.downstream.peers.conftest import Pair
from tests.downstream.turns.test_resource import Model
from tests.waiting import until

HEADERS = {"Idempotency-Key": "a-key-that-nobody-guesses", "Content-Type": "text/plain"}


async def ask(pair: Pair, which: str, body: str = "Hello") -> Any:
    """Request a turn at one of the nodes."""
    harness = pair.edge if which == "edge" else pair.owner
    return await harness.call(
        "POST", "/v1/turns", data=body, headers=HEADERS | {"Accept": "application/json"}
    )


async def promised(pair: Pair) -> str:
    """Wait until the first request has opened its session, and return the ID."""
    await until(lambda: any(one.answer is not None for one in pair.table.promises.values()))
    [promise] = pair.table.promises.values()
    pair.table.owners[promise.session_id] = "edge"
    return promise.session_id


async def test_a_repeat_at_another_node_attaches_to_the_turn(pair: Pair) -> None:
    """A repeat also gets a turn that is done, with the header that marks a replay; another body under the key is
    refused."""
    model = Model(pair.edge)
    first = asyncio.create_task(ask(pair, "edge"))
    session_id = await promised(pair)
    again = asyncio.create_task(ask(pair, "owner"))
    await model.answer("Hi")
    one, two, three = await first, await again, await ask(pair, "owner")

    assert [answer.status for answer in (one, two, three)] == [200, 200, 200]
    assert {answer.json["session_id"] for answer in (one, two, three)} == {session_id}
    assert "Idempotency-Replayed" not in one.headers
    assert two.headers["Idempotency-Replayed"] == three.headers["Idempotency-Replayed"] == "true"
    assert pair.owner.far_end.sent == []
    assert len(model.of("response.create")) == 1


async def test_a_repeat_finds_the_turn_in_a_session_that_moved_here(pair: Pair) -> None:
    """This node has no entry for the key, but the session has the turn under it."""
    model = Model(pair.edge)
    first = asyncio.create_task(ask(pair, "edge"))
    session_id = await promised(pair)
    await model.answer("Hi")
    done = await first
    table = pair.edge.hub.idempotency(Principal("anonymous"))
    for key in list(table._slots):
        table.release(key)
    again = await ask(pair, "edge")

    assert (again.status, again.json["output_text"]) == (200, "Hi")
    assert again.json["session_id"] == done.json["session_id"] == session_id
    assert again.headers["Idempotency-Replayed"] == "true"


async def test_a_turn_whose_session_is_gone_is_run_again(pair: Pair) -> None:
    """A key is stored as long as its session; for a session that was never opened nothing is stored."""
    model = Model(pair.edge)
    pair.table.promises["anonymous\n/v1/turns\n" + HEADERS["Idempotency-Key"]] = Promised("gws_gone", b"{}")
    asking = asyncio.create_task(ask(pair, "edge"))
    await until(lambda: any(one.session_id != "gws_gone" for one in pair.table.promises.values()))
    await model.answer("Hi")

    assert (await asking).status == 200


async def test_a_repeat_while_the_session_is_opened_elsewhere_is_told_to_wait(pair: Pair) -> None:
    """A repeat while the session is being opened is 409 with Retry-After, as for a create."""
    pair.table.promises["anonymous\n/v1/turns\n" + HEADERS["Idempotency-Key"]] = Promised("gws_other", None)
    answer = await ask(pair, "edge")

    assert (answer.status, answer.code) == (409, "idempotency-in-progress")
    assert answer.headers["Retry-After"] == "1"


async def test_a_turn_that_fails_can_be_repeated(pair: Pair) -> None:
    """A failed turn's promise is removed, so that a repeat at any node runs it again."""
    model = Model(pair.edge)
    first = asyncio.create_task(ask(pair, "edge"))
    session_id = await promised(pair)
    await model.asked()
    await pair.edge.hub.find(session_id, None).close(CloseReason.UPSTREAM_LOST)
    failed = await first
    await until(lambda: not pair.table.promises)

    assert failed.status >= 500


async def test_a_session_whose_answer_cannot_be_stored_is_answered(pair: Pair) -> None:
    """The session is open and the client gets it; only a repeat of the request is refused for a while."""
    pair.table.refusal = OverloadError("recovering", "Redis does not answer.", retry_after=1)
    headers = {"Idempotency-Key": HEADERS["Idempotency-Key"]}
    opened = await pair.edge.call("POST", "/v1/sessions", headers=headers)
    again = await pair.edge.call("POST", "/v1/sessions", headers=headers)

    assert opened.status == 201
    assert (await pair.edge.call("GET", opened.headers["Location"])).status == 200
    assert again.code == "idempotency-in-progress"
    assert len(pair.edge.hub.all_sessions()) == 1
