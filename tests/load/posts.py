"""What a POST of two events costs: `python -m tests.load.posts [--posts N] [--profile]
[--apart]`.

The gateway's whole HTTP side runs in this process on uvloop, with its real metrics and its log, in front of a far
end that accepts everything. A client in its own process posts the same two events over one kept connection. It
prints the CPU time per POST: of the event loop's thread, which all requests share, and of the process, which
includes the log's thread. With `--apart` the client sends the body after the head, as Python's `http.client` does.
"""

# ruff: noqa: T201  # a command prints its result

import argparse
import asyncio
import cProfile
import json
import pstats
import socket
import sys
import time
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry

from gateway.downstream.admin import Operator
from gateway.downstream.auth.access import Access, AccessRules
from gateway.downstream.auth.credentials import Signatures
from gateway.downstream.http.listener import Binding
from gateway.downstream.reading.sse import frame
from gateway.downstream.reading.stream import StreamLimits
from gateway.downstream.server import Server, ServerDependencies
from gateway.relay.hub import Hub
from gateway.relay.limits import RelayLimits
from gateway.relay.ports import OpenRequest
from gateway.relay.requests import Principal
from gateway.telemetry import Metrics, configure_logging
from tests.downstream.harness import FarEnd

# Not confirmed by the far end, so that the measured loop only has to accept them.
BODY = json.dumps(
    [{"type": "input_audio_buffer.append", "event_id": f"event_{n}", "audio": "A" * 120} for n in range(2)]
).encode()


PAUSE_SECONDS = 0.0002
"""Between head and body: long enough that the gateway reads them separately."""


def post(port: int, path: str, count: int, apart: bool) -> None:
    """Post `count` times, each after the previous answer."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\nUser-Agent: load\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            if apart:
                connection.sendall(head)
                time.sleep(PAUSE_SECONDS)
            connection.sendall(BODY if apart else head + BODY)
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 202"), answer


async def measure(posts: int, profile: bool, apart: bool) -> None:
    """Serve the posts and print their cost."""
    metrics = Metrics(CollectorRegistry(), version="0", access_log=True)
    hub = Hub(FarEnd(), frame, metrics, RelayLimits())
    access = Access(AccessRules(), Signatures([b"k" * 32]), time.monotonic)
    server = Server(
        ServerDependencies(
            hub, metrics, access, Operator(lambda _: (b"", ""), lambda: None), StreamLimits(15.0, 300.0)
        )
    )
    await server.start(Binding(), Binding())
    session = await hub.open(OpenRequest(Principal("anonymous", anonymous=True)))
    port = int(server.url.rpartition(":")[2])

    async def run(count: int) -> None:
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.load.posts", "--client", str(port)),
            *(f"/v1/sessions/{session.id}/events", str(count), *(["--apart"] if apart else [])),
        )
        assert await client.wait() == 0

    await run(min(posts, 2000))  # warms up
    profiler = cProfile.Profile(time.thread_time)
    if profile:
        profiler.enable()
    loop_before, process_before = time.thread_time(), time.process_time()
    await run(posts)
    loop, process = time.thread_time() - loop_before, time.process_time() - process_before
    if profile:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
    print(
        f"{posts} POSTs: {loop / posts * 1e6:.0f} µs of the loop, {process / posts * 1e6:.0f} µs of the process each"
    )
    await server.close()
    await hub.close()


def main() -> None:
    """Measure, or run the client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=int, default=20_000)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--client", nargs=3, metavar=("PORT", "PATH", "COUNT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        port, path, count = given.client
        post(int(port), path, int(count), given.apart)
        return
    with Path("/dev/null").open("w") as nowhere:
        configure_logging("json", "info", nowhere)
        uvloop.run(measure(given.posts, given.profile, given.apart))


if __name__ == "__main__":
    main()
