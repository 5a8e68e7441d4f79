"""One application on one address: accepting connections.

`loop.create_server` is not used, for two reasons. uvloop accepts one connection per loop iteration, so under heavy load
a new connection waits for seconds (measured: 6 to 21 s for 200 of them). And neither uvloop nor asyncio sends a client a
response when the process is out of descriptors.
"""

import asyncio
import errno
import os
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from aiohttp import web

from gateway.downstream.http import problem
from gateway.downstream.http.answers import SERVER_NAME, compact
from gateway.downstream.http.connections import RETRY_SECONDS, Connections
from gateway.downstream.http.direct import DirectConnection, DirectRoutes
from gateway.downstream.http.limits import ServerLimits
from gateway.downstream.http.protocol import Connection
from gateway.downstream.http.request import Request
from gateway.errors import OverloadError
from gateway.relay.tasks import Tasks

BACKLOG: Final = 1024
"""Connections waiting to be accepted. After a restart all clients reconnect at once; asyncio's default is only 100."""

ACCEPT_BATCH: Final = 16
"""Connections accepted in one loop iteration. More would delay the open connections: each brings a request of 0.5 ms."""

SEND_BUFFER_BYTES: Final = 32 * 1024
"""The kernel's send buffer. By default it grows to 4 MiB for a client that does not read. About this much is sent per
round trip, so a client with a latency of 100 ms gets 300 KB per second."""

PAUSE_SECONDS: Final = 0.5
"""How long accepting pauses when the kernel is out of memory or descriptors and none can be freed."""

IDLE_POLL_SECONDS: Final = 0.02

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ABSENT: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


@dataclass(frozen=True, slots=True)
class Binding:
    """Where to listen. Port 0 selects a free port."""

    host: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    shared: bool = False
    """Other processes listen on the same port, and the kernel distributes connections among them (SO_REUSEPORT)."""
    unix_path: str = ""
    """A unix socket to listen on in addition, without TLS. A file that is there is replaced."""


