"""Calls through a TURN server, for networks that block outgoing UDP: a real coturn, over UDP, TCP and TLS.

The gateway offers only the relay's address, so nothing arrives by another path.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.cli import check_upstream as doctor
from gateway.upstream.config import IceServer
from tests.certificate import write_certificate
from tests.e2e.caller import Caller, Json, Serve, say
from tests.e2e.holdings import back_to, settled
from tests.farend import FarEnd
from tests.ports import free_port
from tests.programs import START_SECONDS, Program

pytestmark = [pytest.mark.slow, pytest.mark.needs("turnserver")]

NAME, PASSWORD = "gateway", "a-turn-password"
TRANSPORTS = ["turn:127.0.0.1:{plain}", "turn:127.0.0.1:{plain}?transport=tcp", "turns:127.0.0.1:{tls}"]


@dataclass
class Relay:
    """A running TURN server and its ports."""

    program: Program
    plain: int
    tls: int

    def url(self, form: str) -> str:
        return form.format(plain=self.plain, tls=self.tls)

    def server(self, form: str, password: str = PASSWORD) -> Json:
        """Return it as a member of `upstream.ice_servers`."""
        return {"urls": [self.url(form)], "username": NAME, "credential": password}


@pytest.fixture
def relay(
    tmp_path: Path, part_path: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Relay]:
    """Run a TURN server on loopback whose certificate is trusted."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write_certificate(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    plain, tls = free_port(), free_port()
    program = Program(
        tmp_path / "turn.log",
        *("--no-cli", "--log-file", "stdout", "--simple-log", "--verbose", "--allow-loopback-peers"),
        *("--pidfile", f"{tmp_path}/pid", "--db", f"{tmp_path}/db", "--no-dtls"),
        *("--listening-ip", "127.0.0.1", "--relay-ip", "127.0.0.1"),
        *("--listening-port", str(plain), "--tls-listening-port", str(tls)),
        *("--cert", str(certificate), "--pkey", str(key)),
        *("--lt-cred-mech", "--realm", "test", "--user", f"{NAME}:{PASSWORD}"),
        command=part_path("turnserver"),
    )
    with program:
        _await_listener(program, tls)
        yield Relay(program, plain, tls)


def _await_listener(program: Program, port: int) -> None:
    # This port is opened last. The log is buffered until then.
    deadline = time.monotonic() + START_SECONDS
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert program.process.poll() is None, program.output
        assert time.monotonic() < deadline, "it does not listen"
        time.sleep(0.05)


@pytest.mark.parametrize("form", TRANSPORTS, ids=["udp", "tcp", "tls"])
async def test_a_conversation_goes_through_the_relay(
    serve: Serve, far_end: FarEnd, relay: Relay, form: str
) -> None:
    """The call uses only the relay's address; it works, ends, and leaves nothing behind."""
    gateway = await serve(
        far_end, upstream={"ice_servers": [relay.server(form)], "ice_transport_policy": "relay"}
    )
    async with Caller(gateway.url) as caller:
        first = await caller.open()
        await caller.ask("DELETE", f"/v1/sessions/{first['id']}")
    before = await settled()

    async with Caller(gateway.url) as caller, Caller(gateway.admin_url) as operator:
        session = await caller.open()
        await caller.send(session["id"], *say("What is 6 times 7?"))
        read = await caller.until(session["id"], "response.done")
        _, inside = await operator.ask("GET", f"/sessions/{session['id']}")
        await caller.ask("DELETE", f"/v1/sessions/{session['id']}")

    assert "42" in str(read[-1].value)
    candidates = inside["diagnostics"]["line"]["call"]["candidates"]
    assert (candidates["local"], candidates["selected"]) == (["relay/udp"], ["relay", "host"])
    await back_to(before)


async def test_without_the_relay_its_sessions_fail_and_others_do_not(
    serve: Serve, far_end: FarEnd, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong password is logged for the operator; if a direct path is allowed, it is used instead."""
    wrong = {"ice_servers": [relay.server(TRANSPORTS[0], password="wrong")]}
    only = await serve(far_end, upstream={**wrong, "ice_transport_policy": "relay"})
    other = await serve(far_end, upstream=wrong)

    async with Caller(only.url) as caller:
        answer, problem = await caller.ask("POST", "/v1/sessions")
    async with Caller(other.url) as caller:
        session = await caller.open()
        await caller.ask("DELETE", f"/v1/sessions/{session['id']}")

    assert (answer.status, problem["code"]) == (502, "upstream-failed")
    assert "TURN server" in problem["detail"]
    assert capsys.readouterr().out.count("turn_unavailable") == 2


async def test_the_doctor_asks_for_an_address(relay: Relay) -> None:
    """A correct password, a wrong one, and a missing server give different results in `gateway check`."""
    found = [
        await doctor.ice_server(IceServer((relay.url(form),), NAME, password))
        for form, password in [*((form, PASSWORD) for form in TRANSPORTS), (TRANSPORTS[0], "wrong")]
    ]
    relay.program.stop()
    found.append(await doctor.ice_server(IceServer((relay.url(TRANSPORTS[1]),), NAME, PASSWORD)))

    assert [finding.result for finding in found] == ["ok", "ok", "ok", "failed", "failed"]
    assert "relays from 127.0.0.1:" in found[0].detail
    assert "401" in found[3].detail
    assert "reached" in found[4].detail
