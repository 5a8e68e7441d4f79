"""gateway/upstream/sctp.py: sending while the connection closes."""

from typing import Any

from aiortc.rtcsctptransport import CookieAckChunk

from gateway.upstream.sctp import DirectSend


class Gone:
    """A DTLS transport that is no longer connected."""

    def put(self, data: bytes) -> None:
        raise ConnectionError("Cannot send encrypted data, not connected")


async def test_a_packet_that_cannot_be_sent_is_a_lost_packet() -> None:
    """Aiortc sends from timers, in tasks whose exceptions are never read, so a failed send counts as a lost packet."""
    association: Any = DirectSend.__new__(DirectSend)
    association._RTCSctpTransport__transport = Gone()
    association._local_port = association._remote_port = 5000
    association._remote_verification_tag = 1

    assert await association._send_chunk(CookieAckChunk()) is None
