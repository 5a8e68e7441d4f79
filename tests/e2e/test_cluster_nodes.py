"""Several nodes acting as one: nodes are killed, paused and restarted, and Redis stops or loses data."""

import asyncio
import hashlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.redis_server import RedisServer
from tests.e2e.caller import Caller, say
from tests.e2e.nodes import LEASE_SECONDS, SIGNING_KEY, Follower, Node, Nodes, ask
from tests.farend import FarEnd
from tests.programs import Program

pytestmark = [pytest.mark.slow, pytest.mark.needs("redis-server"), pytest.mark.timeout(120)]

Cluster = Callable[..., Nodes]


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """Run a Redis for this test."""
    server = RedisServer().start()
    yield server
    server.close()


@pytest.fixture
def nodes(tmp_path: Path, far_end: FarEnd, redis_server: RedisServer) -> Iterator[Nodes]:
    """Return a function that starts nodes on that Redis."""
    made = Nodes(tmp_path, far_end, redis_server.url)
    yield made
    made.close()


async def test_any_node_serves_any_session(nodes: Nodes) -> None:
    """A session opened on one node can be read, written, asked and closed through another."""
    a, b = nodes.start(2)
    async with Caller(a.url) as one, Caller(b.url) as other:
        session = await one.open(metadata={"made": "on a"})
        receipt = await other.send(session["id"], *say("Hello"))
        assert (receipt["first"], receipt["last"]) == (1, 2)
        async with Follower(session["id"], [b.url]) as reader:
            await reader.until("response.done")
            _, seen = await other.ask("GET", f"/v1/sessions/{session['id']}")
            assert seen["metadata"] == {"made": "on a"}
            answer, _ = await other.ask("DELETE", f"/v1/sessions/{session['id']}")
            assert answer.status == 204
            await reader.until("gateway.closed")
        assert not reader.gaps


async def test_killed_node_is_replaced_and_nothing_is_lost(nodes: Nodes) -> None:
    """After SIGKILL readers continue at their cursor, a POST during the takeover is answered, and the conversation
    is known."""
    a, b, c = nodes.start(3)
    async with Caller(a.url) as caller:
        session = await caller.open()
    session_id = session["id"]
    async with Follower(session_id, [b.url, c.url]) as reader:
        await ask(b.url, session_id, "My name is Ada.")
        await reader.until("response.done")
        before = reader.cursor
        began = time.monotonic()
        a.program.kill()
        answered = await ask(c.url, session_id, "What is my name?")
        took = time.monotonic() - began
        await reader.until("gateway.recovered")
        await reader.until("response.done", 2)

        [recovering] = reader.of("gateway.recovering")
        [recovered] = reader.of("gateway.recovered")
    assert recovering["cause"] == "node_lost"
    assert recovered["cause"] == "node_lost"
    assert recovered["accepted"] >= 0
    assert "Ada" in answered
    assert took < 3 * LEASE_SECONDS + 17
    assert before is not None
    assert not reader.gaps
    async with Caller(b.url) as caller:
        again = await caller.take(session_id, 1, after=before)
        assert again[0].id != before


async def test_paused_owner_never_speaks_again(nodes: Nodes) -> None:
    """After SIGSTOP for three leases another node has taken over, and the one that wakes shows and acknowledges
    nothing."""
    a, b = nodes.start(2)
    async with Caller(a.url) as caller:
        session_id = (await caller.open())["id"]
    async with Follower(session_id, [b.url]) as reader:
        await ask(b.url, session_id, "Hello")
        a.pause()
        await reader.until("gateway.recovered")
        await asyncio.sleep(2 * LEASE_SECONDS)
        a.go_on()
        await ask(b.url, session_id, "Still there?")
        async with asyncio.timeout(20):
            while "session_fenced" not in a.program.output:
                await asyncio.sleep(0.05)
        through_a = await ask(a.url, session_id, "And through the old one?")

        assert through_a
        await reader.until("response.done", 3)
        assert not reader.gaps
        assert len(reader.of("gateway.recovered")) == 1


