"""Notifications to the service manager, on real datagram sockets."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from gateway.cli.systemd import beat, notify_supervisor, watchdog_seconds


def listening(address: str) -> socket.socket:
    """Stand in for the supervisor at an address."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.bind(address)
    channel.settimeout(5)
    return channel


def test_a_state_arrives_at_a_socket_in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """NOTIFY_SOCKET may be a path."""
    path = os.fspath(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with listening(path) as supervisor:
        notify_supervisor("READY=1")

        assert supervisor.recv(100) == b"READY=1"


def test_a_state_arrives_at_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """NOTIFY_SOCKET may be a name in the abstract namespace, written with a leading @."""
    name = f"realtime-gateway-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
    with listening("\0" + name) as supervisor:
        notify_supervisor("STOPPING=1")

        assert supervisor.recv(100) == b"STOPPING=1"


def test_a_supervisor_that_is_gone_or_does_not_read_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A supervisor that is gone or does not read neither fails nor delays the gateway."""
    path = os.fspath(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    notify_supervisor("READY=1")
    with listening(path) as supervisor:
        for _ in range(2000):
            notify_supervisor("WATCHDOG=1")

        assert supervisor.recv(100) == b"WATCHDOG=1"


async def test_the_loop_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a watchdog, the loop notifies the supervisor twice within the allowed time."""
    path = os.fspath(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with listening(path) as supervisor:
        beating = asyncio.create_task(beat())
        heard = [await asyncio.to_thread(supervisor.recv, 100) for _ in range(3)]
        beating.cancel()
        await asyncio.wait({beating})

    assert heard == [b"WATCHDOG=1"] * 3


async def test_without_a_watchdog_nothing_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a watchdog, the task ends by itself."""
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    await asyncio.wait_for(beat(), 10)


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_counts_for_the_process_it_names(environ: dict[str, str], seconds: float | None) -> None:
    """A child that inherits the environment, or an invalid interval, starts no watchdog."""
    assert watchdog_seconds(environ, 7) == seconds
