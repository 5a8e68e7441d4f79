"""gateway/cli/demo_settings.py: the operator's settings are used, but none can replace the emulator."""

import hashlib
import socket
from pathlib import Path

import pytest

from gateway.cli.demo_settings import DRAIN_SECONDS, free_port, local_url, settings
from gateway.config import ConfigError

BASE = "http://127.0.0.1:1/v1"


def test_settings_of_the_environment_count() -> None:
    """Limits, log and session template from the environment are used."""
    environ = {
        "GATEWAY_RELAY__MAX_SESSIONS": "3",
        "GATEWAY_DRAIN__TIMEOUT_SECONDS": "9",
        "GATEWAY_UPSTREAM__SESSION__INSTRUCTIONS": "Be brief.",
    }
    config = settings(environ, 1, 2, BASE).config

    assert (config.relay.max_sessions, config.drain.timeout_seconds) == (3, 9)
    assert config.upstream.session["instructions"] == "Be brief."
    assert (config.server.port, config.admin.port, config.upstream.base_url) == (1, 2, BASE)


def test_settings_of_a_file_count(tmp_path: Path) -> None:
    """Settings from the file that GATEWAY_CONFIG names are used."""
    file = tmp_path / "gateway.toml"
    file.write_text("[stream]\nheartbeat_seconds = 7\n")

    assert settings({"GATEWAY_CONFIG": str(file)}, 1, 2, BASE).config.stream.heartbeat_seconds == 7


def test_nothing_leads_away_from_the_emulator(tmp_path: Path) -> None:
    """The demo uses no real key, proxy, TURN server or cluster, and its drain is short."""
    key = tmp_path / "key"
    key.write_text("sk-real")
    environ = {
        "OPENAI_API_KEY": "sk-real",
        "GATEWAY_UPSTREAM__API_KEY": "sk-real",
        "GATEWAY_UPSTREAM__API_KEY_FILE": str(key),
        "GATEWAY_UPSTREAM__AUTH": "client",
        "GATEWAY_UPSTREAM__BASE_URL": "https://api.openai.com/v1",
        "GATEWAY_UPSTREAM__PROXY": "http://proxy.example:3128",
        "GATEWAY_UPSTREAM__ICE_SERVERS": '[{"urls": ["turn:a"]}]',
        "GATEWAY_UPSTREAM__ICE_TRANSPORT_POLICY": "relay",
        "GATEWAY_CLUSTER__URL": "redis://a",
        "GATEWAY_ACCESS__SIGNING_KEY": "k" * 32,
    }
    config = settings(environ, 1, 2, BASE).config

    upstream = config.upstream
    assert upstream.api_key is not None
    assert upstream.api_key.get_secret_value() == "sk-offline"
    assert (upstream.auth, upstream.base_url, upstream.proxy) == ("gateway", BASE, None)
    assert (upstream.api_key_file, upstream.ice_servers, upstream.ice_transport_policy) == (None, (), "all")
    assert (config.cluster.url, config.drain.timeout_seconds) == ("", DRAIN_SECONDS)


def test_demo_has_a_key_of_its_own_where_keys_are_configured() -> None:
    """The demo's key is added to the operator's keys, so that the demo's client is accepted too."""
    environ = {"GATEWAY_ACCESS__KEYS": '[{"name": "ada", "sha256": "%s", "max_sessions": 2}]' % ("0" * 64)}
    made = settings(environ, 1, 2, BASE)

    ada, own = made.config.access.keys
    assert made.key is not None
    assert (ada.name, ada.max_sessions) == ("ada", 2)
    assert own.sha256 == (hashlib.sha256(made.key.encode()).hexdigest(),)
    assert settings({}, 1, 2, BASE).key is None
    assert settings(environ | {"GATEWAY_ACCESS__ANONYMOUS": "true"}, 1, 2, BASE).key is None


def test_wrong_setting_is_refused() -> None:
    """An invalid setting is refused, as by `gateway serve`."""
    with pytest.raises(ConfigError, match="max_sesions"):
        settings({"GATEWAY_RELAY__MAX_SESIONS": "3"}, 1, 2, BASE)


def test_free_port_is_another_one_where_it_is_taken() -> None:
    """If the wanted port is taken, another one is returned; otherwise the wanted one is."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = free_port("127.0.0.1", port)

    assert other != port
    assert free_port("127.0.0.1", port) == port
    with pytest.raises(OSError, match=r"no port of 192\.0\.2\.1"):
        free_port("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:80", "http://127.0.0.1:80"),
        ("http://0.0.0.0:80", "http://127.0.0.1:80"),
        ("http://[::]:80", "http://[::1]:80"),
        ("https://gw.example:80", "https://gw.example:80"),
    ],
)
def test_listener_is_reached_by_an_address(url: str, local: str) -> None:
    """A listener on all addresses is reached through a loopback address, because 0.0.0.0 is not an address to
    connect to."""
    assert local_url(url) == local
