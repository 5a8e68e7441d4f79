"""gateway/cli/workers.py: the folder of the workers' sockets. Workers themselves are tested with real Redis (tests/e2e)."""

import os
import tempfile
from pathlib import Path

import pytest

from gateway.cli.workers import LONGEST_FOLDER, _private_folder


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
