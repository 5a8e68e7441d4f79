"""The composition root: every setting reaches its package, and starting and ending leave nothing behind."""

import asyncio
import hashlib
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from gateway.app import Gateway
from gateway.config import Config, ConfigError, load
from gateway.config.reading import keys
from gateway.downstream.auth.access import KeyRule
from gateway.wiring import (
    access_rules,
    connection_limits,
    relay_limits,
    server_limits,
    stream_limits,
    upstream_config,
)
from tests.certificate import write_certificate
from tests.ports import free_port

KEY = "gwp_test"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
ADMIN = "an-admin-token"

CHANGES: dict[str, Any] = {
    "server.public_url": "https://realtime.example.com",
    "server.allowed_hosts": ("gateway.internal",),
    "server.trusted_proxies": ("10.0.0.0/8",),
    "server.max_header_bytes": 8192,
    "server.header_timeout_seconds": 3,
    "server.max_body_bytes": 2048,
    "server.body_timeout_seconds": 4,
    "server.keepalive_seconds": 5,
    "server.max_event_bytes": 4096,
    "server.max_batch_events": 3,
    "access.keys": ({"name": "ada", "sha256": (DIGEST,)},),
    "access.anonymous": True,
    "access.cors_origins": ("https://a.example",),
    "upstream.base_url": "http://127.0.0.1:8090/v1",
    "upstream.auth": "client",
    "upstream.api_key": "sk-other",
    "upstream.organization": "org",
    "upstream.project": "proj",
    "upstream.proxy": "http://127.0.0.1:3128",
    "upstream.connect_timeout_seconds": 7,
    "upstream.ice_servers": ({"urls": ("turn:127.0.0.1",), "username": "u", "credential": "p"},),
    "upstream.session_locked": ("model",),
    "upstream.session": {"model": "gpt-realtime-2"},
    "relay.max_sessions": 5,
    "relay.max_loop_lag_seconds": 0.5,
    "relay.max_server_event_bytes": 1 << 20,
    "relay.high_water_bytes": 4096,
    "relay.log_max_events": 6,
    "relay.log_max_bytes": 1 << 17,
    "relay.log_total_bytes": 1 << 21,
    "relay.log_retention_seconds": 8,
    "relay.detach_grace_seconds": 20,
    "relay.idle_timeout_seconds": 9,
    "relay.max_session_seconds": 10,
    "relay.turn_timeout_seconds": 11,
    "relay.stall_timeout_seconds": 14,
    "relay.max_waiting_turns": 2,
    "relay.continuity": False,
    "relay.recovery_timeout_seconds": 12,
    "stream.heartbeat_seconds": 6,
    "stream.max_age_seconds": 13,
    "stream.max_receivers": 4,
    "stream.write_timeout_seconds": 14,
}
"""Another value for each setting that a package gets."""

ELSEWHERE = {
    # seen in the tests below and in those of the command line
    "server.host",
    "server.port",
    "server.max_connections",
    "server.memory_budget_bytes",
    "server.tls_certificate_file",
    "server.tls_key_file",
    "admin.host",
    "admin.port",
    "admin.token",
    "admin.token_file",
    "access.keys_file",
    "access.signing_key",
    "access.signing_key_file",
    "upstream.ice_transport_policy",
    "upstream.api_key_file",
    "drain.timeout_seconds",
    "log.access",
    "log.format",
    "log.level",
    "upstream.prices_file",
    # of several nodes
    *(key for key in keys() if key.startswith("cluster.")),
}


def changed(dotted: str, value: object) -> Config:
    """Return the defaults with one setting changed."""
    section, _, name = dotted.partition(".")
    return load(environ={}, flags={section: {name: value}})


def limits_of(config: Config) -> tuple[object, ...]:
    """Return everything that the packages receive."""
    return (
        relay_limits(config),
        upstream_config(config),
        server_limits(config),
        stream_limits(config),
        access_rules(config),
    )


@asynccontextmanager
async def running(**sections: dict[str, object]) -> AsyncIterator[Gateway]:
    """Run a gateway on free ports, in front of nothing."""
    flags: dict[str, dict[str, object]] = {
        "server": {"port": 0, **sections.pop("server", {})},
        "admin": {"port": 0, **sections.pop("admin", {})},
        "upstream": {"base_url": "http://127.0.0.1:1/v1", **sections.pop("upstream", {})},
        "drain": {"timeout_seconds": 0.5},
        **sections,
    }
    gateway = Gateway(load(environ={}, flags=flags))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.close()


