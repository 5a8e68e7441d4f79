"""`gateway check` against working and failing upstreams."""

import asyncio
import resource
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.cli import check_upstream as doctor
from gateway.config import Config, load
from gateway.upstream.config import IceServer
from tests.cli.conftest import Start

NOWHERE = "http://127.0.0.1:1/v1"


def pointed_at(url: str, **upstream: object) -> Config:
    """Return a configuration for an upstream."""
    return load(environ={}, flags={"upstream": {"base_url": url, **upstream}})


@pytest.fixture
async def stun() -> AsyncIterator[str]:
    """Run a server that answers only binding requests (RFC 8489), and yield its address."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)

        async def serve() -> None:
            while True:
                data, address = await loop.sock_recvfrom(server, 1500)
                await loop.sock_sendto(server, struct.pack("!HH", 0x0101, 0) + data[4:20], address)

        serving = asyncio.create_task(serve())
        yield f"127.0.0.1:{server.getsockname()[1]}"
        serving.cancel()
        await asyncio.wait({serving})


async def test_everything_well_exits_with_zero(start: Start, emulator: str) -> None:
    """With a working upstream and a key, each line is ok and a real call is made."""
    check = await start("check", "--upstream-url", emulator, OPENAI_API_KEY="sk-test")
    status = await check.ended()
    await check.says("a real call: opened in")

    assert status == 0
    assert "failed" not in check.output
    assert "configuration" in check.output


@pytest.mark.slow
async def test_upstream_that_is_not_there_exits_with_one(start: Start) -> None:
    """The output says what failed and what to do about it."""
    check = await start("check", "--upstream-url", NOWHERE, OPENAI_API_KEY="sk-test")
    status = await check.ended()
    await check.says("a real call")

    assert status == 1
    assert "failed   HTTP to upstream" in check.output
    assert "→ Nothing accepts connections at TCP port" in check.output
    assert "Traceback" not in check.output


@pytest.mark.slow
async def test_file_of_the_environment_is_named(start: Start, tmp_path: Path) -> None:
    """The first line names the file from which the settings come, also the one in GATEWAY_CONFIG."""
    file = tmp_path / "named.toml"
    file.write_text("[log]\nformat = 'json'\n")
    check = await start("check", "--upstream-url", NOWHERE, GATEWAY_CONFIG=str(file))
    await check.says(r"configuration: .*named\.toml")

    assert await check.ended() == 1


async def test_missing_key_is_a_warning(emulator: str) -> None:
    """A missing key is only a warning, since all other checks may pass."""
    finding = await doctor.call(pointed_at(emulator))

    assert (finding.result, "OPENAI_API_KEY" in finding.remedy) == ("warning", True)


async def test_refused_key_is_explained() -> None:
    """401 is reported as a problem with the key only."""

    async def refuse(request: web.Request) -> web.Response:
        error = {
            "message": "Incorrect API key provided",
            "type": "invalid_request_error",
            "code": "invalid_api_key",
        }
        return web.json_response({"error": error}, status=401)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    async with TestServer(app) as server:
        finding = await doctor.call(pointed_at(str(server.make_url("/v1")), api_key="sk-wrong"))

    assert finding.result == "failed"
    assert finding.remedy == "OpenAI does not accept the key: check the environment's OPENAI_API_KEY."
    assert "sk-wrong" not in finding.detail + finding.remedy


@pytest.mark.parametrize(
    ("status", "error", "remedy"),
    [
        (403, {}, "The key may not do this"),
        (404, {}, "upstream.base_url"),
        (307, {}, "upstream.base_url"),
        (429, {"code": "insufficient_quota"}, "no credit"),
        (429, {"code": "rate_limit_exceeded"}, "raise the account's limits"),
        (400, {"param": "session.audio.input"}, "upstream.session.audio.input."),
        (400, {"param": "sdp"}, "the session template"),
        (404, {"code": "model_not_found"}, "upstream.session.model"),
        (500, {}, "status page"),
    ],
)
async def test_refusal_names_the_one_thing_to_do(status: int, error: dict[str, str], remedy: str) -> None:
    """Each refusal by OpenAI leads to one remedy. Only problems that cannot be fixed here refer to OpenAI's status
    page."""

    async def refuse(request: web.Request) -> web.Response:
        headers = {"Location": "/elsewhere"} if status == 307 else None
        return web.json_response({"error": error}, status=status, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    async with TestServer(app) as server:
        finding = await doctor.call(pointed_at(str(server.make_url("/v1")), api_key="sk-wrong"))

    assert remedy in finding.remedy
    assert ("status page" in finding.remedy) is (status == 500)


@pytest.mark.slow
async def test_name_that_does_not_resolve_is_told_once() -> None:
    """Checks that would fail for the same reason are skipped, and OpenAI's status page is not mentioned."""
    config = pointed_at("https://api.example.invalid/v1", api_key="sk-test")
    found = {finding.what: finding async for finding in doctor.examine(config, "127.0.0.1:1")}

    assert [found[what].result for what in ("DNS", "HTTPS", "a real call")] == [
        "failed",
        "skipped",
        "skipped",
    ]
    assert "status page" not in "".join(finding.remedy for finding in found.values())


