"""What a connection tells of its far side."""

import asyncio
from ipaddress import ip_network
from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from gateway.downstream.access import ACCESS, Access, AccessRules
from gateway.downstream.credentials import Signatures
from gateway.downstream.peer import loopback_peer, scheme
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
