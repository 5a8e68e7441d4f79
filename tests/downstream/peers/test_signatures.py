"""What a signature between nodes covers."""

import hashlib

from gateway.downstream.peers.signatures import PeerSignatures

OLD, NEW = b"o" * 32, b"n" * 32


def test_signature_covers_everything_and_is_taken_for_a_while() -> None:
    """A signature for another method, path, id, time or key is refused; an older key that is still configured is
    accepted."""
    word = PeerSignatures([OLD]).sign("POST", "/a", "1", b"body", 1000.5)
    nodes = PeerSignatures([NEW, OLD])

    assert nodes.body_digest(word, "POST", "/a", "1", 1001) == hashlib.sha256(b"body").hexdigest()
    for method, path, request_id, now in (
        ("GET", "/a", "1", 1001),
        ("POST", "/b", "1", 1001),
        ("POST", "/a", "2", 1001),
        ("POST", "/a", "1", 1302),
    ):
        assert nodes.body_digest(word, method, path, request_id, now) is None
    assert PeerSignatures([NEW]).body_digest(word, "POST", "/a", "1", 1001) is None
    assert nodes.body_digest("", "POST", "/a", "1", 1001) is None