async def test_upstream_without_a_listener_is_not_openais_fault() -> None:
    """A local upstream without a listener is not blamed on OpenAI: an earlier line already reports the cause."""
    finding = await doctor.call(pointed_at(NOWHERE, api_key="sk-test"))

    assert finding.remedy == "The HTTP request was not answered: see the line about HTTP or HTTPS above."


@pytest.mark.parametrize(
    ("host", "remedy"), [("192.0.2.1", "server.host"), ("no-such-name.invalid", "server.host")]
)
def test_address_of_another_machine_is_seen(host: str, remedy: str) -> None:
    """Only the invalid setting is named."""
    config = load(environ={}, flags={"server": {"host": host, "port": 0}, "admin": {"port": 0}})
    client, _ = doctor.listeners(config)

    assert client.result == "warning"
    assert remedy in client.remedy
    assert "server.port" not in client.remedy


async def test_unknown_name_fails() -> None:
    """`.invalid` never resolves (RFC 6761)."""
    finding = await doctor.names(pointed_at("https://api.example.invalid/v1"))

    assert finding.result == "failed"


async def test_udp_that_gets_through_is_seen(stun: str) -> None:
    """A STUN server's answer proves that UDP works."""
    finding = await doctor.udp(pointed_at("https://api.example.invalid/v1"), stun)

    assert finding.result == "ok"


async def test_udp_that_is_lost_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is a warning with a remedy."""
    monkeypatch.setattr(doctor, "WAIT_SECONDS", 0.3)
    finding = await doctor.udp(pointed_at("https://api.example.invalid/v1"), "127.0.0.1:1")

    assert finding.result == "warning"
    assert "TURN" in finding.remedy


async def test_ice_servers_are_asked(stun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check waits for an answer or an address. A server that is unreachable, silent or not TURN fails it."""
    monkeypatch.setattr(doctor, "WAIT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        found = [
            (await doctor.ice_server(IceServer((url,), "u", "p"))).result
            for url in (
                f"stun:{stun}",
                "stun:127.0.0.1:1",
                f"turn:127.0.0.1:{port}?transport=tcp",
                "turn:127.0.0.1:1?transport=tcp",
            )
        ]

    assert found == ["ok", "failed", "failed", "failed"]


def test_port_in_use_is_seen() -> None:
    """The gateway itself may be what listens there, so it is a warning."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = load(environ={}, flags={"server": {"port": taken.getsockname()[1]}, "admin": {"port": 0}})
        client, admin = doctor.listeners(config)

    assert (client.result, admin.result) == ("warning", "ok")


def test_too_few_open_files_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 sessions need more than the usual 1,024. Only the hard limit counts, to which the gateway raises its own."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    few = doctor.open_files(Config())
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 1_048_576))
    enough = doctor.open_files(Config())

    assert (few.result, enough.result) == ("warning", "ok")
    assert "ulimit -Hn 6100" in few.remedy