async def test_redis_that_is_away_ends_nothing(nodes: Nodes, redis_server: RedisServer) -> None:
    """While Redis is stopped for three leases, POSTs are refused without effect; everything continues when it is
    back."""
    a, b = nodes.start(2)
    async with Caller(a.url) as caller:
        session_id = (await caller.open())["id"]
        async with Follower(session_id, [a.url, b.url]) as reader:
            await ask(b.url, session_id, "Hello")
            await reader.until("response.done")
            headers = {"Content-Type": "text/plain", "Accept": "application/json"}
            asking = asyncio.create_task(
                caller.ask("POST", f"/v1/sessions/{session_id}/turns", "Count to 1000.", headers=headers)
            )
            await reader.until("response.output_text.delta", len(reader.of("response.output_text.delta")) + 1)
            redis_server.pause()
            await asyncio.sleep(3 * LEASE_SECONDS)
            await idle(a, session_id)
            assert not asking.done()  # the answer waits until Redis has all of it
            answer, problem = await caller.ask("POST", f"/v1/sessions/{session_id}/events", say("Unheard"))
            assert answer.status == 503, problem
            assert problem["code"] == "recovering"
            redis_server.go_on()
            turn, whole = await asking
            assert (turn.status, whole["status"]) == (200, "completed")
            assert whole["output_text"].rstrip(".").endswith("1000")
            await asyncio.sleep(1.0)
            await ask(b.url, session_id, "Back again?")
            await reader.until("response.done", 2)

            assert not reader.gaps
            assert "gateway.recovering" not in reader.types()
            assert "session_taken_over" not in nodes.said()


async def test_post_that_met_an_outage_of_redis_is_repeated_with_its_key(
    nodes: Nodes, redis_server: RedisServer
) -> None:
    """A POST that waits when Redis stops is refused with 503, although its events are sent. Its repeat gets the receipt
    of the first request, and nothing is sent twice."""
    node = nodes.begin(GATEWAY_CLUSTER__PATIENCE_SECONDS="1").ready()
    headers = {"Idempotency-Key": "a-key-that-nobody-can-guess"}
    async with Caller(node.url) as caller:
        session_id = (await caller.open())["id"]
        path, item = f"/v1/sessions/{session_id}/events", say("Hello")[0]
        async with Follower(session_id, [node.url]) as reader:
            redis_server.pause()
            refused, problem = await caller.ask("POST", path, item, headers=headers)
            assert (refused.status, problem["code"]) == (503, "recovering")
            redis_server.go_on()
            await reader.until("conversation.item.added")
            again, receipt = await caller.ask("POST", path, item, headers=headers)
            other = await caller.send(session_id, say("Hello")[0])
            await reader.until("conversation.item.added", 2)

            assert (again.status, again.headers["Idempotency-Replayed"]) == (202, "true")
            assert (receipt["first"], receipt["last"], other["first"]) == (1, 1, 2)
            assert len(reader.of("conversation.item.added")) == 2


async def test_redis_that_comes_back_empty_is_filled_by_the_owners(
    nodes: Nodes, redis_server: RedisServer
) -> None:
    """When Redis is killed and started empty, sessions continue, and a node that dies afterwards is still replaced."""
    a, b = nodes.start(2)
    async with Caller(a.url) as caller:
        session_id = (await caller.open())["id"]
    async with Follower(session_id, [b.url]) as reader:
        await ask(b.url, session_id, "My name is Ada.")
        redis_server.kill()
        await asyncio.sleep(0.5)
        redis_server.start()
        await asyncio.sleep(2.0)
        await ask(b.url, session_id, "Hello again")
        async with asyncio.timeout(20):
            while "journal_repaired" not in a.program.output:
                await asyncio.sleep(0.05)
            while redis_server.cli("HLEN", "rg:{nodes}") != "2":
                await asyncio.sleep(0.05)
        a.program.kill()
        assert "Ada" in await ask(b.url, session_id, "What is my name?")
        await reader.until("response.done", 3)

        assert not reader.gaps


