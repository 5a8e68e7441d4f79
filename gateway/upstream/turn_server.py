"""A test allocation on a TURN server (RFC 8656). Calls do not use this: their peer connection allocates."""

import asyncio

from aioice import stun
from aioice.turn import create_turn_endpoint
from aiortc import RTCIceServer
from aiortc.rtcicetransport import connection_kwargs

from gateway.upstream.config import IceServer


class RefusedError(Exception):
    """The server answered but refused an address; the message says why."""


async def allocate(server: IceServer) -> str:
    """Allocate an address on the first TURN URL and release it at once; return it as `host:port`.

    Raises RefusedError, or OSError or TimeoutError where no answer comes. The caller sets the deadline.
    """
    asked = connection_kwargs(
        [RTCIceServer(urls=list(server.urls), username=server.username, credential=server.credential)]
    )
    try:
        transport, ended = await create_turn_endpoint(
            _Ended,
            server_addr=asked["turn_server"],
            username=asked["turn_username"],
            password=asked["turn_password"],
            ssl=asked["turn_ssl"],
            transport=asked["turn_transport"],
        )
    except stun.TransactionFailed as error:
        code, reason = error.response.attributes.get("ERROR-CODE", (0, "no reason given"))
        raise RefusedError(f"{code} {reason}") from error
    except stun.TransactionError as error:
        raise TimeoutError from error
    try:
        host, port = transport.get_extra_info("sockname")
    finally:
        transport.close()
        await ended.wait()
    return f"{host}:{port}"


class _Ended(asyncio.DatagramProtocol):
    """Waits until the allocation is released."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()
        self.wait = self._gone.wait

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