def held() -> tuple[int, int]:
    """Count tasks and file descriptors."""
    return len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir()))


async def status(url: str, method: str = "GET", key: str | None = None) -> int:
    """Return the status of an answer."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession() as http, http.request(method, url, headers=headers) as answer:
        return answer.status


# --- settings ---------------------------------------------------------------------------------------------------------


def test_going_by_a_relay_reaches_the_upstream_room() -> None:
    """`ice_transport_policy` reaches the upstream package. It requires a TURN server."""
    servers = CHANGES["upstream.ice_servers"]
    config = load(environ={}, flags={"upstream": {"ice_servers": servers, "ice_transport_policy": "relay"}})

    assert upstream_config(config).ice_transport_policy == "relay"


@pytest.mark.parametrize("dotted", CHANGES)
def test_setting_reaches_a_room(dotted: str) -> None:
    """Changing the setting changes what some package receives."""
    assert limits_of(changed(dotted, CHANGES[dotted])) != limits_of(Config())


def test_every_setting_is_accounted_for() -> None:
    """Every configuration key has an effect."""
    assert {key for key in keys() if "[]" not in key} == set(CHANGES) | ELSEWHERE


def test_the_memory_budget_reaches_the_relay() -> None:
    """The relay uses the configured memory budget."""
    gateway = Gateway(changed("server.memory_budget_bytes", 64 << 20))

    assert gateway._hub.budget.total_bytes == 64 << 20


def test_connections_leave_descriptors_for_sessions() -> None:
    """The limit is at most half of the open-files limit, minus a reserve, even if a higher one is configured."""
    assert connection_limits(changed("server.max_connections", 50), 1024).max_connections == 50
    assert connection_limits(Config(), 1024).max_connections == 480
    assert connection_limits(Config(), 1 << 20).max_connections == 10_000


def test_sessions_are_limited_by_the_descriptors_that_connections_leave() -> None:
    """Sessions are limited by the descriptors that remain, because a create without a free descriptor would fail
    halfway."""
    assert relay_limits(Config(), 1024).max_sessions == 480
    assert relay_limits(changed("server.max_connections", 50), 1024).max_sessions == 910
    assert relay_limits(Config(), 1 << 20).max_sessions == 2000
    assert relay_limits(Config(), 10).max_sessions == 1


def test_key_limits_reach_the_rules() -> None:
    """All limits of a key are mapped."""
    key = {
        "name": "ada",
        "sha256": DIGEST,
        "max_sessions": 1,
        "sessions_per_minute": 2,
        "events_per_second": 3,
        "bytes_per_second": 4,
    }

    assert access_rules(changed("access.keys", (key,))).keys == (
        KeyRule("ada", (bytes.fromhex(DIGEST),), 1, 2, 3, 4),
    )


def test_template_says_its_type() -> None:
    """The session template includes its type, because OpenAI refuses one without."""
    template = relay_limits(changed("upstream.session", {"type": "realtime"})).template

    assert template["type"] == "realtime"
    assert template["output_modalities"] == ["text"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_no_key(host: str) -> None:
    """On loopback, callers on this machine need no key."""
    assert access_rules(changed("server.host", host)).keys == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gateway.example.com"])
def test_listening_to_strangers_needs_a_key_or_a_word(host: str) -> None:
    """On other addresses the gateway starts without keys only if the operator explicitly allows it."""
    with pytest.raises(ConfigError, match="no key is configured"):
        access_rules(changed("server.host", host))

    flags: dict[str, dict[str, object]] = {"server": {"host": host}, "access": {"anonymous": True}}
    assert access_rules(load(environ={}, flags=flags)).anonymous is not None


def test_public_url_makes_host_and_origin_known() -> None:
    """The host and origin of `public_url` are accepted, because a proxy's host name differs from the gateway's."""
    rules = access_rules(changed("server.public_url", "https://realtime.example.com:8443/"))

    assert rules.hosts == {"realtime.example.com"}
    assert rules.own_origins == {"https://realtime.example.com:8443"}


def test_unreadable_networks_are_refused() -> None:
    """An invalid proxy address is refused, because it would never match."""
    with pytest.raises(ConfigError, match=r"server\.trusted_proxies"):
        access_rules(changed("server.trusted_proxies", ("nginx",)))


def test_proxy_of_the_environment_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy from the environment that is not an HTTP proxy is refused at start, and the message names the
    variable."""
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1080")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(ConfigError, match="HTTPS_PROXY names a proxy of the kind socks5"):
        Gateway(load(environ={}))


