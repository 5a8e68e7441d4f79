"""Requests for a session of another node: the same answers as from its owner."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from gateway.downstream.peers import lines
from gateway.downstream.peers.elsewhere import Elsewhere
from gateway.downstream.peers.splice import UnreachableError
from gateway.relay.journal import Peer
from tests.downstream.peers.conftest import Pair
from tests.downstream.streams import event, reading
from tests.downstream.turns.test_resource import Model
from tests.waiting import until

SAY = {"type": "response.create"}
JSON = {"Accept": "application/json"}
PEERS = "gateway.downstream.peers"
PART = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"


async def test_post_is_answered_by_the_owner(pair: Pair) -> None:
    """The receipt is the owner's, and its far end received the bytes unchanged."""
    session_id = await pair.open()

    answer = await pair.edge.call("POST", f"/v1/sessions/{session_id}/events", data=b'{"type": "x",  "a": 1}')

    assert answer.status == 202
    assert answer.json["accepted"] == 1
    assert pair.owner.far_end.sent == ['{"type": "x",  "a": 1}']
    assert answer.headers["Cache-Control"] == "no-store"


async def test_connections_to_the_owner_are_kept(pair: Pair) -> None:
    """Consecutive requests share a connection to the owner, which is checked before each use."""
    session_id = await pair.open()
    for _ in range(5):
        assert (await pair.edge.call("GET", f"/v1/sessions/{session_id}")).status == 200

    elsewhere = pair.edge.parts.elsewhere
    assert elsewhere is not None
    assert [len(lines) for lines in elsewhere._lines._kept.values()] == [1]
    [[(_, line)]] = elsewhere._lines._kept.values()
    line.close()
    assert (await pair.edge.call("GET", f"/v1/sessions/{session_id}")).status == 200


async def test_stream_is_spliced_byte_for_byte(pair: Pair) -> None:
    """A stream through another node has the same blocks as one at the owner, without delay, and ends with it."""
    session_id = await pair.open()
    url = f"{pair.edge.url}/v1/sessions/{session_id}/events"
    async with reading(pair.edge.http, url) as read:
        assert (await read.next()).name == "gateway.open"
        assert json.loads((await read.next()).data or "")["type"] == "session.created"
        sink = pair.owner.far_end.sink
        assert sink is not None
        for number in range(3):
            text = event(delta=str(number))
            sink.received(0, text)
            assert (await read.next()).data == text
        assert (await pair.edge.call("DELETE", f"/v1/sessions/{session_id}")).status == 204
        assert (await read.next()).name == "gateway.closed"
        assert await read.answer.content.read() == b""
        assert read.answer.headers["Connection"] == "close"


async def test_workers_of_one_command_reach_each_other_over_unix_sockets(pair: Pair, tmp_path: Path) -> None:
    """Requests and streams are forwarded over the socket as over TCP; another process can use neither without a signature."""
    session_id = await pair.open()
    socket = tmp_path / "owner"
    pair.table.urls["owner"] = f"unix:{socket}"
    async with reading(pair.edge.http, f"{pair.edge.url}/v1/sessions/{session_id}/events") as read:
        assert (await read.next()).name == "gateway.open"
        answer = await pair.edge.call("POST", f"/v1/sessions/{session_id}/events", data=json.dumps(SAY))
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as stranger,
        stranger.get(f"http://node/v1/sessions/{session_id}") as refused,
    ):
        status = refused.status
    await pair.owner.server.close()

    assert answer.status == 202
    assert status == 403
    assert not socket.exists()


async def test_client_that_leaves_ends_the_owners_stream(pair: Pair) -> None:
    """When the client leaves, the owner no longer counts a receiver."""
    session_id = await pair.open()
    async with reading(pair.edge.http, f"{pair.edge.url}/v1/sessions/{session_id}/events") as read:
        await read.next()
        assert (await pair.edge.call("GET", f"/v1/sessions/{session_id}")).json["receivers"] == 1

    async with asyncio.timeout(10):
        while (await pair.edge.call("GET", f"/v1/sessions/{session_id}")).json["receivers"]:
            await asyncio.sleep(0.02)


