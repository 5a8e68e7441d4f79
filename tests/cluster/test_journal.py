"""The journal against a real Redis: fence, settle, check and repair."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest

from gateway.cluster import beat, claims
from gateway.cluster.claims import Stored, TakenError
from gateway.cluster.connections import AwayError
from gateway.cluster.journal import RedisJournal
from gateway.errors import OverloadError
from gateway.relay.events.records import Accepted, ServerEvent, decode
from gateway.relay.journal import Location, Promised
from gateway.relay.requests import Principal
from tests.cluster.kit import FakeSession, node, opened, told
from tests.cluster.redis_server import Proxy, RedisServer
from tests.waiting import until

StartRedis = Callable[..., RedisServer]


def events(records: Iterable[bytes]) -> list[ServerEvent]:
    """List the server events among encoded records."""
    return [record for record in map(decode, records) if isinstance(record, ServerEvent)]


def texts(records: Iterable[bytes]) -> list[str]:
    """List what server events among encoded records say."""
    return [event.text for event in events(records)]


async def test_what_is_flushed_is_read_by_who_claims_it(redis_server: RedisServer) -> None:
    """A node that claims a session finds the snapshot and, in order, every later record."""
    async with node(redis_server.url) as a, node(redis_server.url) as b:
        session = await opened(a, "gws_1")
        for number in range(5):
            session.say(f"word {number}")
        await session.accept()

        stored = await b.directory.claims.one("gws_1", a.id)

        assert stored.snapshot == b"0 1"
        assert texts(stored.before) == ["greeting"]
        assert texts(stored.after) == [f"word {number}" for number in range(5)]
        assert stored.principal == "one"


async def test_old_owner_is_fenced_by_its_next_append(redis_server: RedisServer) -> None:
    """After a claim, nothing that the former owner appends is kept or acknowledged, and it learns of the claim."""
    async with node(redis_server.url) as a, node(redis_server.url) as b:
        session = await opened(a, "gws_1")
        await b.directory.claims.one("gws_1", a.id)
        session.say("too late")

        with pytest.raises(OverloadError):
            await session.accept()

        assert session.was_fenced
        assert session.shown == 1
        assert told(a).fences == 1
        assert not session.journal.sure


async def test_a_node_that_was_paused_learns_of_a_new_owner_when_it_asks(redis_server: RedisServer) -> None:
    """A session on which nothing is appended is given up as soon as Redis is asked, and not called this node's own."""
    async with node(redis_server.url) as a, node(redis_server.url) as b:
        session = await opened(a, "gws_1")
        before = await session.journal.owned()
        await b.directory.claims.one("gws_1", a.id)
        sure, owned = session.journal.sure, await session.journal.owned()
        await until(lambda: session.was_fenced)

        assert (before, sure, owned) == (True, True, False)


async def test_a_session_that_redis_has_lost_is_its_owners(redis_server: RedisServer) -> None:
    """Nobody else can have taken it over from a Redis that does not know it."""
    async with node(redis_server.url) as a:
        session = await opened(a, "gws_1")
        redis_server.cli("DEL", "rg:{gws_1}:m")

        assert await session.journal.owned()


async def test_only_one_of_two_claims(redis_server: RedisServer) -> None:
    """Of two nodes that take over the same session, the second learns who was first."""
    async with node(redis_server.url) as a, node(redis_server.url) as b, node(redis_server.url) as c:
        await opened(a, "gws_1")
        await b.directory.claims.one("gws_1", a.id)

        with pytest.raises(TakenError, match=b.id):
            await c.directory.claims.one("gws_1", a.id)


