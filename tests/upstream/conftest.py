"""A far end shared by many tests, because starting one takes half a second."""

import subprocess
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def far_end() -> Iterator[str]:
    """Return the base URL of a far end in its own process, which serves every test that asks for it."""
    command = [sys.executable, "-m", "tests.upstream.farend"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().rpartition("listening on ")[2].strip()
        process.stdin.close()
        process.wait(10)
