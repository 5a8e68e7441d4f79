"""The checks of `gateway check`, one function per dependency. Each returns findings and does not raise for a failed check.

Every remedy is a sentence for the operator.
"""

import asyncio
import errno
import importlib.util
import os
import platform
import resource
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal
from urllib.parse import urlsplit

import aiohttp

from gateway.cli.running import why
from gateway.config import Config
from gateway.errors import GatewayError
from gateway.relay.clock import Clock
from gateway.relay.ports import CallRequest, LossCause
from gateway.relay.telemetry import NO_TELEMETRY
from gateway.upstream import tuning
from gateway.upstream import turn_server as turn
from gateway.upstream.config import IceServer
from gateway.upstream.webrtc import WebRTCDialer
from gateway.wiring import relay_limits, upstream_config

WAIT_SECONDS: Final = 5.0
GREETING_SECONDS: Final = 3.0
STUN_TRIES: Final = 3

FILES_PER_SESSION: Final = 3
"""One UDP socket, and the client's connections."""
FILES_BESIDE: Final = 100

Result = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    result: Result
    what: str
    detail: str
    remedy: str = ""


async def examine(config: Config, stun: str) -> AsyncIterator[Finding]:
    """Run all checks, in the order in which a session needs their subjects."""
    for finding in (*libraries(), open_files(config), *listeners(config)):
        yield finding
    resolved = await names(config)
    yield resolved
    reachable = resolved.result != "failed"
    yield await https(config) if reachable else Finding("skipped", "HTTPS", _NO_NAME)
    yield await udp(config, stun)
    for server in upstream_config(config).ice_servers:
        for url in server.urls:
            yield await ice_server(replace(server, urls=(url,)))
    yield await call(config) if reachable else Finding("skipped", "a real call", _NO_NAME)


_NO_NAME: Final = "the upstream's name does not resolve, see the DNS line"


def libraries() -> list[Finding]:
    """Check the installed libraries."""
    found = [Finding("ok", "Python", platform.python_version())]
    if missing := tuning.missing():
        versions = ", ".join(f"{name} {version}x" for name, version in tuning.TESTED.items())
        found.append(
            Finding(
                "warning",
                "WebRTC library",
                f"untested versions are installed; these hooks are off: {', '.join(missing)}",
                f"Install the tested ones ({versions}): without them calls may end after half a minute.",
            )
        )
    else:
        found.append(Finding("ok", "WebRTC library", "the versions that were tested"))
    if importlib.util.find_spec("uvloop") is None:
        remedy = "Install uvloop if your platform has it; the gateway also works without it."
        found.append(
            Finding("warning", "uvloop", "not installed: an event needs about 50 % more CPU", remedy)
        )
    else:
        found.append(Finding("ok", "uvloop", "installed"))
    return found


def open_files(config: Config) -> Finding:
    """Check whether a gateway may open as many sockets as its sessions need: it raises its limit to the hard one."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = config.relay.max_sessions * FILES_PER_SESSION + FILES_BESIDE
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        return Finding(
            "warning",
            "open files",
            f"{allowed} allowed, {needed} needed for relay.max_sessions = {config.relay.max_sessions}",
            f"Raise the limit (`ulimit -Hn {needed}`, systemd: LimitNOFILE={needed}) or lower relay.max_sessions.",
        )
    return Finding("ok", "open files", f"{allowed} allowed")


def listeners(config: Config) -> list[Finding]:
    """Check whether both addresses are available."""
    wanted = (
        ("server", config.server.host, config.server.port),
        ("admin", config.admin.host, config.admin.port),
    )
    return [_listener(section, host, port) for section, host, port in wanted]


def _listener(section: str, host: str, port: int) -> Finding:
    what = f"{section} listener"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return Finding(
            "warning",
            what,
            f"{host}:{port} cannot be used: {error.strerror or error}",
            _listener_remedy(section, port, error),
        )
    return Finding("ok", what, f"{host}:{port} is free")


def _listener_remedy(section: str, port: int, error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"Set {section}.host to an address of this machine."
    if error.errno == errno.EACCES:
        return f"Set {section}.port to 1024 or more: only root may listen on lower ports."
    if error.errno == errno.EADDRINUSE:
        return f"If the gateway is already running, ignore this. Otherwise stop the program that listens on port {port}, or set {section}.port."
    return f"Set {section}.host and {section}.port to a free address."


async def names(config: Config) -> Finding:
    """Check whether the upstream's name resolves."""
    host = urlsplit(config.upstream.base_url).hostname or ""
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError) as error:
        if _proxy(config):
            return Finding("warning", "DNS", f"{host} does not resolve here; the proxy may resolve it")
        remedy = "Check /etc/resolv.conf, the container's DNS, and upstream.base_url."
        return Finding("failed", "DNS", f"{host} does not resolve: {why(error)}", remedy)
    count = len({address[4][0] for address in found})
    return Finding("ok", "DNS", f"{host} has {count} address{'es' if count > 1 else ''}")


