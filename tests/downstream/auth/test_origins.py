"""Host names and origins in one spelling."""

import pytest

from gateway.downstream.auth.origins import host_name, is_loopback_address, is_loopback_name, normal_origin


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("http://localhost:8080", "http://localhost:8080"),
        ("HTTP://LocalHost:80", "http://localhost"),
        ("https://a.example:443", "https://a.example"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("null", None),
        ("", None),
        ("file://", None),
        ("http://a.example/path", None),
        ("http://user@a.example", None),
        ("http://a.example:port", None),
        ("http://[::1", None),
    ],
)
def test_origin_has_one_spelling(text: str, normal: str | None) -> None:
    """Default ports and capitals do not make another origin; what is none is None."""
    assert normal_origin(text) == normal


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost:8080", "localhost"),
        ("LOCALHOST", "localhost"),
        ("localhost.", "localhost"),
        ("[::1]:80", "::1"),
        ("127.0.0.1", "127.0.0.1"),
        ("", None),
        ("a@localhost", None),
        ("localhost/evil", None),
        ("localhost:x", None),
    ],
)
def test_host_name_is_taken_from_the_header(header: str, name: str | None) -> None:
    """The name without port, and None for what is no Host at all."""
    assert host_name(header) == name


@pytest.mark.parametrize(
    "name", ["localhost", "a.localhost", "127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"]
)
def test_loopback_names(name: str) -> None:
    """What can only mean this machine."""
    assert is_loopback_name(name)


@pytest.mark.parametrize(
    "name",
    ["localhost.evil.example", "evil.example", "10.0.0.1", "0.0.0.0", "127.0.0.1.nip.io", "notlocalhost", ""],
)
def test_other_names_are_not_loopback(name: str) -> None:
    """Names that only look alike, and addresses of other machines."""
    assert not is_loopback_name(name)


def test_scoped_address_is_no_reason_to_fail() -> None:
    """A peer's link-local address comes with its interface."""
    assert not is_loopback_address("fe80::1%eth0")