class Listener:
    """Accepts connections for one application, from `start` to `close`."""

    def __init__(
        self,
        app: web.Application,
        limits: ServerLimits,
        connections: Connections,
        direct: DirectRoutes | None = None,
    ) -> None:
        """`direct` contains the routes of `app` whose requests are handled at once."""
        self._direct = direct
        self._limits = limits
        self._connections = connections
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=limits.shutdown_seconds)
        self._make_request = partial(app._make_request, _cls=partial(Request, app))  # type: ignore[arg-type]  # noqa: SLF001  # aiohttp names no other way
        self._sockets: list[socket.socket] = []
        self._opening = Tasks(lambda error: connections.telemetry.http_failed("", error))
        self._spare: int | None = None
        self._tls: ssl.SSLContext | None = None

    async def start(self, binding: Binding) -> None:
        """Listen. Raises OSError if the address is not available."""
        await self._runner.setup()
        assert self._runner.server is not None
        self._runner.server.request_factory = self._make_request
        self._tls = binding.tls
        self._sockets = await _bound(binding, int(self._limits.write_seconds * 2000))
        # Closed when descriptors run out, to accept one more connection and answer it with 503.
        self._spare = os.open(os.devnull, os.O_RDONLY)
        for listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._accept, listening)

    def stop(self) -> None:
        """Stop accepting; open connections stay. May be called more than once."""
        loop = asyncio.get_running_loop()
        sockets, self._sockets = self._sockets, []
        for listening in sockets:
            # The kernel would reset connections that wait to be accepted.
            for _ in range(BACKLOG // ACCEPT_BATCH + 1):
                if not self._accept(listening):
                    break
            loop.remove_reader(listening.fileno())
            if listening.family == socket.AF_UNIX:
                with suppress(OSError):
                    os.unlink(listening.getsockname())  # one system call
            listening.close()

    async def wait_for_idle(self, seconds: float) -> None:
        """Wait for so long, or until no connection is idle. A proxy may be sending a request over one of them: if it was
        closed now, the client would get 502."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._connections.idle_count and loop.time() < deadline:
            await asyncio.sleep(IDLE_POLL_SECONDS)

    async def close(self) -> None:
        """Stop accepting, and wait briefly for running requests. May be called more than once."""
        self.stop()
        self._opening.cancel()
        await self._opening.ended()
        await self._runner.cleanup()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    @property
    def url(self) -> str:
        assert self._sockets, "not listening"
        host, port = self._sockets[0].getsockname()[:2]
        scheme = "https" if self._tls else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def _accept(self, listening: socket.socket) -> bool:
        """Accept some connections. Return whether more may wait."""
        for _ in range(ACCEPT_BATCH):
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError):
                return False
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._connections.refused("descriptors")
                if not self._refuse_one(listening):
                    self._pause(listening)
                    return False
                continue
            connection.setblocking(False)
            if self._connections.room:
                _ = self._opening.run(self._open(connection), "accept")
            else:
                self._connections.refused("connections")
                self._turn_away(connection)
        return True

    async def _open(self, connection: socket.socket) -> None:
        """Create the protocol of a connection, after the TLS handshake if there is one."""
        loop, http = asyncio.get_running_loop(), self._runner.server
        tls = None if connection.family == socket.AF_UNIX else self._tls
        assert http is not None  # set up by `start`
        try:
            await loop.connect_accepted_socket(
                lambda: self._connection(http, loop),
                connection,
                ssl=tls,
                ssl_handshake_timeout=self._limits.header_seconds if tls else None,
            )
        except (OSError, TimeoutError):  # ssl.SSLError is an OSError
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise

    def _connection(self, http: web.Server, loop: asyncio.AbstractEventLoop) -> Connection:
        if self._direct is None:
            return Connection(http, self._limits, loop, self._connections)
        return DirectConnection(self._direct, http, self._limits, loop, self._connections)

    def _refuse_one(self, listening: socket.socket) -> bool:
        """Accept one connection with the spare descriptor and refuse it with 503."""
        if self._spare is None:
            return False
        os.close(self._spare)
        self._spare = None
        try:
            connection, _ = listening.accept()
        except OSError:
            return False
        else:
            self._turn_away(connection)
            return True
        finally:
            try:
                self._spare = os.open(os.devnull, os.O_RDONLY)
            except OSError:
                self._spare = None  # The descriptor was taken meanwhile; the next pause tries again.

    def _turn_away(self, connection: socket.socket) -> None:
        """Send as much of a 503 as one write takes, and close."""
        try:
            connection.setblocking(False)
            if self._tls is None:
                connection.send(_FULL)
        except OSError:
            pass
        finally:
            connection.close()

    def _pause(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening.fileno())

        def resume() -> None:
            if listening not in self._sockets:
                return
            if self._spare is None:
                try:
                    self._spare = os.open(os.devnull, os.O_RDONLY)
                except OSError:
                    self._pause(listening)
                    return
            loop.add_reader(listening.fileno(), self._accept, listening)

        loop.call_later(PAUSE_SECONDS, resume)


async def _bound(binding: Binding, user_timeout_ms: int) -> list[socket.socket]:
    """Return a listening socket for each address of the host. Accepted connections inherit their options. The OSError that
    it raises names the address."""
    try:
        return await _bound_to_all(binding, user_timeout_ms)
    except OSError as error:
        # ::1 and port 8080 are [::1]:8080.
        host = f"[{binding.host}]" if ":" in binding.host else binding.host
        raise OSError(error.errno, f"{host}:{binding.port}: {error.strerror or error}") from error


async def _bound_to_all(binding: Binding, user_timeout_ms: int) -> list[socket.socket]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(
        binding.host or None, binding.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    port = binding.port
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                listening = socket.socket(family, kind, protocol)
                sockets.append(listening)
                _set_options(listening, user_timeout_ms)
                if binding.shared:
                    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                listening.bind((address[0], port, *address[2:]))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                sockets.pop().close()  # A name may have an IPv6 address although IPv6 is disabled.
                absent = error
                continue
            listening.listen(BACKLOG)
            port = port or listening.getsockname()[1]  # The same port for all addresses of the name.
        if not sockets:
            assert absent is not None  # getaddrinfo returns at least one address
            raise absent
        if binding.unix_path:
            sockets.append(_bound_to_path(binding.unix_path))
    except BaseException:
        for listening in sockets:
            listening.close()
        raise
    return sockets


def _bound_to_path(path: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        with suppress(FileNotFoundError):
            os.unlink(path)  # left behind by a process that was killed
        listening.bind(path)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _set_options(listening: socket.socket, user_timeout_ms: int) -> None:
    listening.setblocking(False)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if listening.family == socket.AF_INET6:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Unacknowledged data ends the connection after this time; keepalive would take hours (RFC 5482).
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)


def _full() -> bytes:
    error = OverloadError("capacity", "All connections are in use.", retry_after=RETRY_SECONDS)
    body = compact(problem.document(error, "/"))
    head = (
        "HTTP/1.1 503 Service Unavailable\r\n"
        f"Content-Type: {problem.MEDIA_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"Retry-After: {RETRY_SECONDS:g}\r\n"
        f"Server: {SERVER_NAME}\r\n"
        "Cache-Control: no-store\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


_FULL: Final = _full()