@pytest.mark.slow
async def test_a_claim_that_a_failover_forgot_yields_to_the_next_one(start_redis: StartRedis) -> None:
    """Redis loses a claim before anything was written under it, and another node claims the session: what the second
    node acknowledges stays, and the first node is replaced."""
    first, second = start_redis(), start_redis()
    second.cli("REPLICAOF", "127.0.0.1", str(first.port))
    async with (
        Proxy(first.port) as proxy,
        node(first.url) as a,
        node(proxy.url) as b,
    ):
        await opened(a, "gws_1")
        await until(lambda: "node" in second.cli("HGETALL", "rg:{gws_1}:m"))
        second.cli("REPLICAOF", "NO", "ONE")
        forgotten = await b.directory.claims.one("gws_1", a.id)
        forgotten.journal.claimed(forgotten.fence, forgotten.snapshot_at, 1)
        replaced = FakeSession(forgotten.journal, 1)
        async with node(second.url) as c:
            found = await c.directory.claims.one("gws_1", a.id)
            found.journal.claimed(found.fence, found.snapshot_at, 1)
            owner = FakeSession(found.journal, 1)
            c.take(found.journal)
            await owner.accept()
            proxy._target_port = second.port
            proxy.cut()
            forgotten.journal.appends.unsettled()
            replaced.say("of nobody")
            b.take(forgotten.journal)
            await until(lambda: replaced.was_fenced)
            owner.say("goes on")
            await owner.accept()

            assert forgotten.fence == found.fence
            assert not owner.was_fenced
            assert told(c).repairs == told(b).repairs == []


async def test_connection_cut_under_load_loses_and_doubles_nothing(start_redis: StartRedis) -> None:
    """Whenever the connection is cut, every event is in the journal once and in order, without a repair."""
    server = start_redis()
    async with Proxy(server.port) as proxy, node(proxy.url) as a, node(server.url) as b:
        session = await opened(a, "gws_1")
        for number in range(300):
            session.say(f"{number}")
            if number % 60 == 30:
                proxy.cut()
            await asyncio.sleep(0.001)
        await session.accept()

        stored = await b.directory.claims.one("gws_1", a.id)

        assert texts(stored.after) == [str(number) for number in range(300)]
        assert told(a).repairs == []


async def test_emptied_redis_is_filled_again_by_the_owner(start_redis: StartRedis) -> None:
    """If Redis is killed and starts empty, the owner writes its state and its log again, and continues."""
    server = start_redis()
    async with node(server.url) as a, node(server.url) as b:
        session = await opened(a, "gws_1")
        for number in range(10):
            session.say(f"{number}")
        await session.accept()
        server.kill()
        session.say("while away")
        server.start()
        await session.accept()

        stored = await b.directory.claims.one("gws_1", a.id)

        assert told(a).repairs == ["emptied"]
        assert texts([*stored.before, *stored.after]) == ["greeting", *map(str, range(10)), "while away"]
        accepted = [record for record in map(decode, stored.after) if isinstance(record, Accepted)]
        assert int(stored.snapshot.split()[0]) + len(accepted) == 2


@pytest.mark.slow
async def test_redis_that_forgot_its_last_writes_gets_them_again(start_redis: StartRedis) -> None:
    """If a replica that lacks the last writes is promoted, the owner writes the missing entries again under the same
    numbers."""
    first, second = start_redis(), start_redis()
    second.cli("REPLICAOF", "127.0.0.1", str(first.port))
    await until(lambda: "master_link_status:up" in second.cli("INFO", "replication"))
    async with Proxy(first.port) as proxy, node(proxy.url) as a:
        session = await opened(a, "gws_1")
        session.say("kept")
        await session.accept()
        await until(lambda: second.cli("XLEN", "rg:{gws_1}:j") == first.cli("XLEN", "rg:{gws_1}:j"))
        second.cli("REPLICAOF", "NO", "ONE")
        for number in range(3):
            session.say(f"lost {number}")
            await session.accept()
        proxy._target_port = second.port
        proxy.cut()
        session.say("after")
        await session.accept()
        async with node(second.url) as b:
            stored = await b.directory.claims.one("gws_1", a.id)

        assert told(a).repairs == ["tail"]
        found = {event.sequence: event.text for event in events((*stored.before, *stored.after))}
        assert list(found.values()) == ["greeting", "kept", "lost 0", "lost 1", "lost 2", "after"]
        assert session.shown == 6