async def https(config: Config) -> Finding:
    """Check whether the upstream answers over HTTP, through the proxy if there is one. Any status counts."""
    url, proxy = config.upstream.base_url, config.upstream.proxy
    what = f"{urlsplit(url).scheme.upper()} to upstream" + (" through the proxy" if _proxy(config) else "")
    timeout = aiohttp.ClientTimeout(total=WAIT_SECONDS * 2)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=proxy is None) as session,
            session.get(f"{url}/models", proxy=proxy, allow_redirects=False) as answer,
        ):
            return Finding("ok", what, f"answered with status {answer.status}")
    except aiohttp.ClientConnectorCertificateError as error:
        host = urlsplit(url).hostname
        remedy = f"If a proxy intercepts TLS, set SSL_CERT_FILE to its root certificate, or exempt {host} from interception."
        return Finding("failed", what, f"certificate not trusted: {error.certificate_error}", remedy)
    except (aiohttp.ClientError, TimeoutError) as error:
        where = f"TCP port {_port(url)} of {urlsplit(url).hostname}"
        remedy = f"Allow {where}, or set upstream.proxy (or HTTPS_PROXY) to a proxy that may connect."
        if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno == errno.ECONNREFUSED:
            remedy = f"Nothing accepts connections at {where}: check upstream.base_url and the proxy."
        return Finding("failed", what, f"no answer: {why(error)}", remedy)


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _proxy(config: Config) -> bool:
    return config.upstream.proxy is not None or any(
        os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy")
    )


def _is_local(config: Config) -> bool:
    host = urlsplit(config.upstream.base_url).hostname or ""
    return host in ("localhost", "127.0.0.1", "::1")


async def udp(config: Config, stun: str) -> Finding:
    """Check whether UDP works in both directions, with one STUN request (RFC 8489)."""
    if _is_local(config):
        return Finding("skipped", "UDP egress", "the upstream is on this machine")
    host, _, port = stun.rpartition(":")
    seconds = await _stun(host, int(port))
    if seconds is not None:
        return Finding("ok", "UDP egress", f"{stun} answered after {seconds * 1e3:.0f} ms")
    if upstream_config(config).has_turn:
        return Finding("warning", "UDP egress", f"no answer from {stun}; calls go through TURN")
    remedy = (
        "Allow outgoing UDP (OpenAI's media servers use port 3478), or set upstream.ice_servers to a TURN "
        "server over TCP or TLS. If only this STUN server is blocked, the call below works: use another one with --stun."
    )
    return Finding("warning", "UDP egress", f"no answer from {stun}", remedy)