def test_certificate_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """Invalid TLS files fail at start, not at the first client."""
    flags = {"server": {"tls_certificate_file": str(tmp_path / "c"), "tls_key_file": str(tmp_path / "k")}}
    with pytest.raises(ConfigError, match="tls_certificate_file"):
        Gateway(load(environ={}, flags=flags))


async def test_certificate_is_served(tmp_path: Path) -> None:
    """With a certificate and a key, the client listener uses TLS."""
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    write_certificate(certificate, key)
    files: dict[str, object] = {"tls_certificate_file": str(certificate), "tls_key_file": str(key)}
    async with running(server=files) as gateway, aiohttp.ClientSession() as http:
        trusting = ssl.create_default_context(cafile=str(certificate))
        async with http.get(f"{gateway.url}/livez", ssl=trusting) as answer:
            found = answer.status
        plain = gateway.url.replace("https", "http")
        with pytest.raises(aiohttp.ClientError):
            await status(f"{plain}/livez")
        scheme = gateway.url.partition(":")[0]

    assert (scheme, found) == ("https", 200)


# --- life -------------------------------------------------------------------------------------------------------------


async def test_both_listeners_answer_on_their_real_ports() -> None:
    """Port 0 takes a free port, and the URLs contain it."""
    async with running() as gateway:
        answers = [await status(f"{url}/readyz") for url in (gateway.url, gateway.admin_url)]
        metrics = await status(f"{gateway.admin_url}/metrics")

    assert answers == [200, 200]
    assert metrics == 200


async def test_nothing_is_left_behind() -> None:
    """Tasks and file descriptors are as before, also after a failed start."""
    before = held()
    async with running() as gateway:
        await status(f"{gateway.url}/livez")
        taken = int(gateway.url.rpartition(":")[2])
        other = Gateway(load(environ={}, flags={"server": {"port": taken}, "admin": {"port": 0}}))
        with pytest.raises(OSError, match="in use"):
            await other.start()
        await other.close()
    await gateway.close()

    assert held() == before