async def test_rolling_restart_is_a_reconnect(nodes: Nodes) -> None:
    """Three nodes are replaced in turn: no answer of 500 or above, no response cut, no event missing."""
    running = nodes.start(3)
    urls = [node.url for node in running]
    statuses: list[str] = []
    sessions = []
    for number in range(6):
        async with Caller(urls[number % 3]) as caller:
            sessions.append((await caller.open())["id"])
    stop = asyncio.Event()

    async def talk(session_id: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            item = {
                "type": "message",
                "role": "system",
                "content": [{"type": "input_text", "text": str(number)}],
            }
            event = {"type": "conversation.item.create", "item": item}
            async with Caller(urls[number % len(urls)]) as caller:
                answer, said = await caller.ask("POST", f"/v1/sessions/{session_id}/events", event)
                statuses.append(f"{answer.status} {said.get('code')} {said.get('detail')}")
            await asyncio.sleep(0.2)

    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(Follower(one, urls)) for one in sessions]
        talking = [asyncio.create_task(talk(one)) for one in sessions]
        for old in list(running):
            new = nodes.begin().ready()
            urls.append(new.url)
            urls.remove(old.url)
            await asyncio.sleep(0.5)
            old.terminate()
            await old.ended()
        await asyncio.sleep(1.0)
        stop.set()
        await asyncio.gather(*talking)
        for reader in readers:
            assert not reader.gaps
            assert "gateway.closed" not in reader.types()
            assert {event["cause"] for event in reader.of("gateway.recovered")} == {"handover"}

    assert len(statuses) > 30
    assert {status[:3] for status in statuses} == {"202"}, Counter(statuses)


async def test_operator_sees_all_nodes_and_all_sessions(nodes: Nodes) -> None:
    """`GET /nodes` works on any node, and so do list, GET, restart and DELETE of a session on another node."""
    a, b = nodes.start(2)
    async with Caller(a.url) as one, Caller(b.admin_url) as operator:
        session_id = (await one.open())["id"]
        listed: dict[str, Any] = {"data": []}
        async with asyncio.timeout(20):
            while [node["sessions"] for node in listed["data"] if not node["self"]] != [1]:
                _, listed = await operator.ask("GET", "/nodes")
        _, sessions = await operator.ask("GET", "/sessions")
        _, looked = await operator.ask("GET", f"/sessions/{session_id}")
        deleted, _ = await operator.ask("DELETE", f"/sessions/{session_id}")
        again, _ = await operator.ask("GET", f"/sessions/{session_id}")

    assert [node["state"] for node in listed["data"]] == ["live", "live"]
    assert [one["id"] for one in sessions["data"]] == [session_id]
    assert looked["diagnostics"]["accepted"] == 0
    assert deleted.status == 204
    assert again.status == 200


async def test_create_is_done_once_however_many_nodes_are_asked(nodes: Nodes) -> None:
    """The same Idempotency-Key on two nodes gives one session with the same credentials."""
    a, b = nodes.start(2)
    headers = {"Idempotency-Key": "a-key-that-nobody-can-guess"}
    async with Caller(a.url) as one, Caller(b.url) as other:
        first, made = await one.ask("POST", "/v1/sessions", {}, headers=headers)
        again, same = await other.ask("POST", "/v1/sessions", {}, headers=headers)

    assert (first.status, again.status) == (201, 201)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (same["id"], same["client_secret"]) == (made["id"], made["client_secret"])


async def test_limits_of_a_key_hold_over_all_nodes(nodes: Nodes) -> None:
    """Sessions per minute that were opened on one node count on the other, and so do the tokens of a day."""
    rule = {
        "name": "ann",
        "sha256": [hashlib.sha256(b"key").hexdigest()],
        "sessions_per_minute": 2,
        "tokens_per_day": 1,
    }
    a, b = [node.ready() for node in [nodes.begin(GATEWAY_ACCESS__KEYS=json.dumps([rule])) for _ in range(2)]]
    headers = {"Authorization": "Bearer key"}
    async with Caller(a.url) as one, Caller(b.url) as other:
        made = [await caller.ask("POST", "/v1/sessions", {}, headers=headers) for caller in (one, other, one)]
        spender, waiter = (f"/v1/sessions/{said['id']}/turns" for _, said in made[:2])
        text = {**headers, "Content-Type": "text/plain"}
        spent, _ = await one.ask("POST", spender, "Hello", headers=text)
        async with asyncio.timeout(10):
            while True:
                refused, why = await other.ask("POST", waiter, "Hello", headers=text)
                if refused.status != 200:
                    break

    assert [answer.status for answer, _ in made] == [201, 201, 429]
    assert spent.status == 200
    assert (refused.status, why["limit"]) == (429, "1 tokens")


async def idle(node: Node, session_id: str) -> None:
    """Wait until no response of a session is active on its node."""
    async with Caller(node.admin_url) as operator, asyncio.timeout(20):
        while (await operator.ask("GET", f"/sessions/{session_id}"))[1]["diagnostics"]["responses_active"]:
            await asyncio.sleep(0.05)


