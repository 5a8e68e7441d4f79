"""gateway/upstream/dtls.py: whose certificate is accepted."""

from typing import Any

import pytest
from aiortc import RTCCertificate, RTCDtlsFingerprint, RTCDtlsParameters
from aiortc.rtcdtlstransport import State, certificate_digest
from OpenSSL import crypto

from gateway.upstream.dtls import WithoutSrtp


@pytest.mark.parametrize(
    ("told", "accepted"),
    [
        ({"sha-256": "right"}, True),
        ({"SHA-256": "lower"}, True),
        ({"sha-256": "right", "sha-512": "right"}, True),
        ({"sha-1": "wrong", "sha-384": "right"}, True),
        ({"sha-256": "wrong"}, False),
        ({"sha-256": "cut"}, False),
        ({"sha-256": "right", "sha-512": "wrong"}, False),
        ({"sha-1": "right"}, False),
        ({}, False),
    ],
)
@pytest.mark.parametrize("sent", [True, False])
def test_a_certificate_is_accepted_if_all_known_fingerprints_match(
    told: dict[str, str], accepted: bool, sent: bool
) -> None:
    """At least one known fingerprint is needed, all of them must match (RFC 8122 5.1), and a certificate must be sent."""
    certificate = RTCCertificate.generateCertificate()

    class Peer:
        def get_peer_certificate(self) -> crypto.X509 | None:
            return crypto.X509.from_cryptography(certificate._cert) if sent else None

    def value(algorithm: str, kind: str) -> str:
        digest = certificate_digest(certificate._cert, "sha-256" if algorithm == "sha-1" else algorithm)
        changed = {"wrong": digest[:-1] + ("0" if digest[-1] != "0" else "1"), "cut": digest[:-3]}
        return changed.get(kind, digest.lower() if kind == "lower" else digest)

    transport: Any = WithoutSrtp.__new__(WithoutSrtp)
    transport._ssl, transport._state = Peer(), State.CONNECTING
    transport._set_state = lambda state: setattr(transport, "_state", state)
    fingerprints = [RTCDtlsFingerprint(name, value(name.lower(), kind)) for name, kind in told.items()]
    transport._validate_peer_identity(RTCDtlsParameters(fingerprints))

    assert transport._state is (State.CONNECTING if accepted and sent else State.FAILED)
