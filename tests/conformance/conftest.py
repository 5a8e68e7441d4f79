"""A black-box suite for the gateway's HTTP contract, sections 1 and 3.

It runs against any deployment:

    pytest tests/conformance --url https://gateway.example --key gw-… [--other-key gw-…] [--origin https://app.example]
        [--upstream-url https://api.openai.com/v1 --upstream-key sk-…]

`--other-key` is a second caller's key, `--origin` one that the deployment lists in `access.cors_origins`, the last two are for
calls that another application makes; tests that need
what is not given are skipped and say so. Without `--url` a gateway of this checkout is started with the offline service
behind it, and nothing is skipped. It opens some two hundred sessions and holds some forty short text turns: against a
live upstream that costs a little money.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.conformance.wire import ANSWER_SECONDS, Session, Wire

_OPENAI_KEY = "sk-conformance"
_KEY, _OTHER_KEY, _ORIGIN = "gw-conformance", "gw-conformance-other", "https://app.example"


@dataclass(frozen=True, slots=True)
class Deployment:
    """The deployment under test, and the credentials for it."""

    url: str
    key: str | None
    other_key: str | None
    origin: str | None
    anonymous_url: str | None = None
    """A second gateway that takes callers without a key."""
    upstream_url: str | None = None
    """The service behind it, for calls that somebody else makes."""
    upstream_key: str | None = None
    """A key of the project that the gateway's own key belongs to."""
    stranger_key: str | None = None
    """A key of another project."""
    offline: bool = False
    """The service is the emulator, which can be told to go wrong."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options, which exist only if this folder is named on the command line."""
    group = parser.getgroup("conformance", "the deployment to be tested")
    group.addoption("--url", help="base URL of a running gateway; without it one is started here")
    group.addoption("--key", help="an API key of that gateway, unless it takes anonymous callers")
    group.addoption("--other-key", help="another caller's API key")
    group.addoption(
        "--upstream-url", help="base URL of the service behind it, such as https://api.openai.com/v1"
    )
    group.addoption("--upstream-key", help="a key for it, of the project of the gateway's own")
    group.addoption("--origin", help="an origin in its access.cors_origins")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the whole suite out of `make test-fast`, because it takes half a minute."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """Return the gateway under test."""
    options = [request.config.getoption(name, None) for name in ("--url", "--key", "--other-key", "--origin")]
    url, key, other_key, origin = options
    if url:
        given = [request.config.getoption(name, None) for name in ("--upstream-url", "--upstream-key")]
        yield Deployment(url, key, other_key, origin, upstream_url=given[0], upstream_key=given[1])
        return
    with ExitStack() as stack:
        yield _start(tmp_path_factory.mktemp("conformance"), stack)


def _start(folder: Path, stack: ExitStack) -> Deployment:
    """Start the offline service, a gateway with keys, and one without."""
    from tests.farend import FarEnd
    from tests.programs import Served

    # Fast, but slow enough that a response is still running when a test acts.
    far_end = stack.enter_context(FarEnd(folder / "far-end", "--tokens-per-second", "200"))
    keys = [
        {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
        for name, key in (("one", _KEY), ("other", _OTHER_KEY))
    ]
    environments: tuple[dict[str, str], ...] = (
        {
            "OPENAI_API_KEY": _OPENAI_KEY,
            "GATEWAY_ACCESS__KEYS": json.dumps(keys),
            "GATEWAY_ACCESS__CORS_ORIGINS": json.dumps([_ORIGIN]),
        },
        {},
    )
    programs = [
        stack.enter_context(Served(folder / f"gateway-{number}", far_end.base_url, environ=environ))
        for number, environ in enumerate(environments)
    ]
    urls = [program.url for program in programs]
    return Deployment(
        urls[0],
        _KEY,
        _OTHER_KEY,
        _ORIGIN,
        anonymous_url=urls[1],
        upstream_url=far_end.base_url,
        upstream_key=_OPENAI_KEY,
        stranger_key="sk-stranger",
        offline=True,
    )


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """Return an HTTP client that adds no headers of its own."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
        skip_auto_headers=["Content-Type", "Accept"],
        auto_decompress=False,
    ) as session:
        yield session


@pytest.fixture
def wire(deployment: Deployment, http: aiohttp.ClientSession) -> Wire:
    """Return a caller with the key."""
    return Wire(deployment.url, deployment.key, http)


@pytest_asyncio.fixture
async def session(wire: Wire) -> AsyncIterator[Session]:
    """Return an open session."""
    async with wire.session() as opened:
        yield opened


@pytest.fixture
def stranger(deployment: Deployment, http: aiohttp.ClientSession) -> Wire:
    """Return a caller without a credential, for a gateway that requires one."""
    if deployment.key is None:
        pytest.skip("the deployment takes callers without a key; give one by --key")
    return Wire(deployment.url, None, http)


@pytest.fixture
def other(deployment: Deployment, http: aiohttp.ClientSession) -> Wire:
    """Return another caller."""
    if deployment.other_key is None:
        pytest.skip("another caller's key is needed: --other-key")
    return Wire(deployment.url, deployment.other_key, http)


@pytest.fixture
def origin(deployment: Deployment) -> str:
    """Return an origin that the deployment lists."""
    if deployment.origin is None:
        pytest.skip("an origin of access.cors_origins is needed: --origin")
    return deployment.origin


@pytest.fixture
def anonymous(deployment: Deployment, http: aiohttp.ClientSession) -> Wire:
    """Return a caller without a credential, for a gateway that accepts such callers."""
    url = deployment.anonymous_url or (deployment.url if deployment.key is None else None)
    if url is None:
        pytest.skip("the deployment takes no callers without a key")
    return Wire(url, None, http)