async def owner_of(running: list[Node], session_id: str) -> Node:
    """Wait until a node has logged that it opened the session, which it does in the background, and return that node."""
    async with asyncio.timeout(10):
        while not (owners := [node for node in running if session_id in node.program.output]):
            await asyncio.sleep(0.02)
    return owners[0]


async def test_turn_in_its_own_session_is_repeated_after_its_node_was_lost(nodes: Nodes) -> None:
    """The repeat at another node finds the session that was opened for it, and gets its answer there."""
    running = nodes.start(2)
    headers = {"Idempotency-Key": "a-key-that-nobody-can-guess", "Content-Type": "text/plain"}
    stream = {**headers, "Accept": "application/x-ndjson"}
    async with Caller(running[0].url) as caller:
        url = f"{running[0].url}/v1/turns"
        async with caller.http.post(url, data="Count to 300.", headers=stream) as answer:
            session_id = json.loads(await answer.content.readline())["event"]["session_id"]
            owner = await owner_of(running, session_id)
            owner.program.kill()
    [left] = [node for node in running if node is not owner]
    async with Caller(left.url) as caller, asyncio.timeout(40):
        while True:
            again, said = await caller.ask(
                "POST", "/v1/turns", "Count to 300.", headers={**headers, "Accept": "application/json"}
            )
            if again.status == 200:
                break
            assert again.status in (409, 502, 503), said
            await asyncio.sleep(0.1)

    assert said["session_id"] == session_id
    assert said["status"] == "completed"


async def test_workers_share_one_port(tmp_path: Path, far_end: FarEnd, redis_server: RedisServer) -> None:
    """With `serve --workers 2` either worker serves any session, whichever accepts the connection, also after the one that
    owns it is killed. They connect over unix sockets in a folder that only this user can open."""
    environ = {
        "GATEWAY_CLUSTER__URL": redis_server.url,
        "GATEWAY_CLUSTER__LEASE_SECONDS": str(LEASE_SECONDS),
        "GATEWAY_ACCESS__SIGNING_KEY": SIGNING_KEY,
        "GATEWAY_DRAIN__TIMEOUT_SECONDS": "1",
    }
    flags = ("--workers", "2", "--port", "0", "--admin-port", "0", "--upstream-url", far_end.base_url)
    program = Program(tmp_path / "workers.log", "gateway", "serve", *flags, environ=environ)
    try:
        url = program.said(r"(?<!admin )listening on (http://[\w.:]+)")
        async with asyncio.timeout(40):
            while program.output.count("admin listening") < 2:
                await asyncio.sleep(0.05)
        async with Caller(url) as caller:
            session_id = (await caller.open())["id"]
        async with Follower(session_id, [url]) as reader:
            for number in range(4):
                await ask(url, session_id, f"Hello {number}")
            await reader.until("response.done", 4)
            owner = socket_of_owner(redis_server, session_id)
            assert owner.parent.stat().st_mode & 0o777 == 0o700
            os.kill(pid_of(str(owner)), signal.SIGKILL)
            await reader.until("gateway.recovered")
            await ask(url, session_id, "Hello again")
            await reader.until("response.done", 5)
            assert not reader.gaps
        assert socket_of_owner(redis_server, session_id) != owner
        assert program.stop(30) == 0
        assert not owner.parent.exists()
    finally:
        program.stop()


def socket_of_owner(redis: RedisServer, session_id: str) -> Path:
    """Return the unix socket of the worker that has a session."""
    node = redis.cli("HGET", f"rg:{{{session_id}}}:m", "node")
    return Path(json.loads(redis.cli("HGET", "rg:{nodes}", node))["socket"])


def pid_of(word: str) -> int:
    """Return the process whose command line contains a word."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # ended meanwhile
            if word.encode() in file.read_bytes().split(b"\0"):
                return int(file.parent.name)
    raise AssertionError(f"no process has {word!r}")


def test_workers_without_a_cluster_are_refused(tmp_path: Path) -> None:
    """Several workers need a cluster, because otherwise each session would be known to one worker only."""
    program = Program(tmp_path / "log", "gateway", "serve", "--workers", "2")

    assert program.process.wait(30) == 2
    assert "cluster.url" in program.output