async def test_failed_start_frees_the_other_port() -> None:
    """If one address is not available, the other one is released."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        free = free_port()
        gateway = Gateway(load(environ={}, flags={"server": {"port": port}, "admin": {"port": free}}))
        with pytest.raises(OSError, match="in use"):
            await gateway.start()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", free))


async def test_drain_is_not_ready_but_alive() -> None:
    """While draining, the gateway refuses new sessions and reports it to load balancers and Prometheus."""
    async with running() as gateway:
        await gateway.drain()
        ready, live = await status(f"{gateway.url}/readyz"), await status(f"{gateway.url}/livez")
        opening = await status(f"{gateway.url}/v1/sessions", "POST")
        async with aiohttp.ClientSession() as http, http.get(f"{gateway.admin_url}/metrics") as answer:
            text = await answer.text()

    assert (ready, live, opening) == (503, 200, 503)
    assert "realtime_gateway_draining 1.0" in text


async def test_operator_asks_for_the_drain_over_http() -> None:
    """`POST /drain` notifies the program that runs the gateway."""
    async with running() as gateway:
        answer = await status(f"{gateway.admin_url}/drain", "POST")
        asked = gateway.asked_to_drain.is_set()

    assert (answer, asked) == (202, True)


async def test_admin_token_is_asked_for() -> None:
    """If an admin token is configured, calling from loopback is not enough."""
    async with running(admin={"token": ADMIN}) as gateway:
        url = f"{gateway.admin_url}/sessions"
        answers = [await status(url), await status(url, key="wrong"), await status(url, key=ADMIN)]

    assert answers == [401, 401, 200]


async def test_keys_are_read_again_on_demand(tmp_path: Path) -> None:
    """A key that is added to the file is accepted after a reload; a broken file changes nothing."""
    file = tmp_path / "keys.toml"
    other = hashlib.sha256(b"other").hexdigest()
    file.write_text(f'[[keys]]\nname = "ada"\nsha256 = "{DIGEST}"\n')
    async with running(access={"keys_file": str(file)}) as gateway:
        url = f"{gateway.url}/v1/sessions"
        before = [await status(url, key=KEY), await status(url, key="other")]
        file.write_text(f'[[keys]]\nname = "bob"\nsha256 = "{other}"\n')
        await gateway.reload()
        after = [await status(url, key=KEY), await status(url, key="other")]
        file.write_text("[[keys")
        await gateway.reload()
        still = [await status(url, key=KEY), await status(url, key="other")]

    assert before == [200, 401]
    assert after == still == [401, 200]


@pytest.mark.parametrize("text", ["", "# nobody\n", "keys = []\n"])
def test_keys_file_without_keys_refuses_to_start(tmp_path: Path, text: str) -> None:
    """An empty keys file is refused: it must not admit every caller."""
    file = tmp_path / "keys.toml"
    file.write_text(text)
    config = load(environ={}, flags={"access": {"keys_file": str(file)}})
    with pytest.raises(
        ConfigError, match=r"access\.keys_file: .* contains no keys.*access\.anonymous = true"
    ):
        access_rules(config)


async def test_keys_file_without_keys_lets_in_whoever_was_asked_for(tmp_path: Path) -> None:
    """With `access.anonymous = true` callers without a key are accepted, but an unknown key is still refused."""
    file = tmp_path / "keys.toml"
    file.write_text("")
    async with running(access={"keys_file": str(file), "anonymous": True}) as gateway:
        url = f"{gateway.url}/v1/sessions/gws_none"
        answers = [await status(url), await status(url, key="unknown")]

    assert answers == [404, 401]


@pytest.mark.parametrize("anonymous", [False, True])
async def test_emptied_keys_file_changes_nothing(tmp_path: Path, anonymous: bool) -> None:
    """Known keys stay valid, nobody else is accepted, and the log reports an error."""
    file = tmp_path / "keys.toml"
    file.write_text(f'[[keys]]\nname = "ada"\nsha256 = "{DIGEST}"\n')
    async with running(access={"keys_file": str(file), "anonymous": anonymous}) as gateway:
        file.write_text("")
        with structlog.testing.capture_logs() as lines:
            await gateway.reload()
        url = f"{gateway.url}/v1/sessions/gws_none"
        answers = [await status(url, key=KEY), await status(url, key="other"), await status(url)]

    assert answers == [404, 401, 404 if anonymous else 401]
    assert [(line["event"], line["log_level"]) for line in lines] == [("keys_not_reloaded", "error")]
    assert "contains no keys" in str(lines[0]["problems"])


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("http://127.1:8080", "is no address"),
        ("http://[0:0:0:0:0:0:0:1]", "the address ::1"),
        ("https://a.example:99999", "is not an origin"),
        ("https://a.example:", "is not an origin"),
        ("https://a,b", "is not an origin"),
        ("data://x", "origin null"),
    ],
)
def test_origin_that_can_never_match_refuses_to_start(origin: str, said: str) -> None:
    """A configured origin that no browser sends is refused at start, because otherwise its pages would be refused
    without a visible reason."""
    with pytest.raises(ConfigError, match=r"access\.cors_origins: .* can never match") as refused:
        access_rules(load(environ={}, flags={"access": {"cors_origins": [origin]}}))

    assert said in str(refused.value)


@pytest.mark.parametrize("name", ["https://a.example", "a/b", "*.example", "a:b"])
def test_host_that_can_never_match_refuses_to_start(name: str) -> None:
    """A configured host that no request can have is refused at start."""
    with pytest.raises(ConfigError, match=r"server\.allowed_hosts: .* can never match"):
        access_rules(load(environ={}, flags={"server": {"allowed_hosts": [name]}}))


def test_without_a_cluster_nothing_of_it_is_loaded() -> None:
    """One process neither imports the code for several nodes nor needs the library for Redis."""
    code = (
        "import sys; from gateway.app import Gateway; from gateway.config import Config; Gateway(Config());"
        "print([name for name in sys.modules if name.partition('.')[0] == 'redis'"
        " or name.startswith(('gateway.cluster.', 'gateway.clustering'))])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said == "[]\n"