class _Answers(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.first: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.first.done():
            self.first.set_result(data)

    def error_received(self, exc: Exception) -> None:
        """Ignore ICMP errors: the wait for an answer then times out."""


async def _stun(host: str, port: int) -> float | None:
    """Send binding requests until one is answered. Return the seconds it took, or None."""
    loop = asyncio.get_running_loop()
    transaction = os.urandom(12)
    request = struct.pack("!HHI", 0x0001, 0, 0x2112A442) + transaction
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            transport, answers = await loop.create_datagram_endpoint(_Answers, remote_addr=(host, port))
    except (OSError, TimeoutError):
        return None
    try:
        began = loop.time()
        for _ in range(STUN_TRIES):
            transport.sendto(request)
            await asyncio.wait({answers.first}, timeout=WAIT_SECONDS / STUN_TRIES)
            if answers.first.done():
                answered = answers.first.result()[8:20] == transaction
                return loop.time() - began if answered else None
    finally:
        transport.close()
    return None


async def ice_server(server: IceServer) -> Finding:
    """Send a server with one URL the request of a call: to a STUN server a binding, to a TURN server an allocation."""
    (url,) = server.urls
    scheme, _, rest = url.partition(":")
    what = f"{scheme.upper()} server"
    if scheme == "stun":
        host, _, port = rest.partition(":")
        seconds = await _stun(host, int(port or 3478))
        if seconds is None:
            remedy = f"Look at upstream.ice_servers: {url} must be reachable from here by UDP."
            return Finding("failed", what, f"{rest} does not answer", remedy)
        return Finding("ok", what, f"{rest} answered after {seconds * 1e3:.0f} ms")
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            address = await turn.allocate(server)
    except turn.RefusedError as error:
        remedy = "Check the server's username and credential in upstream.ice_servers, and the server's log."
        return Finding("failed", what, f"{rest} refused: {error}", remedy)
    except (OSError, TimeoutError) as error:
        remedy = f"Look at upstream.ice_servers: {url} must be reachable from here."
        return Finding("failed", what, f"{rest} cannot be reached: {str(error) or 'no answer'}", remedy)
    return Finding("ok", what, f"{rest} relays from {address}")


class _Greeting:
    """A `Sink` that waits for the first event from OpenAI."""

    def __init__(self) -> None:
        self.came = asyncio.Event()

    def received(self, generation: int, text: str) -> None:
        self.came.set()

    def received_together(self, generation: int, texts: Sequence[str]) -> None:
        self.came.set()

    def received_in_steps(self, generation: int, text: str) -> Iterator[None]:
        self.came.set()
        return iter(())

    def unreadable(self, generation: int, size: int) -> None:
        """Ignore it."""

    def lost(self, generation: int, cause: LossCause) -> None:
        """Ignore it: the wait for the greeting then times out."""


async def call(config: Config) -> Finding:
    """Open a real call, wait for its greeting, and hang up. It costs nothing, since no response is requested."""
    settings = upstream_config(config)
    what = "a real call"
    if settings.auth == "client":
        return Finding("skipped", what, "callers bring their own credentials (upstream.auth)")
    if settings.api_key is None:
        remedy = "Set OPENAI_API_KEY or upstream.api_key_file; without it every session is refused."
        return Finding("warning", what, "no key is set", remedy)
    dialer = WebRTCDialer(settings, NO_TELEMETRY, Clock())
    greeting = _Greeting()
    loop = asyncio.get_running_loop()
    await dialer.start()
    try:
        began = loop.time()
        upstream = await dialer.dial(CallRequest(relay_limits(config).template), greeting)
        seconds = loop.time() - began
        try:
            await asyncio.wait_for(greeting.came.wait(), GREETING_SECONDS)
        finally:
            await upstream.close(hang_up=True)
    except GatewayError as error:
        return Finding("failed", what, f"{error.code}: {error.detail}", _remedy(error, config))
    except TimeoutError:
        remedy = (
            "The channel is open, but OpenAI sent nothing: check that upstream.base_url is the Realtime API."
        )
        return Finding("failed", what, "no session.created arrived", remedy)
    finally:
        await dialer.close()
    return Finding("ok", what, f"opened in {seconds * 1e3:.0f} ms, greeted, hung up")


_UDP_REMEDY: Final = (
    "Packets do not arrive: allow UDP to OpenAI, or set upstream.ice_servers to a TURN server (tcp or tls)."
)

_BY_PHASE: Final = {
    "signalling": "The HTTP request was not answered: see the line about HTTP or HTTPS above.",
    "ice": _UDP_REMEDY,
    "dtls": _UDP_REMEDY,
    "channel": "The call is connected, but its data channel did not open: try again, then check OpenAI's status page.",
}

_BY_CODE: Final = {
    "insufficient_quota": "The account has no credit left: see its billing page.",
    "billing_hard_limit_reached": "The account's spending limit is reached: raise it on its billing page.",
    "billing_not_active": "The account's billing is not active: see its billing page.",
    "model_not_found": "Set upstream.session.model to a Realtime model that the key's project may use.",
    "missing_scope": "The key is restricted: give it write access to Realtime, or use another.",
    "insufficient_permissions": "The key is restricted: give it write access to Realtime, or use another.",
}


def _remedy(error: GatewayError, config: Config) -> str:
    """Return the remedy for a call that failed."""
    if isinstance(error.__cause__, aiohttp.ClientConnectorDNSError):
        return "The upstream's name does not resolve: see the line about DNS above."
    if isinstance(error.__cause__, aiohttp.ClientError):
        return _BY_PHASE["signalling"]
    if (phase := error.members.get("phase")) in _BY_PHASE:
        return _BY_PHASE[str(phase)]
    found = error.members.get("upstream")
    upstream = found if isinstance(found, dict) else {}
    if (code := upstream.get("code")) in _BY_CODE:
        return _BY_CODE[str(code)]
    param = str(upstream.get("param", ""))
    match upstream.get("status"):
        case 401:
            return f"OpenAI does not accept the key: check {_key_source(config)}."
        case 403:
            return f"The key may not do this: check the permissions of the key in {_key_source(config)}."
        case 429:
            return "Wait, or raise the account's limits."
        case 404:
            return "There is no Realtime API at this address: check upstream.base_url."
        case int(status) if 400 <= status < 500:
            member = param if param.startswith("session.") else "session"
            return f"Check the session template, upstream.{member}."
        case int(status) if 300 <= status < 400:
            return "The address redirects: set upstream.base_url to the target of the redirect."
    return "Try again; then check OpenAI's status page."


def _key_source(config: Config) -> str:
    """Return the name of the setting that contains the key."""
    if config.upstream.api_key is None:
        return f"upstream.api_key_file ({config.upstream.api_key_file})"
    name = "GATEWAY_UPSTREAM__API_KEY"
    return f"the environment's {name if name in os.environ else 'OPENAI_API_KEY'}"