async def test_state_is_written_again_after_an_attempt_that_failed(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the failure was, even a bug: a journal that nothing is appended to would refuse requests for ever. What
    waited for the first attempt is not forgotten, even if Redis has the rest again."""
    async with node(redis_server.url) as a:
        session = await opened(a, "gws_1")
        session.say("kept")
        await session.accept()
        script, attempts = a.connections.script, []

        async def failing(text: str, *arguments: Any, **options: Any) -> Any:
            attempts.append(text)
            if len(attempts) == 1:
                raise AttributeError("a bug")
            return await script(text, *arguments, **options)

        monkeypatch.setattr(a.connections, "script", failing)
        session.say("waits")
        a._appender(None)._look_into(session.journal)
        await session.accept()
        records = redis_server.cli("XRANGE", "rg:{gws_1}:j", "-", "+")

        assert len(attempts) == 2
        assert "waits" in records
        assert [type(error) for error in told(a).failures] == [AttributeError]


async def test_a_state_that_is_being_written_is_not_written_twice_at_once(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the connection for appends is lost meanwhile, the state is not written again beside it: the two would fence each
    other, and the session would lose its node."""
    async with node(redis_server.url) as a:
        session = await opened(a, "gws_1")
        session.say("kept")
        await session.accept()
        script, written, go_on = a.connections.script, asyncio.Event(), asyncio.Event()

        async def slow(*arguments: Any, **options: Any) -> Any:
            answer = await script(*arguments, **options)
            if not written.is_set():
                written.set()
                await go_on.wait()
            return answer

        monkeypatch.setattr(a.connections, "script", slow)
        appender = a._appender(None)
        appender._look_into(session.journal)
        await written.wait()
        before = appender._wire
        assert before is not None
        before.drop()
        await until(lambda: appender._wire not in (None, before))
        await until(lambda: not appender._wire or appender._wire.oldest_unanswered is None)
        go_on.set()
        session.say("after")
        await session.accept()

        assert told(a).fences == 0
        assert session.shown == 3


async def test_sessions_that_are_gone_do_not_count_as_unsettled(redis_server: RedisServer) -> None:
    """Nor do those that could not be opened: an alert compares this number with zero."""
    async with node(redis_server.url) as a:
        refused = a.directory.journal("gws_0", "one", "ep00")
        assert isinstance(refused, RedisJournal)
        FakeSession(refused).say("never opened")
        session = await opened(a, "gws_1")
        await session.accept()
        session.say("waits")
        assert told(a).unsettled > 0
        a.drop("gws_1")

        assert told(a).unsettled == 0


async def test_a_connection_that_redis_py_closed_under_a_command_is_an_outage(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises an AttributeError then, when it reads the slot map of a Cluster again."""
    async with node(redis_server.url) as a:

        async def closed(*_: Any) -> None:
            raise AttributeError("'NoneType' object has no attribute 'writelines'")

        monkeypatch.setattr(a.connections._control, "execute_command", closed)
        with pytest.raises(AwayError, match="writelines"):
            await a.connections.command("PING")


async def test_nothing_is_shown_while_redis_is_away_and_all_afterwards(start_redis: StartRedis) -> None:
    """While Redis is stopped, events are not shown and a flush is refused after a time limit; on return everything
    is there."""
    server = start_redis()
    async with node(server.url, patience_seconds=0.3) as a:
        session = await opened(a, "gws_1")
        server.pause()
        session.say("unseen")

        with pytest.raises(OverloadError) as refused:
            await session.journal.flushed()

        assert refused.value.code == "recovering"
        assert session.shown == 1
        await until(lambda: not session.journal.sure)
        server.go_on()
        await until(lambda: session.shown == 2)
        await until(lambda: session.journal.sure)


async def test_more_than_fits_while_away_is_written_again_as_a_whole(
    start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound of unsettled bytes records are dropped; when Redis returns, the owner writes its state
    instead."""
    monkeypatch.setattr("gateway.cluster.journal.MAX_UNSETTLED_BYTES", 5000)
    server = start_redis()
    async with node(server.url) as a, node(server.url) as b:
        session = await opened(a, "gws_1")
        server.kill()
        for number in range(200):
            session.say(f"{number:0100d}")
        assert session.journal.appends.size <= 5200
        server.start()
        await until(lambda: session.shown == 201)

        stored = await b.directory.claims.one("gws_1", a.id)

        assert len({event.sequence for event in events((*stored.before, *stored.after))}) == 201


async def test_journal_is_trimmed_with_the_log_and_the_snapshot(redis_server: RedisServer) -> None:
    """Entries that the log has dropped and the snapshot covers are removed from the stream."""
    async with node(redis_server.url, log_max_bytes=20_000) as a, node(redis_server.url) as b:
        session = await opened(a, "gws_1")
        for number in range(2000):
            session.say(f"{number:0100d}")
            if number % 100 == 99:
                del session.log[:-50]
                session.journal.oldest(session.log[0].sequence)
                await session.journal.flushed()
        length = int(redis_server.cli("XLEN", "rg:{gws_1}:j"))
        stored = await b.directory.claims.one("gws_1", a.id)

        assert length < 500
        kept = {event.sequence for event in events((*stored.before, *stored.after))}
        assert set(range(session.log[0].sequence, 2002)) <= kept


async def test_values_are_sealed_where_encryption_is_on(redis_server: RedisServer) -> None:
    """With cluster.encrypt Redis holds no readable text, and another node with the key can open the values."""
    async with node(redis_server.url, encrypt=True) as a, node(redis_server.url, encrypt=True) as b:
        session = await opened(a, "gws_1")
        session.say("a secret word")
        await session.accept()

        assert "secret" not in redis_server.cli("XRANGE", "rg:{gws_1}:j", "-", "+")
        stored = await b.directory.claims.one("gws_1", a.id)
        assert texts(stored.after) == ["a secret word"]


@pytest.mark.slow
async def test_wait_replicas_acknowledges_nothing_without_a_replica(
    start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With wait_replicas = 1, nothing is acknowledged without a replica: not a create, not what many sessions append, not what
    a new connection finds in Redis, and not a state that was written again. With a replica all of it is."""
    monkeypatch.setattr("gateway.cluster.appender.WAIT_MS", 200)
    monkeypatch.setattr("gateway.cluster.appender.UNANSWERED_SECONDS", 0.5)
    monkeypatch.setattr("gateway.cluster.node._TICK_SECONDS", 0.05)
    server, replica = start_redis("--repl-diskless-sync-delay", "0"), start_redis()
    async with node(server.url, wait_replicas=1, patience_seconds=0.7) as a:
        with pytest.raises(OverloadError):
            await opened(a, "gws_single")
        await a.directory.release("gws_single", "one")
        replica.cli("REPLICAOF", "127.0.0.1", str(server.port))
        await until(lambda: "connected_slaves:1" in server.cli("INFO", "replication"))
        await until(lambda: "master_link_status:up" in replica.cli("INFO", "replication"))
        sessions = [await opened(a, f"gws_{number}") for number in range(4)]
        replica.cli("REPLICAOF", "NO", "ONE")
        await until(lambda: "connected_slaves:0" in server.cli("INFO", "replication"))

        async def refused(session: FakeSession) -> bool:
            with suppress(OverloadError):
                await session.journal.flushed()
                return False
            return True

        for session in sessions:
            session.say("one copy")
            await asyncio.sleep(0.02)  # each in an append of its own
        assert all(await asyncio.gather(*map(refused, sessions)))
        appender = a._appender(None)
        assert appender._wire is not None
        appender._wire.drop()
        assert all(await asyncio.gather(*map(refused, sessions)))
        appender._look_into(sessions[0].journal)
        assert await refused(sessions[0])
        replica.cli("REPLICAOF", "127.0.0.1", str(server.port))

        await until(lambda: all(session.shown == 2 for session in sessions))
        assert told(a).ups == [True, False, True]


async def test_limit_of_sessions_counts_over_all_nodes(redis_server: RedisServer) -> None:
    """A key's concurrent sessions are counted in Redis over all nodes, and the places of sessions that are gone are
    freed."""
    key = Principal("one", max_sessions=2)
    async with node(redis_server.url) as a, node(redis_server.url) as b:
        await opened(a, "gws_1")
        await opened(b, "gws_2")
        with pytest.raises(OverloadError) as refused:
            await b.directory.reserve("gws_3", key)
        assert refused.value.code == "session-limit"
        redis_server.cli("DEL", "rg:{gws_1}:m")
        redis_server.cli("ZADD", "rg:l:one", "1", "gws_1")  # opened long ago
        b.directory._pruned_at.clear()

        await b.directory.reserve("gws_3", key)


async def test_sessions_that_are_gone_leave_the_list_when_it_is_read(redis_server: RedisServer) -> None:
    """Redis may have been away when they were removed, or all nodes until their keys had expired."""
    async with node(redis_server.url) as a:
        await opened(a, "gws_1")
        redis_server.cli("ZADD", "rg:k:one", "1", "gws_gone")

        assert await a.directory.sessions_of("one") == ["gws_1"]


async def test_closed_sessions_leave_the_lists(redis_server: RedisServer) -> None:
    """A closed session does not count against the limit, and all of it is removed after its retention."""
    async with node(redis_server.url) as a:
        session = await opened(a, "gws_1")
        one = Principal("one", max_sessions=1)
        with pytest.raises(OverloadError, match="1 sessions at once"):
            await a.directory.reserve("gws_2", one)
        session.journal.seal(60.0)
        await until(lambda: redis_server.cli("ZCARD", "rg:l:one") == "0")
        await a.directory.reserve("gws_2", one)
        listed = await a.directory.sessions_of("one")
        await a.directory.release("gws_1", "one")
        left = redis_server.cli("KEYS", "*gws_1*") + redis_server.cli("SMEMBERS", f"rg:n:{a.id}")

        assert listed == ["gws_1"]
        assert left == ""
        assert not a.holds("gws_1")
        assert await a.directory.sessions_of("one") == []


async def test_retention_of_a_closed_session_is_that_of_its_keys(redis_server: RedisServer) -> None:
    """The keys expire with the session's retention, also after a takeover that had extended it; a session that is
    kept for ever is renewed like an open one."""
    async with node(redis_server.url) as a, node(redis_server.url) as b:
        for session_id, seconds in (("gws_1", 60.0), ("gws_2", float("inf"))):
            await opened(a, session_id)
            stored = await b.directory.claims.one(session_id, a.id)
            stored.journal.claimed(stored.fence, stored.snapshot_at, 1)
            FakeSession(stored.journal, 1)
            stored.journal.seal(seconds)
            b.take(stored.journal)
        await b._renew_expiry()
        short, long = (int(redis_server.cli("PTTL", f"rg:{{{one}}}:m")) for one in ("gws_1", "gws_2"))

    assert short <= 60_001
    assert long > 3_000_000


async def test_promise_is_made_once_over_all_nodes(redis_server: RedisServer) -> None:
    """The first request with an Idempotency-Key may continue, the second gets the first one's session, and one with
    another body is refused."""
    from gateway.errors import CallerError

    async with node(redis_server.url) as a, node(redis_server.url) as b:
        assert await a.directory.promise("one", "k", "f1", "gws_1") is None
        assert await b.directory.promise("one", "k", "f1", "gws_2") == Promised("gws_1", None)
        await a.directory.keep_promise("one", "k", "f1", "gws_1", b'{"a": 1}')
        assert await b.directory.promise("one", "k", "f1", "gws_2") == Promised("gws_1", b'{"a": 1}')
        with pytest.raises(CallerError):
            await b.directory.promise("one", "k", "f2", "gws_2")
        await a.directory.break_promise("one", "k", "gws_1")
        assert await b.directory.promise("one", "k", "f1", "gws_2") is None
        await a.directory.break_promise(
            "one", "k", "gws_1"
        )  # of two repeats that found the session gone, the later one
        assert await a.directory.promise("one", "k", "f1", "gws_3") == Promised("gws_2", None)


def test_fake_session_is_an_owner() -> None:
    """The fake session has every method of the port, so tests that use it also hold for a real session."""
    from gateway.relay.journal import JournalOwner

    assert {name for name in vars(JournalOwner) if not name.startswith("_")} <= set(dir(FakeSession))


async def test_promise_of_a_node_that_is_lost_passes_to_the_next_request(redis_server: RedisServer) -> None:
    """A node that died while it opened the session does not keep the key from being used."""
    async with node(redis_server.url) as b:
        name = b.keys.promise("one", "k")
        redis_server.cli("SET", name, "f1 gws_1 n_dead", "PX", "100000")

        assert await b.directory.promise("one", "k", "f1", "gws_2") is None
        await b.directory.keep_promise("one", "k", "f1", "gws_2", b"{}")
        assert await b.directory.promise("one", "k", "f1", "gws_3") == Promised("gws_2", b"{}")


async def test_sessions_that_are_claimed_together_are_read_in_portions(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A portion holds so many bytes, or one session with more."""
    async with node(redis_server.url) as a, node(redis_server.url) as b:
        ids = [f"gws_{number}" for number in range(4)]
        for session_id in ids:
            session = await opened(a, session_id)
            session.say("x" * 3000 if session_id == "gws_1" else "x")
            await session.accept()
        monkeypatch.setattr(claims, "READ_BYTES", 3000)
        read, portions = b.directory.claims._read, list[int]()

        async def counted(won: Any) -> Any:
            portions.append(len(won))
            return await read(won)

        b.directory.claims._read = counted  # type: ignore[method-assign]
        found = await b.directory.claims.many(["gws_none", *ids], a.id)

        assert [type(one).__name__ for one in found] == ["GoneError", *["Stored"] * 4]
        assert [one.session_id for one in found if isinstance(one, Stored)] == ids
        assert sum(portions) == 4
        assert len(portions) > 1


async def test_data_that_a_running_redis_lost_is_written_again_at_once(redis_server: RedisServer) -> None:
    """After FLUSHALL no connection breaks, and an idle session appends nothing: the next heartbeat shows the loss."""
    async with node(redis_server.url, lease_seconds=1.0) as a:
        await opened(a, "gws_1")
        connected = a._appender(None)._wire
        await until(
            lambda: connected is not None and connected.made_at + 0.3 < a._appender(None)._loop.time()
        )
        await a.beat.once()
        redis_server.cli("FLUSHALL")

        await until(lambda: told(a).repairs == ["emptied"])
        assert redis_server.cli("EXISTS", "rg:{gws_1}:j", "rg:n:" + a.id) == "2"


async def test_a_session_is_not_gone_while_owners_write_again_what_redis_lost(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node asks the last known owner, or waits; once the owners had their time, a missing session is gone."""
    async with node(redis_server.url) as a, node(redis_server.url) as b:
        await opened(a, "gws_1")
        await until(lambda: b.beat.lives(a.id))
        assert await b.directory.locate("gws_2") is None
        before = await b.directory.locate("gws_1")
        for _ in range(2):  # before and after this node's next heartbeat
            redis_server.cli("DEL", *(f"rg:{{gws_1}}:{key}" for key in "jms"))
            redis_server.cli("HDEL", "rg:{nodes}", b.id)
            found = await b.directory.locate("gws_1", fresh=True)
            both = await b.directory.locate_all(["gws_1", "gws_2"])
            assert (found, both[0]) == (before, before)
            assert both[1] == Location("", None, live=False)
            await b.beat.once()
        monkeypatch.setattr(beat, "FORGOTTEN_SECONDS", 0.0)

        assert await b.directory.locate("gws_1", fresh=True) is None
        assert await b.directory.locate_all(["gws_1"]) == [None]


async def test_sessions_of_the_same_second_are_listed_newest_first(redis_server: RedisServer) -> None:
    """A list is cut at its limit, so a new session must not be behind others of its second."""
    async with node(redis_server.url) as a:
        for session_id in ("gws_b", "gws_c", "gws_a"):
            await opened(a, session_id)

        assert await a.directory.sessions_of("one") == ["gws_a", "gws_c", "gws_b"]
