"""The HTTP side's limits as one frozen value. The limits of streams are in `reading.stream`."""

from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits for one request or connection. Times are in seconds, sizes in bytes."""

    max_body_bytes: int = MIB
    max_batch_events: int = 256
    max_metadata_bytes: int = 16 * 1024
    """Small, because every listing contains the metadata of its sessions."""
    header_seconds: float = 10
    """Deadline from the first byte of a request to the end of its headers, and from the opening of a connection to its
    first byte. Protects against slow-loris clients."""
    body_seconds: float = 30
    """Deadline for a body of any size: 1 MiB in 30 s is a slow mobile network."""
    keepalive_seconds: float = 75
    """Idle time between requests. It is longer than the 60 s of nginx and common load balancers, so that they close
    first and no request is lost in a race."""
    linger_seconds: float = 5
    """How long a refused body is still read and discarded, so that the client gets the response before a reset."""
    half_close_seconds: float = 1.0
    """A FIN this soon after a request means that the client has finished sending, not that it has left."""
    write_seconds: float = 10
    """The connection is aborted if the client reads nothing of a response for this long."""
    max_line_bytes: int = 8190
    max_header_bytes: int = 16 * 1024
    """Limit of one header. Credentials of corporate proxies can reach 12 KiB."""
    max_head_bytes: int = 64 * 1024
    """Limit of all headers of a request together."""
    shutdown_seconds: float = 5
    """How long a closing server waits for running requests, after the drain."""
