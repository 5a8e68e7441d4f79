"""deploy/systemd/install on plain Debian: in a system of its own that debootstrap made, from the wheel."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.needs("debootstrap"),
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap and chroot are for root"),
]

SUITE = "bookworm"
SCRIPT = "/src/deploy/systemd/install"
ETC = "etc/realtime-gateway"
STEP_SECONDS = 600.0


def run(*command: str, **environ: str) -> str:
    """Run a step that must succeed, and return what it printed."""
    done = subprocess.run(
        command,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environ},
        capture_output=True,
        text=True,
        timeout=STEP_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


class Debian:
    """A Debian without the gateway, and the wheels that it installs."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def install(self, **environ: str) -> str:
        """Run the script, with no index but the wheels that lie there."""
        (wheel,) = (self.top / "wheels").glob("realtime_gateway-*.whl")
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "HOME": "/root"}
        command = ("chroot", str(self.top), SCRIPT, f"/wheels/{wheel.name}")
        return run(*command, **offline, **environ)

    def as_service(self, program: str) -> str:
        """Run Python as the service's user, with the unit's configuration, and return what it printed."""
        return run(
            "chroot", "--userspec=realtime-gateway", str(self.top), "/opt/gateway/bin/python", "-c", program
        )

    def mode(self, name: str) -> tuple[str, str]:
        """Return a file's mode and its group, by name."""
        output = run("chroot", str(self.top), "stat", "-c", "%a %U:%G", f"/{ETC}/{name}")
        mode, owner = output.split()
        return mode, owner


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory, part_path: Callable[[str], str]) -> Iterator[Debian]:
    """Make the system; skipped, saying so, where Debian's archive or the package index cannot be reached."""
    program = part_path("debootstrap")
    top = tmp_path_factory.mktemp("debian")
    include = "--include=python3,python3-venv"
    made = subprocess.run(
        [program, "--variant=minbase", include, SUITE, str(top), "http://deb.debian.org/debian"],
        capture_output=True,
        text=True,
        timeout=STEP_SECONDS,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"debootstrap cannot make a Debian here: {made.stdout.splitlines()[-1:]}")
    top.chmod(
        0o755
    )  # pytest's folders are for their owner alone, and the service's user must look into this one.
    wheels = top / "wheels"
    wheels.mkdir()
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels))
    _download(wheels)
    for folder in ("deploy", "config"):
        shutil.copytree(
            ROOT / folder, top / "src" / folder, ignore=shutil.ignore_patterns("node_modules", "secrets")
        )
    yield Debian(top)
    shutil.rmtree(top, ignore_errors=True)


def _download(wheels: Path) -> None:
    """Fetch the pinned wheels for Debian's Python, through pip's usual settings."""
    version = {"bookworm": "3.11"}[SUITE]
    # pip judges the markers by the Python that it runs on itself. Debian's may be an older one of the same minor version.
    pins = wheels / "pins.txt"
    text = (ROOT / ".ci/requirements.txt").read_text(encoding="utf-8")
    pins.write_text(re.sub(r" ; python_full_version < '[0-9.]+'", "", text), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    if subprocess.run([sys.executable, "-c", "import pip"], check=False, capture_output=True).returncode:
        command[0] = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else str(shutil.which("python3"))
    done = subprocess.run(
        [
            *command,
            "--only-binary=:all:",
            f"--python-version={version}",
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


SERVE = """
import asyncio, os
from pathlib import Path
from urllib.request import urlopen
os.environ |= {"GATEWAY_ADMIN__TOKEN": "t", "GATEWAY_ACCESS__SIGNING_KEY": "k" * 32, "OPENAI_API_KEY": "sk-x"}
from gateway.app import Gateway
from gateway.config import load
flags = {
    "server": {"host": "127.0.0.1", "port": 0},
    "admin": {"host": "127.0.0.1", "port": 0, "token_file": ""},
    "access": {"keys_file": "/etc/realtime-gateway/keys.toml", "signing_key_file": ""},
    "upstream": {"api_key_file": ""},
}
async def main():
    gateway = Gateway(load(Path("/etc/realtime-gateway/gateway.toml"), flags=flags))
    await gateway.start()
    try:
        print(await asyncio.to_thread(lambda: urlopen(f"{gateway.url}/livez").status))
    finally:
        await gateway.close()
asyncio.run(main())
"""


def test_the_script_installs_a_gateway_that_serves(debian: Debian) -> None:
    """From nothing: package, user, configuration, secrets, a first key, the unit. As the service's user it serves."""
    output = debian.install(OPENAI_API_KEY="sk-first")
    key = re.search(r"^gwp_\S+$", output, re.MULTILINE)
    files = {
        name: debian.mode(name) for name in ("openai-api-key", "signing-keys", "admin-token", "keys.toml")
    }

    assert key is not None, output
    assert "systemd does not run here" in output
    assert files == {
        "openai-api-key": ("600", "root:root"),
        "signing-keys": ("600", "root:root"),
        "admin-token": ("600", "root:root"),
        "keys.toml": ("640", "root:realtime-gateway"),
    }
    assert (debian.top / ETC / "openai-api-key").read_text() == "sk-first\n"
    assert (debian.top / ETC / "gateway.toml").read_text() == (ROOT / "config/production.toml").read_text()
    assert (debian.top / "etc/systemd/system/realtime-gateway.service").exists()
    assert "200" in debian.as_service(SERVE).splitlines()


def test_the_script_keeps_what_is_there(debian: Debian) -> None:
    """Run again it upgrades: no secret, key or setting is made again."""
    (debian.top / ETC / "gateway.toml").write_text("[log]\nformat = 'json'\n")
    names = ("openai-api-key", "signing-keys", "admin-token", "keys.toml", "gateway.toml")
    before = {name: (debian.top / ETC / name).read_text() for name in names}
    output = debian.install(OPENAI_API_KEY="sk-second")

    assert "gwp_" not in output
    assert {name: (debian.top / ETC / name).read_text() for name in names} == before
    assert len(tomllib.loads(before["keys.toml"])["access"]["keys"]) == 1


@pytest.mark.parametrize("argument", ["", "none.whl", "realtime-gateway", "a.tar.gz"])
def test_the_script_refuses_what_it_cannot_install(debian: Debian, argument: str) -> None:
    """It refuses before it changes anything, and says why."""
    done = subprocess.run(
        ["chroot", str(debian.top), SCRIPT, *([argument] if argument else [])],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("install: ")
