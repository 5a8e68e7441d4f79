"""What a connection tells of its far side."""

import asyncio
from ipaddress import ip_network
from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from gateway.downstream.auth.access import ACCESS, Access, AccessRules
from gateway.downstream.auth.credentials import Signatures
from gateway.downstream.auth.peer import client_address, loopback_peer, scheme
from tests.downstream.house import SIGNING_KEY


def request_from(peer: object, **headers: str) -> web.Request:
    """Make a request as it comes from an address; only the 10.0.0.0/8 network's proxies are trusted."""
    transport = Mock(spec=asyncio.Transport)
    transport.get_extra_info.side_effect = {"peername": peer}.get
    app = web.Application()
    rules = AccessRules(trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("fe80::/10")))
    app[ACCESS] = Access(rules, Signatures([SIGNING_KEY]), lambda: 0)
    return make_mocked_request("GET", "/", headers=headers, transport=transport, app=app)


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        (("127.0.0.1", 5000), True),
        (("::1", 5000, 0, 0), True),
        (("::ffff:127.0.0.1", 5000, 0, 0), True),
        (("fe80::1%eth0", 5000, 0, 2), False),
        (("10.0.0.9", 5000), False),
        (None, False),
    ],
)
def test_peer_is_local_by_its_address(peer: object, local: bool) -> None:
    """The connection decides, not what the request says."""
    assert loopback_peer(request_from(peer, Host="localhost")) is local


@pytest.mark.parametrize(
    ("peer", "seen"),
    [
        (("10.0.0.9", 5000), "https"),
        (("::ffff:10.0.0.9", 5000, 0, 0), "https"),
        (("fe80::1%eth0", 5000, 0, 2), "https"),
        (("192.0.2.1", 5000), "http"),
        (None, "http"),
    ],
)
def test_forwarded_scheme_is_believed_by_address(peer: object, seen: str) -> None:
    """A trusted proxy is known in IPv6 clothes, too; nobody else may say how the client came."""
    assert scheme(request_from(peer, **{"X-Forwarded-Proto": "https"})) == seen


def test_strange_scheme_is_not_believed() -> None:
    """A proxy that says something else said nothing."""
    assert scheme(request_from(("10.0.0.9", 5000), **{"X-Forwarded-Proto": "gopher"})) == "http"


@pytest.mark.parametrize(
    ("peer", "forwarded", "seen"),
    [
        (("192.0.2.1", 5000), None, "192.0.2.1"),
        (("::ffff:192.0.2.1", 5000, 0, 0), None, "192.0.2.1"),
        (("192.0.2.1", 5000), "198.51.100.7", "192.0.2.1"),
        (("10.0.0.9", 5000), None, "10.0.0.9"),
        (("10.0.0.9", 5000), "198.51.100.7", "198.51.100.7"),
        (("10.0.0.9", 5000), "made.up, 203.0.113.5,198.51.100.7 , 10.1.1.1", "198.51.100.7"),
        (("10.0.0.9", 5000), "2001:db8::7", "2001:db8::7"),
        (("10.0.0.9", 5000), "198.51.100.7, unknown", "10.0.0.9"),
        (("10.0.0.9", 5000), "10.2.2.2", "10.2.2.2"),
        (None, "198.51.100.7", None),
    ],
)
def test_client_is_the_last_that_no_trusted_proxy_is(
    peer: object, forwarded: str | None, seen: str | None
) -> None:
    """Whoever is not trusted may write what it likes."""
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    assert client_address(request_from(peer, **headers)) == seen
