"""The npm packages that tests of the browser side run, and their programs."""

import os
import subprocess
from pathlib import Path

import pytest

NPM = Path(__file__).resolve().parents[1] / "npm"


def require_npm() -> Path:
    """Return the folder of the packages; without them skip the test that asks, or fail it in CI."""
    if not (NPM / "node_modules").is_dir():
        reason = f"the packages of {NPM / 'package.json'} are not installed, and this test runs them"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return NPM / "node_modules"


def npm_program(name: str, *arguments: str) -> str:
    """Run a package's program in the folder and return its output; fail if it fails."""
    done = subprocess.run(
        [str(require_npm() / ".bin" / name), *arguments],
        check=False,  # the output is the message
        cwd=NPM,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
