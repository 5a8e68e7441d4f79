"""The lite agent, check by check, over a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aioice import stun

from gateway.emulator.transport.ice import LiteAgent

PASSWORD = "p" * 32
WAIT_SECONDS = 20.0


class Peer:
    """A socket that sends checks and reads answers."""

    def __init__(self, agent: LiteAgent, address: tuple[str, int]) -> None:
        self.agent = agent
        self.address = address
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(("127.0.0.1", 0))

    def request(self, *, nominate: bool = True, username: str = "us:them") -> stun.Message:
        request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        request.attributes["USERNAME"] = username
        request.attributes["PRIORITY"] = 1
        if nominate:
            request.attributes["USE-CANDIDATE"] = None
        return request

    def send(self, data: bytes) -> None:
        self.socket.sendto(data, self.address)

    async def receive(self) -> bytes:
        loop = asyncio.get_running_loop()
        data, _ = await asyncio.wait_for(loop.sock_recvfrom(self.socket, 2000), WAIT_SECONDS)
        return data

    async def check(self, *, nominate: bool = True) -> stun.Message:
        request = self.request(nominate=nominate)
        request.add_message_integrity(PASSWORD.encode())
        self.send(bytes(request))
        response = stun.parse_message(await self.receive())
        assert response.transaction_id == request.transaction_id
        assert response.check_message_integrity(PASSWORD.encode())
        return response


@pytest_asyncio.fixture
async def peer() -> AsyncIterator[Peer]:
    """Return a peer of an agent on loopback."""
    agent = LiteAgent(ufrag="us", password=PASSWORD, remote_ufrag="them", strict_consent=True)
    (address,) = await agent.open(["127.0.0.1"])
    one = Peer(agent, address)
    yield one
    one.socket.close()
    await agent.close()


async def test_check_is_answered_with_the_address_it_came_from(peer: Peer) -> None:
    """The answer is signed and has the peer's reflexive address; only a nomination connects."""
    response = await peer.check(nominate=False)

    assert response.attributes["XOR-MAPPED-ADDRESS"] == peer.socket.getsockname()
    assert not peer.agent.connected.is_set()
    await peer.check()
    assert peer.agent.connected.is_set()
    assert peer.agent.state == "completed"


async def test_unsigned_and_foreign_checks_are_ignored(peer: Peer) -> None:
    """A wrong password, another user name, no name, an indication and noise get no answer; a valid check after them
    does."""
    wrong = peer.request()
    wrong.add_message_integrity(b"another password")
    other = peer.request(username="us:others")
    other.add_message_integrity(PASSWORD.encode())
    anonymous = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    indication = stun.Message(stun.Method.BINDING, stun.Class.INDICATION)
    for message in (wrong, other, anonymous, indication):
        peer.send(bytes(message))
    peer.send(b"\x00\x01noise")
    peer.send(b"\x00")
    response = await peer.check()

    assert response.message_class == stun.Class.RESPONSE


async def test_data_is_told_from_media(peer: Peer) -> None:
    """DTLS records are delivered in order, and RTP is dropped."""
    await peer.check()
    for data in (b"\x16one", b"\x80rtp", b"\x17two"):
        peer.send(data)

    assert [await peer.agent._recv(), await peer.agent._recv()] == [b"\x16one", b"\x17two"]


async def test_latest_nomination_is_where_data_goes(peer: Peer) -> None:
    """If a peer moves and nominates again, data goes to the new address."""
    await peer.check()
    second = Peer(peer.agent, peer.address)
    try:
        await second.check()
        await peer.agent._send(b"\x17hello")

        assert await second.receive() == b"\x17hello"
    finally:
        second.socket.close()


async def test_waiting_datagrams_are_bounded(peer: Peer) -> None:
    """Unread datagrams beyond the limit are dropped and counted."""
    for _ in range(5000):
        peer.agent.received(peer.agent._ports[0], b"\x17x", peer.address)

    assert peer.agent.dropped == 5000 - 4096


async def test_closed_agent_reads_and_sends_nothing(peer: Peer) -> None:
    """Close wakes a reader with ConnectionError; later reads and sends raise it too."""
    with pytest.raises(ConnectionError):
        await peer.agent._send(b"x")
    reading = asyncio.create_task(peer.agent._recv())
    await asyncio.sleep(0)
    await peer.agent.close()

    with pytest.raises(ConnectionError):
        await reading
    with pytest.raises(ConnectionError):
        await peer.agent._recv()


async def test_address_that_is_not_ours_cannot_be_bound() -> None:
    """An address of no local interface raises an error and leaves nothing open."""
    agent = LiteAgent(ufrag="u", password=PASSWORD, remote_ufrag="t", strict_consent=False)
    with pytest.raises(OSError, match="assign"):
        await agent.open(["127.0.0.1", "203.0.113.77"])
    await agent.close()
