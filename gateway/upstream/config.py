"""The operator's settings for the upstream layer, independent of where the values come from."""

from dataclasses import dataclass, field
from typing import Literal

from gateway.upstream.tuning import ALL_HOOKS, Hook

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server (W3C WebRTC 4.2.4). aiortc uses the first STUN and the first TURN server it finds."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """Where calls are created, as whom, and within which limits.

    With `auth` "gateway" the credential is `api_key`, with "client" it is the caller's own, which comes with each call.
    Azure's form of the service differs in `base_url` alone (`https://<resource>.openai.azure.com/openai/v1`), where only
    ephemeral keys may create a call, hence `auth` "client".
    """

    base_url: str = "https://api.openai.com/v1"
    api_key: str | None = field(default=None, repr=False)
    auth: Literal["gateway", "client"] = "gateway"
    organization: str | None = None
    project: str | None = None
    proxy: str | None = None
    """An HTTP proxy for signalling; without it HTTPS_PROXY, HTTP_PROXY and NO_PROXY count, except towards loopback."""
    connect_timeout_seconds: float = 15.0
    """From the first packet gathered to the open data channel."""
    ice_servers: tuple[IceServer, ...] = ()
    ice_transport_policy: Literal["all", "relay"] = "all"
    """W3C WebRTC 4.2.6: with "relay" only a TURN server's addresses are offered, none of this machine's."""
    max_server_event_bytes: int = 4 * MIB
    """The largest server event that is asked for (`a=max-message-size` of the offer)."""
    consent_timeout_seconds: float = 15.0
    """Silence after which a call is lost. RFC 7675 5.1 allows 30 s, too long for a person who waits for an answer."""
    hang_up_timeout_seconds: float = 5.0
    close_timeout_seconds: float = 5.0
    hooks: frozenset[Hook] = ALL_HOOKS
    """Which private hooks may be used, if the libraries' versions allow it."""

    @property
    def has_turn(self) -> bool:
        return any(url.startswith("turn") for server in self.ice_servers for url in server.urls)
