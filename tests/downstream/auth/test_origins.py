"""Host names and origins in canonical form."""

import pytest

from gateway.downstream.auth.origins import (
    ALLOWED_HEADERS,
    host_name,
    is_loopback_address,
    is_loopback_name,
    normal_origin,
    preflight_headers,
    unmatchable,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("http://localhost:8080", "http://localhost:8080"),
        ("HTTP://LocalHost:80", "http://localhost"),
        ("https://a.example:443", "https://a.example"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("ionic://localhost", "ionic://localhost"),
        ("tauri://localhost", "tauri://localhost"),
        ("app://Obsidian.md", "app://obsidian.md"),
        ("app://localhost:8080", "app://localhost:8080"),
        (
            "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
            "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
        ),
        (
            "moz-extension://0a1b2c3d-0a1b-2c3d-0a1b-0a1b2c3d4e5f",
            "moz-extension://0a1b2c3d-0a1b-2c3d-0a1b-0a1b2c3d4e5f",
        ),
        ("null", None),
        ("//a.example", None),
        ("a.example", None),
        ("https://", None),
        ("https://a.example?q", None),
        ("https://a.example#f", None),
        ("https://a.example https://b.example", None),
        ("https://*.example", None),
        ("", None),
        ("file://", None),
        ("http://a.example/path", None),
        ("http://user@a.example", None),
        ("http://a.example:port", None),
        ("http://[::1", None),
    ],
)
def test_origin_has_one_spelling(text: str, normal: str | None) -> None:
    """Default ports and upper case do not make a different origin; for anything that is not an origin, the result is
    None."""
    assert normal_origin(text) == normal


@pytest.mark.parametrize(
    "text",
    [
        "https://app.example",
        "HTTPS://App.Example:443",
        "http://10.0.0.1:3000",
        "http://[::1]:3000",
        "https://xn--bcher-kva.example",
        "capacitor://localhost",
        "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
        "vscode-webview://0a1b2c",
    ],
)
def test_origins_that_are_sent_can_be_listed(text: str) -> None:
    """Origins of pages, apps and extensions can be listed."""
    assert unmatchable(text) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("null", "is not an origin"),
        ("https://a.example/", "is not an origin"),
        ("file://host", "null"),
        ("https://bücher.example:8443", "https://xn--bcher-kva.example:8443"),
        ("https://a..é.example", "not a host name"),
        ("http://1.2.3", "no address"),
        ("http://0x7f.1", "no address"),
        ("http://[::0:1]", "::1"),
    ],
)
def test_origins_that_are_never_sent_are_told_from_them(text: str, why: str) -> None:
    """An origin that no browser sends is refused together with the form that a browser sends, if there is one."""
    assert why in str(unmatchable(text))


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ("content-type,sentry-trace, baggage", "content-type, sentry-trace, baggage"),
        (
            "traceparent,tracestate,x-datadog-trace-id,newrelic",
            "traceparent, tracestate, x-datadog-trace-id, newrelic",
        ),
        (",x-a,,", "x-a"),
        ("", ALLOWED_HEADERS),
        (None, ALLOWED_HEADERS),
        ("x a", ALLOWED_HEADERS),
        ("x\r\nSet-Cookie: a", ALLOWED_HEADERS),
    ],
)
def test_preflight_allows_the_headers_it_is_asked_for(asked: str | None, allowed: str) -> None:
    """The preflight allows the requested headers if they are valid names, and otherwise the gateway's own list."""
    assert preflight_headers(asked)["Access-Control-Allow-Headers"] == allowed


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
    """The host name is returned without its port, and None for an invalid Host."""
    assert host_name(header) == name


@pytest.mark.parametrize(
    "name", ["localhost", "a.localhost", "127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"]
)
def test_loopback_names(name: str) -> None:
    """Names and addresses that can only mean this machine are loopback."""
    assert is_loopback_name(name)


@pytest.mark.parametrize(
    "name",
    ["localhost.evil.example", "evil.example", "10.0.0.1", "0.0.0.0", "127.0.0.1.nip.io", "notlocalhost", ""],
)
def test_other_names_are_not_loopback(name: str) -> None:
    """Names that only look like loopback, and addresses of other machines, are not."""
    assert not is_loopback_name(name)


def test_scoped_address_is_no_reason_to_fail() -> None:
    """A link-local address with an interface name is parsed without an error."""
    assert not is_loopback_address("fe80::1%eth0")
