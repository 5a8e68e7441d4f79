"""The far end of a peer connection: SDP, ICE-lite, DTLS and SCTP."""
