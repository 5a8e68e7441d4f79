"""gateway/downstream/http/listener.py: accepting connections."""

import asyncio
import errno
import importlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
from aiohttp import web

from gateway.downstream.http.connections import ConnectionLimits, Connections
from gateway.downstream.http.limits import ServerLimits
from gateway.downstream.http.listener import Binding, Listener
from gateway.downstream.server import Server
from gateway.relay.memory import Budget
from gateway.relay.telemetry import NO_TELEMETRY
from tests.downstream.harness import Harness
from tests.downstream.raw import ask, connect, read_all

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture
async def small(harness: Harness) -> AsyncIterator[Server]:
    """Return a second server over the same hub, limited to two connections."""
    server = Server(replace(harness.parts, connections=ConnectionLimits(max_connections=2)))
    await server.start(Binding(), Binding())
    yield server
    await server.close()


async def test_unix_socket_beside_the_port(harness: Harness, tmp_path: Path) -> None:
    """Both answer; a socket that a killed process left behind is replaced, and the file is removed at the end."""
    path = tmp_path / "peers.sock"
    for _ in range(2):
        socket.socket(socket.AF_UNIX).bind(str(path))
        server = Server(harness.parts)
        await server.start(Binding(unix_path=str(path)), Binding())
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(GET)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        assert (await ask(server.url, GET)).status == 200
        await server.close()
        assert not path.exists()


async def test_full_listener_says_so(harness: Harness, small: Server) -> None:
    """While running requests use all connections, another one gets 503 with `Retry-After` and ends, and that is logged. An
    `EventSource`, which would never try again, is told in a stream."""
    session = await harness.open()
    readers = [
        asyncio.create_task(
            ask(
                small.url,
                f"GET /v1/sessions/{session['id']}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
            )
        )
        for _ in range(2)
    ]
    async with asyncio.timeout(10):
        while harness.hub.find(session["id"], None).view().receivers < 2:
            await asyncio.sleep(0.005)
    answer = await ask(small.url, GET.replace(b"Connection: close\r\n", b""))
    stream = await ask(small.url, f"GET {session['stream_url']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    operator = await ask(small.admin_url, GET)
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)

    assert (answer.status, answer.json["code"]) == (503, "capacity")
    assert answer.headers["retry-after"] == "5"
    assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert b"event: gateway.error\n" in stream.body
    assert b'"code":"capacity"' in stream.body
    assert operator.status == 200
    assert harness.facts.of("connections_refused") == [(1, "connections")]


async def test_idle_connections_make_room(small: Server) -> None:
    """Idle connections are closed so that new ones can be accepted."""
    silent = [await connect(small.url) for _ in range(4)]
    answer = await ask(small.url, GET)

    assert answer.status == 200
    assert await asyncio.wait_for(silent[0][0].read(), 10) == b""
    for _, writer in silent:
        writer.close()


@contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """Let this process open only this many more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + spare, hard))
        while True:
            try:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                break
        for filler in fillers[-spare:]:
            os.close(filler)
        del fillers[-spare:]
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


async def test_without_descriptors_clients_are_told(harness: Harness) -> None:
    """One descriptor is kept in reserve to answer 503, so that clients do not wait without an answer."""
    with few_descriptors(1):
        reader, writer = await connect(harness.url)  # The client's end takes the last one.
        writer.write(GET)
        said = await asyncio.wait_for(read_all(reader), 10)
        writer.close()
    after = await ask(harness.url, GET)

    assert said.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"capacity"' in said
    assert after.status == 200
    assert harness.facts.of("connections_refused")[0] == (1, "descriptors")


@pytest.mark.parametrize("loop_module", ["asyncio", "uvloop"])
def test_connections_are_accepted_in_batches(loop_module: str) -> None:
    """If each turn of the loop is long, many connections are still accepted in one turn; uvloop's own server accepts
    one."""

    async def serve() -> int:
        async def hello(request: web.Request) -> web.Response:
            return web.Response(text="hello")

        app = web.Application()
        app.router.add_get("/", hello)
        connections = Connections(ConnectionLimits(), NO_TELEMETRY, Budget(), lambda: 0.0)
        listener = Listener(app, ServerLimits(), connections)
        await listener.start(Binding())
        port = int(listener.url.rpartition(":")[2])
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        turns = 0
        while len(connections) < len(clients):
            turns += 1
            await asyncio.sleep(0)
        for client in clients:
            client.close()
        await listener.close()
        return turns

    loop_factory = importlib.import_module(loop_module).new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        turns = runner.run(serve())

    assert turns < 20


async def test_connections_that_wait_are_served_although_the_listener_stops(harness: Harness) -> None:
    """The kernel resets connections that nobody has accepted when a listener closes: a proxy would answer 502 to a POST that it
    sent over one of them, since it repeats only what it could not send."""
    host, port = harness.url.removeprefix("http://").split(":")
    clients = [socket.create_connection((host, int(port))) for _ in range(60)]
    for client in clients:
        client.sendall(GET)
    harness.server._client_side.stop()

    for client in clients:
        reader, writer = await asyncio.open_connection(sock=client)
        async with asyncio.timeout(10):
            assert (await read_all(reader)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_server_that_parts_serves_idle_connections_once_more(harness: Harness) -> None:
    """The response says that it is the last one, so that a proxy sends nothing more over its connection; then nobody is
    waited for."""
    keep = GET.replace(b"Connection: close\r\n", b"")
    lines = [await connect(harness.url) for _ in range(2)]
    for reader, writer in lines:
        writer.write(keep)
        assert b"Connection: close" not in await reader.readuntil(b"ok\n")
    harness.hub.draining = True
    parting = asyncio.create_task(harness.server.part(20.0))
    await asyncio.sleep(0)
    for reader, writer in lines:
        assert not parting.done()
        writer.write(keep)
        async with asyncio.timeout(10):
            assert b"\r\nConnection: close\r\n" in await read_all(reader)
        writer.close()
    async with asyncio.timeout(10):
        await parting


async def test_one_port_for_all_addresses_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may have two addresses, as `localhost` often does; both get the same free port."""
    stream = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    v4, v6 = (socket.AF_INET, *stream, ("127.0.0.1", 0)), (socket.AF_INET6, *stream, ("::1", 0, 0, 0))
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", AsyncMock(return_value=[v4, v6]))
    connections = Connections(ConnectionLimits(), NO_TELEMETRY, Budget(), lambda: 0.0)
    listener = Listener(web.Application(), ServerLimits(), connections)
    await listener.start(Binding("two.example"))
    hosts = {listening.getsockname()[0] for listening in listener._sockets}
    ports = {listening.getsockname()[1] for listening in listener._sockets}
    await listener.close()
    await listener.close()

    assert hosts in ({"127.0.0.1", "::1"}, {"127.0.0.1"})  # some machines have no IPv6
    assert len(ports) == 1
