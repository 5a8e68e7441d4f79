"""`[cluster]`: the accepted forms of URL, and the settings that several nodes need."""

from pathlib import Path

import pytest

from gateway.clustering import cluster_settings
from gateway.config import Config, ConfigError, load

SIGNED = {"GATEWAY_ACCESS__SIGNING_KEY": "k" * 32}


def load_cluster(signed: dict[str, str] = SIGNED, /, **members: str) -> Config:
    """Load a configuration with these members of the section."""
    environ = {f"GATEWAY_CLUSTER__{name.upper()}": value for name, value in members.items()}
    return load(environ=environ | signed)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://10.0.0.1:6380/2",
        "redis://[::1]:6379",
        "rediss://redis.example.com:6380/0",
        "unix:///run/redis/redis.sock",
        "unix:///run/redis.sock?db=3",
        "redis+sentinel://a:26379,b:26379,c:26379/mymaster",
        "rediss+sentinel://a:26379/my.master/1",
        "redis+cluster://a:6379,b:6379",
        "rediss+cluster://a:6379/",
    ],
)
def test_url_of_each_form_is_taken(url: str) -> None:
    """One server, TLS, a socket, Sentinel and Cluster."""
    load_cluster(url=url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis:", "must be redis://"),
        ("http://a", "must be redis://"),
        ("redis://a,b", "must be redis://"),
        ("redis+sentinel://a:1", "must be redis://"),
        ("redis+cluster://a:1/3", "must be redis://"),
        ("unix://run/redis.sock", "must be redis://"),
        ("redis://user:verysecret@a", "cluster.password_file"),
    ],
)
def test_url_of_no_form_is_refused(url: str, said: str) -> None:
    """A URL of another form is refused, and a password in it is not repeated."""
    with pytest.raises(ConfigError) as refused:
        load_cluster(url=url)

    assert said in str(refused.value)
    assert "verysecret" not in str(refused.value)


def test_nodes_need_a_common_signing_key() -> None:
    """Several nodes need a common signing key, because a secret made by one node is verified by the others."""
    with pytest.raises(ConfigError, match=r"access\.signing_key_file"):
        load_cluster({}, url="redis://a")


def test_internal_listener_beyond_loopback_needs_protection() -> None:
    """TLS is required unless the operator declares the network as trusted."""
    address = {"host": "10.0.0.1", "url": "redis://a"}
    with pytest.raises(ConfigError, match="trust_network"):
        load_cluster(**address)

    load_cluster(**address, trust_network="true")
    load_cluster(**address, tls_certificate_file="c.pem", tls_key_file="k.pem")
    load_cluster(host="10.0.0.1")  # one process: nothing listens there


def test_node_that_listens_everywhere_says_where_it_is_found() -> None:
    """0.0.0.0 is not an address to connect to."""
    everywhere = {"host": "0.0.0.0", "url": "redis://a", "trust_network": "true"}
    with pytest.raises(ConfigError, match="advertise_url"):
        load_cluster(**everywhere)

    load_cluster(**everywhere, advertise_url="http://10.0.0.1:7000")


@pytest.mark.parametrize("prefix", ["tls", "redis"])
def test_half_of_a_certificate_is_refused(prefix: str) -> None:
    """A certificate without its key is refused."""
    with pytest.raises(ConfigError, match=f"{prefix}_certificate_file.* is set without {prefix}_key_file"):
        load_cluster(**{f"{prefix}_certificate_file": "c.pem"})


def test_a_prefix_of_other_characters_is_refused_in_words() -> None:
    """The message lists what is allowed instead of a regular expression."""
    with pytest.raises(ConfigError, match=r"cluster\.prefix.* must have 1 to 32 letters, digits"):
        load_cluster(prefix="a b{")


@pytest.mark.parametrize("name", ["redis_ca_file", "redis_certificate_file"])
def test_files_for_tls_to_redis_without_tls_are_refused(name: str) -> None:
    """With redis:// the operator would believe that the connection is encrypted."""
    files = {name: "c.pem"} | ({"redis_key_file": "k.pem"} if "certificate" in name else {})
    with pytest.raises(
        ConfigError, match=rf"{name}.* has no effect without TLS: set cluster.url to rediss://"
    ):
        load_cluster(url="redis://a", **files)

    load_cluster(url="rediss+cluster://a", **files)


@pytest.mark.parametrize("name", ["redis_ca_file", "redis_certificate_file"])
def test_files_for_tls_to_redis_that_cannot_be_read_are_named(name: str, tmp_path: Path) -> None:
    """The start fails with the name of the setting."""
    files = {name: str(tmp_path / "none")}
    files |= {"redis_key_file": str(tmp_path / "none")} if "certificate" in name else {}
    config = load_cluster(url="rediss://a", **files)
    with pytest.raises(ConfigError, match=f"cluster.{name}: .*none cannot be read: No such file"):
        cluster_settings(config)
