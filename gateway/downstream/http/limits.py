"""The HTTP side's limits as one frozen value; those of streams stand in `stream`."""

from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one request or connection may take. Times are seconds, sizes bytes."""

    max_body_bytes: int = MIB
    max_batch_events: int = 256
    max_metadata_bytes: int = 16 * 1024
    """A session's metadata is in every listing, so it is kept small."""
    header_seconds: float = 10
    """From the first byte of a request to the end of its headers, and from the opening of a connection to its first
    byte: cuts slow-loris clients."""
    body_seconds: float = 30
    """For the body to arrive, whatever its size: 1 MiB in 30 s is a slow mobile network."""
    keepalive_seconds: float = 75
    """Idle time between requests: longer than nginx and common load balancers keep theirs (60 s), so that they close
    first and no request is lost in the race."""
    linger_seconds: float = 5
    """How long a refused body is still read and thrown away, so that the refusal reaches the client before a reset."""
    half_close_seconds: float = 1.0
    """How soon after its request a client's FIN means that it has finished sending, rather than that it has left."""
    write_seconds: float = 10
    """How long a client may take nothing of an answer before its connection is cut."""
    max_line_bytes: int = 8190
    max_header_bytes: int = 16 * 1024
    """Of one header; credentials of corporate proxies are known to reach 12 KiB."""
    max_head_bytes: int = 64 * 1024
    """Of all headers of a request together."""
    shutdown_seconds: float = 5
    """How long a closing server waits for running requests; drain came before it."""
