"""The npm packages that tests of the browser side run, and their programs."""

import subprocess
from pathlib import Path

from tests.conftest import require_packages

NPM = Path(__file__).resolve().parents[1] / "npm"


def npm_program(name: str, *arguments: str) -> str:
    """Run a package's program in the folder and return its output; fail if it fails."""
    done = subprocess.run(
        [str(require_packages(NPM) / ".bin" / name), *arguments],
        check=False,  # the output is the message
        cwd=NPM,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
