"""A plain Debian from debootstrap, and the gateway's wheels for its Python. Tests install into copies of it."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.conftest import ROOT

SUITE = "bookworm"
PYTHON_VERSION = "3.11"
# An official image of Python has a `python`; setpriv, of util-linux, is part of the minimal system.
PACKAGES = "python3,python3-venv,python-is-python3"
STEP_SECONDS = 600.0
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def run(*command: str, **environ: str) -> str:
    """Run a step that must succeed, and return its output."""
    done = subprocess.run(
        command,
        env={"PATH": SYSTEM_PATH, **environ},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=STEP_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


@dataclass(frozen=True, slots=True)
class Debian:
    """A system without the gateway, and a folder of wheels: the pinned ones and the gateway's."""

    system: Path
    wheels: Path


def make(top: Path, debootstrap: str) -> Debian:
    """Make both; skip the test if Debian's archive or the package index cannot be reached."""
    made = Debian(top / "system", top / "wheels")
    made.system.mkdir()
    made.wheels.mkdir()
    archive = "http://deb.debian.org/debian"
    command = [debootstrap, "--variant=minbase", f"--include={PACKAGES}", SUITE, str(made.system), archive]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_SECONDS, check=False)
    if done.returncode:
        pytest.skip(f"debootstrap cannot make a Debian here: {done.stdout.splitlines()[-1:]}")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(made.wheels))
    _download(made.wheels)
    return made


def _download(wheels: Path) -> None:
    """Fetch the pinned wheels for Debian's Python, through pip's usual settings."""
    # pip evaluates the markers with the Python that it runs on. Debian's may be an older patch release.
    pins = wheels / "pins.txt"
    text = (ROOT / ".ci/requirements.txt").read_text(encoding="utf-8")
    pins.write_text(re.sub(r" ; python_full_version < '[0-9.]+'", "", text), encoding="utf-8")
    python = sys.executable
    # An environment made by uv has no pip.
    if subprocess.run([python, "-c", "import pip"], check=False, capture_output=True).returncode:
        python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else str(shutil.which("python3"))
    command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    done = subprocess.run(
        [
            *command,
            "--only-binary=:all:",
            f"--python-version={PYTHON_VERSION}",
            f"--dest={wheels}",
            f"--requirement={pins}",
        ],
        capture_output=True,
        text=True,
        timeout=STEP_SECONDS,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"the pinned wheels cannot be fetched here: {done.stderr.splitlines()[-1:]}")
