"""gateway/cli/workers.py: the folder of the workers' sockets. Workers themselves are tested with real Redis (tests/e2e)."""

import asyncio
import os
import tempfile
from pathlib import Path

import pytest

from gateway.cli import workers
from gateway.cli.workers import LONGEST_FOLDER, _held_port, _private_folder, _ready


def test_the_sockets_are_in_a_folder_that_only_this_user_can_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is below RUNTIME_DIRECTORY, and removed at the end."""
    with tempfile.TemporaryDirectory(dir="/tmp") as base:  # a short path
        monkeypatch.setenv("RUNTIME_DIRECTORY", base)
        with _private_folder() as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
            assert str(folder.parent) == base

        assert os.listdir(base) == []


def test_a_folder_with_too_long_a_path_for_a_socket_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says what to change, and nothing is left of the folder."""
    deep = tmp_path / ("x" * LONGEST_FOLDER)
    deep.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(deep))
    with pytest.raises(SystemExit), _private_folder():
        pytest.fail("it was used")

    assert "too long for a unix socket; set TMPDIR to a shorter one" in capsys.readouterr().err
    assert os.listdir(deep) == []


@pytest.mark.parametrize(
    ("listens", "named"), [("127.0.0.2", "127.0.0.2"), ("127.0.0.1", "0.0.0.0"), ("127.0.0.1", "")]
)
async def test_the_supervisor_learns_that_workers_serve_at_their_address(
    monkeypatch: pytest.MonkeyPatch, listens: str, named: str
) -> None:
    """`server.host` may be another address than 127.0.0.1: systemd would end a service that never says that it is ready."""
    told: list[str] = []
    monkeypatch.setattr(workers, "notify_supervisor", told.append)
    server = await asyncio.start_server(lambda _, writer: writer.close(), listens, 0)
    async with server, asyncio.timeout(5):
        await _ready(named, server.sockets[0].getsockname()[1])

    assert told == ["READY=1"]


def test_an_address_that_is_not_available_is_told_with_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that does not resolve is as clear as an address of another machine."""
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(SystemExit):
            _held_port(host, 0)

        told = capsys.readouterr().err
        assert f"cannot listen on {host}:0: " in told
        assert "Unknown error" not in told
        assert "choose another address: --host, --port" in told
