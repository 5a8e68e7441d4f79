"""An ICE-lite agent (RFC 8445, 2.5): it answers checks and never sends one.

It does not know SDP, DTLS or the Realtime API. A lite agent needs no remote candidates: a valid nominating check shows the
peer's address, whatever candidates the offer had. So a browser that hides its addresses behind mDNS
connects like any other, and an idle call costs nothing at all.

`RTCDtlsTransport` needs four members of its transport: `role`, `state`, `_send` and `_recv`. This class has them, so the far
end does not need aiortc's ICE, which is a full agent with timers.

Consent (RFC 7675): the service is reported to ignore checks without USE-CANDIDATE once connected. With
`strict_consent` this agent does the same, and a peer that sends plain consent checks lives for about 30 s.
"""

import asyncio
import contextlib
import hmac
import socket
from collections import deque
from typing import cast

from aioice import stun

# RFC 8445 does not require a size. This is what the kernel buffers for one call while the loop is busy.
_RECEIVE_BUFFER = 256 * 1024
# Datagrams waiting for DTLS. More are dropped and counted, as with a full socket buffer.
_MAX_WAITING = 4096
_CHECKS_WHILE_OPENING = ("new", "checking")

Address = tuple[str, int]


class _Port(asyncio.DatagramProtocol):
    """One socket of an agent."""

    def __init__(self, agent: "LiteAgent") -> None:
        self.agent = agent
        self.transport: asyncio.DatagramTransport | None = None
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's datagram transport does not inherit from asyncio's class.
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        self.agent.received(self, data, (str(addr[0]), int(addr[1])))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


class LiteAgent:
    """The far end's side of one ICE connection.

    These faults can be set at any time: with `deaf` it answers no check, with `vanished` it receives and sends nothing. With
    `consenting` false it stops answering checks once connected, but passes data.
    """

    role = "controlled"

    def __init__(self, *, ufrag: str, password: str, remote_ufrag: str, strict_consent: bool) -> None:
        self.ufrag = ufrag
        self.password = password
        self.strict_consent = strict_consent
        self.deaf = False
        self.vanished = False
        self.consenting = True
        self.state = "new"
        self.connected = asyncio.Event()
        self.dropped = 0
        self.checks_ignored = 0
        self.last_heard = asyncio.get_running_loop().time()
        self._username = f"{ufrag}:{remote_ufrag}"
        self._key = password.encode("ascii")
        self._loop = asyncio.get_running_loop()
        self._ports: list[_Port] = []
        self._selected: tuple[_Port, Address] | None = None
        self._waiting: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None

    async def open(self, addresses: list[str]) -> tuple[Address, ...]:
        """Bind one socket for each address and return where they listen."""
        listening = []
        for address in addresses:
            transport, port = await self._loop.create_datagram_endpoint(
                lambda: _Port(self), local_addr=(address, 0)
            )
            self._ports.append(port)
            raw = transport.get_extra_info("socket")
            with contextlib.suppress(OSError, AttributeError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            host, number = transport.get_extra_info("sockname")[:2]
            listening.append((str(host), int(number)))
        self.state = "checking"
        return tuple(listening)

    async def close(self) -> None:
        """Close every socket; a waiting `_recv` raises ConnectionError."""
        self.state = "closed"
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        for port in self._ports:
            if port.transport is not None:
                # abort, not close: unsent data is no longer needed.
                port.transport.abort()
                await port.lost
        self._ports.clear()

    def received(self, port: _Port, data: bytes, source: Address) -> None:
        """Process one datagram: a check, or data for DTLS; RTP is dropped unread (RFC 7983 7)."""
        if self.vanished or not data:
            return
        first = data[0]
        if 19 < first < 64:
            self.last_heard = self._loop.time()
            if len(self._waiting) >= _MAX_WAITING:
                self.dropped += 1
                return
            self._waiting.append(data)
            if self._reader is not None and not self._reader.done():
                self._reader.set_result(None)
        elif first < 4 and not self.deaf:
            self._check(port, data, source)

    def _check(self, port: _Port, data: bytes, source: Address) -> None:
        try:
            request = stun.parse_message(data)
        except ValueError:
            return
        if request.message_class != stun.Class.REQUEST or request.message_method != stun.Method.BINDING:
            return
        username = request.attributes.get("USERNAME")
        if not isinstance(username, str) or not hmac.compare_digest(
            username.encode(), self._username.encode()
        ):
            return
        if not request.check_message_integrity(self._key):
            return
        nominating = "USE-CANDIDATE" in request.attributes
        if self.connected.is_set() and (not self.consenting or (self.strict_consent and not nominating)):
            self.checks_ignored += 1
            return
        self.last_heard = self._loop.time()
        response = stun.Message(
            message_method=stun.Method.BINDING,
            message_class=stun.Class.RESPONSE,
            transaction_id=request.transaction_id,
        )
        response.attributes["XOR-MAPPED-ADDRESS"] = source
        response.add_message_integrity(self._key)
        if port.transport is not None:
            port.transport.sendto(bytes(response), source)
        if nominating and self.state != "closed":
            self._selected = (port, source)
            if self.state in _CHECKS_WHILE_OPENING:
                self.state = "completed"
                self.connected.set()

    async def _send(self, data: bytes) -> None:
        """Send to the nominated address (called by RTCDtlsTransport)."""
        if self._selected is None or self.state == "closed":
            raise ConnectionError("no nominated pair")
        port, address = self._selected
        if not self.vanished and port.transport is not None:
            port.transport.sendto(data, address)

    async def _recv(self) -> bytes:
        """Return the next datagram for DTLS (called by RTCDtlsTransport); raises ConnectionError once closed."""
        while not self._waiting:
            if self.state == "closed":
                raise ConnectionError("closed")
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._waiting.popleft()