async def test_http_1_0_reader_gets_no_chunks(pair: Pair) -> None:
    """An HTTP/1.0 reader gets no chunks, also through another node."""
    session_id = await pair.open()
    at = urlsplit(pair.edge.url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    writer.write(f"GET /v1/sessions/{session_id}/events HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"chunked" not in head
        assert (await reader.readline()).startswith((b"retry:", b":"))
    writer.close()


async def test_long_poll_head_and_ticket_pass(pair: Pair) -> None:
    """Answers with a length, answers without a body, and requests with a ticket pass through another node."""
    session_id = await pair.open()
    path = f"/v1/sessions/{session_id}/events"

    poll = await pair.edge.call("GET", path + "?wait=0", headers={"Accept": "application/json"})
    head = await pair.edge.call("HEAD", path)
    ticket = (await pair.edge.call("POST", f"/v1/sessions/{session_id}/tickets")).json["ticket"]
    by_ticket = await pair.edge.call("GET", f"{path}?format=json&wait=0&ticket={ticket}")

    assert [one["event"]["type"] for one in poll.json["events"]] == ["session.created"]
    assert head.status == 200
    assert head.headers["Content-Type"].startswith("text/event-stream")
    assert by_ticket.json["cursor"] == poll.json["cursor"]


async def test_problem_of_the_owner_passes_as_it_is(pair: Pair) -> None:
    """A problem keeps the path and the request id of the client's request."""
    session_id = await pair.open()
    path = f"/v1/sessions/{session_id}/events"

    answer = await pair.edge.call("POST", path, data=b"{", headers={"X-Request-Id": "mine"})

    assert answer.code == "invalid-json"
    assert answer.json["instance"] == path
    assert answer.headers["X-Request-Id"] == "mine"


async def test_session_that_nobody_knows_is_404(pair: Pair) -> None:
    """A session unknown to all nodes is 404, as with one process."""
    answer = await pair.edge.call("POST", "/v1/sessions/gws_nobody/events", data=b"{}")

    assert answer.code == "session-unknown"


async def test_session_that_redis_has_lost_is_found_at_its_owner(pair: Pair) -> None:
    """After a failover its owner writes it again a moment later; until then it must not be called unknown."""
    session_id = await pair.open()
    pair.table.owners.clear()
    pair.table.peers = [
        Peer("gone", "http://127.0.0.1:1", serving=True, room=1),
        Peer("edge", pair.table.urls["edge"], serving=True, room=1),
        Peer("owner", pair.table.urls["owner"], serving=True, room=1),
    ]

    posted = await pair.edge.call("POST", f"/v1/sessions/{session_id}/events", json=SAY)
    unknown = await pair.edge.call("GET", "/v1/sessions/gws_%2F..%3F")

    assert posted.status == 202
    assert unknown.code == "session-unknown"


async def test_owner_that_cannot_be_reached_is_waited_for_and_then_503(pair: Pair) -> None:
    """After `patience_seconds` the client gets 503 with `Retry-After`, and the request had no effect."""
    session_id = await pair.open()
    pair.table.owners[session_id] = "gone"

    answer = await pair.edge.call("POST", f"/v1/sessions/{session_id}/events", json=SAY)

    assert answer.code == "recovering"
    assert answer.headers["Retry-After"] == "1"
    assert pair.owner.far_end.sent == []


async def test_request_waits_for_the_next_owner(pair: Pair) -> None:
    """If another node takes the session over during the request, the client only sees a slow answer."""
    session_id = await pair.open()
    pair.table.owners[session_id] = "gone"
    asked = asyncio.create_task(pair.edge.call("POST", f"/v1/sessions/{session_id}/events", json=SAY))
    await pair.table.asked.wait()
    await asyncio.sleep(0.2)
    pair.table.owners[session_id] = "owner"

    assert (await asked).status == 202


async def test_request_waits_for_the_heartbeat_of_an_owner_that_has_just_joined(pair: Pair) -> None:
    """Redis names an owner that this node has not seen yet: its address is known with the next heartbeat."""
    session_id = await pair.open()
    url = pair.table.urls.pop("owner")
    asked = asyncio.create_task(pair.edge.call("POST", f"/v1/sessions/{session_id}/events", json=SAY))
    await pair.table.asked.wait()
    await asyncio.sleep(0.05)
    pair.table.urls["owner"] = url

    assert (await asked).status == 202


async def test_node_that_is_not_the_owner_says_so(pair: Pair) -> None:
    """A stale look-up leads to another look-up, never to a wrong answer."""
    session_id = await pair.open()
    pair.table.owners[session_id] = "edge"
    asked = asyncio.create_task(pair.edge.call("GET", f"/v1/sessions/{session_id}"))
    await pair.table.asked.wait()
    await asyncio.sleep(0.1)
    pair.table.owners[session_id] = "owner"

    assert (await asked).json["id"] == session_id


async def test_stranger_is_refused_by_the_internal_listener(pair: Pair) -> None:
    """The internal listener refuses requests without a signature or with one for something else."""
    session_id = await pair.open()
    url = f"{pair.owner.server.peers_url}/v1/sessions/{session_id}"
    elsewhere = pair.edge.parts.elsewhere
    assert elsewhere is not None
    signed = dict(elsewhere._signed("GET", f"/v1/sessions/{session_id}", "1", b""))
    posted = dict(elsewhere._signed("POST", f"/v1/sessions/{session_id}/events", "1", b'{"type":"a"}'))

    assert (await pair.edge.call("GET", url)).code == "forbidden"
    assert (await pair.edge.call("GET", url, headers={"X-Gateway-Peer": "1 2 3"})).code == "forbidden"
    assert (await pair.edge.call("GET", url, headers=signed)).status == 200
    assert (await pair.edge.call("DELETE", url, headers=signed)).code == "forbidden"
    assert (
        await pair.edge.call("POST", url + "/events", headers=posted, data=b'{"type":"b"}')
    ).code == "forbidden"
    assert pair.owner.far_end.sent == []


async def test_streams_through_a_node_that_ends_are_rotated_by_their_owner(pair: Pair) -> None:
    """The client sees a clean end with `gateway.rotating`, and a long-poll its answer; nothing is cut."""
    session_id = await pair.open()
    path = f"/v1/sessions/{session_id}/events"
    async with reading(pair.edge.http, f"{pair.edge.url}{path}?after=now") as read:
        await read.next()
        poll = asyncio.create_task(pair.edge.call("GET", f"{path}?format=json&after=now&wait=20"))
        async with asyncio.timeout(3):
            while (await pair.edge.call("GET", f"/v1/sessions/{session_id}")).json["receivers"] < 2:
                await asyncio.sleep(0.02)
        await pair.edge.server.finish(5)

        assert [block.name for block in await read.rest()] == ["gateway.rotating"]
        assert (await poll).json["events"] == []


async def test_reader_with_a_ticket_is_told_in_its_stream(pair: Pair) -> None:
    """An `EventSource` stops at an error status, so if the owner cannot be reached it gets 200 and `gateway.error`."""
    session_id = await pair.open()
    path = f"/v1/sessions/{session_id}/events"
    ticket = (await pair.edge.call("POST", f"/v1/sessions/{session_id}/tickets")).json["ticket"]
    pair.table.owners[session_id] = "gone"

    told = await pair.edge.call("GET", f"{path}?ticket={ticket}")
    refused = await pair.edge.call("GET", f"{path}?ticket={ticket}&errors=status")

    assert told.status == 200
    assert b"event: gateway.error" in told.body
    assert b'"code":"recovering"' in told.body
    assert refused.code == "recovering"


# --- nodes that do not answer -----------------------------------------------------------------------------------------


@asynccontextmanager
async def scripted(pair: Pair, *answers: bytes | None) -> AsyncIterator[list[bytes]]:
    """Run a node that owns the session `gws_1` and gives these answers, one to each request; None closes the connection, and
    nothing more comes after the last one. Yield the heads of the requests."""
    heads, left, open_ = list[bytes](), list(answers), list[asyncio.StreamWriter]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                if not left:
                    continue
                answer = left.pop(0)
                if answer is None:
                    await asyncio.sleep(0.5)
                    break
                writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pair.table.owners["gws_1"] = "scripted"
    pair.table.urls["scripted"] = f"http://127.0.0.1:{port}"
    try:
        yield heads
    finally:
        server.close()
        for writer in open_:
            writer.close()


def forwarding(pair: Pair) -> Elsewhere:
    """Return what forwards the requests of the edge."""
    assert pair.edge.parts.elsewhere is not None
    return pair.edge.parts.elsewhere


async def test_a_turn_may_take_longer_than_other_answers(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of a JSON answer to a turn comes with its end."""
    monkeypatch.setattr(f"{PEERS}.elsewhere.HEAD_SECONDS", 0.1)
    forwarding(pair)._patience = 0.1
    session_id, model = await pair.open(), Model(pair.owner)
    asking = asyncio.create_task(
        pair.edge.call("POST", f"/v1/sessions/{session_id}/turns", json={"input": "Hello"}, headers=JSON)
    )
    await model.asked()
    await asyncio.sleep(0.4)
    await model.answer("Hi")

    assert (await asking).json["output_text"] == "Hi"


async def test_a_node_that_does_not_answer_does_not_delay_a_stop(pair: Pair) -> None:
    """A node that stops asks others to end the reads that pass through it, and does not wait long for an answer."""
    forwarding(pair)._patience = 0.1
    async with scripted(pair) as heads:
        asking = asyncio.create_task(pair.edge.call("GET", "/v1/sessions/gws_1"))
        await until(lambda: bool(heads))
        async with asyncio.timeout(3):
            await forwarding(pair).finish(0.3)
    assert (await asking).code == "recovering"


async def test_a_request_that_is_given_up_closes_its_connection(pair: Pair) -> None:
    """The answer may come later, when nobody reads it."""
    peer = Peer("scripted", "", serving=True, room=1)
    async with scripted(pair, b"HTTP/1.1 204 No Content\r\n\r\n", PART) as heads:
        peer = replace(peer, url=pair.table.urls["scripted"])
        nodes = forwarding(pair)
        assert (await nodes.fetch(peer, "GET", "/1"))[0] == 204
        for path in ("/2", "/3"):  # the second answer is cut short, the third one does not come
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await nodes.fetch(peer, "GET", path)

        assert len(heads) == 3
        await until(lambda: not any(nodes._lines._busy.values()))


async def test_the_patience_begins_when_the_owner_is_lost(pair: Pair) -> None:
    """If that is late in a long request, the client still waits for the next owner."""
    forwarding(pair)._patience = 0.3
    session_id = await pair.open()
    async with scripted(pair, None) as heads:
        pair.table.owners[session_id] = "scripted"
        asking = asyncio.create_task(pair.edge.call("GET", f"/v1/sessions/{session_id}"))
        await until(lambda: bool(heads))
        pair.table.owners[session_id] = "owner"

        assert (await asking).status == 200


async def test_a_node_that_stops_in_the_middle_of_an_answer_is_not_waited_for(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer with a length becomes 503, and a stream is cut, as when its owner is lost."""
    monkeypatch.setattr(f"{PEERS}.splice.BODY_SECONDS", 0.1)
    monkeypatch.setattr(f"{PEERS}.elsewhere.HEAD_SECONDS", 0.2)
    stream = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n: \n\r\n"
    async with scripted(pair, PART):
        assert (await pair.edge.call("GET", "/v1/sessions/gws_1")).code == "recovering"
    async with scripted(pair, stream):
        with pytest.raises(aiohttp.ClientPayloadError):
            await pair.edge.call("GET", "/v1/sessions/gws_1/events")


async def test_lost_node_is_not_asked_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests for its sessions wait for the node that takes them over; one that only cannot be reached is asked again."""
    monkeypatch.setattr(lines, "UNREACHABLE_SECONDS", 0.01)
    monkeypatch.setattr(lines, "SPREAD_SECONDS", 0.01)
    session_id = await pair.open()
    elsewhere = pair.edge.parts.elsewhere
    assert elsewhere is not None
    elsewhere._patience = 0.2
    pair.table.owners[session_id], pair.table.urls["gone"] = "gone", "http://127.0.0.1:1"
    attempts: list[str] = []

    async def refuse(url: str, _: object) -> None:
        attempts.append(url)
        raise UnreachableError("refused")

    monkeypatch.setattr(lines, "connect", refuse)
    lost = await pair.edge.call("GET", f"/v1/sessions/{session_id}")
    while_lost = len(attempts)
    pair.table.peers = [Peer("gone", "http://127.0.0.1:1", serving=True, room=9)]
    cut_off = await pair.edge.call("GET", f"/v1/sessions/{session_id}")

    assert [lost.code, cut_off.code] == ["recovering", "recovering"]
    assert while_lost == 2  # at the beginning and at the end
    assert len(attempts) > 5
