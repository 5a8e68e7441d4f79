"""The gateway on plain Debian: the script deploy/systemd/install, and the image of deploy/Dockerfile, built by
buildah.

Both use one system that debootstrap made and wheels that were downloaded before, so this file takes little longer
than either alone. The image is built on that system because no registry of images can be reached here.
"""

import asyncio
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import debian
from tests.deploy.conftest import ROOT
from tests.deploy.debian import SYSTEM_PATH, Debian, run
from tests.e2e.caller import Caller
from tests.farend import FarEnd

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.needs("debootstrap"),
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap and chroot need root"),
]

SCRIPT = "/src/deploy/systemd/install"
ETC = "etc/realtime-gateway"
SECRETS = "run/secrets/realtime-gateway"
NOBODY = "65532"
START_SECONDS = 60.0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, part_path: Callable[[str], str]) -> Iterator[Debian]:
    """Make the system once for all tests of this file."""
    top = tmp_path_factory.mktemp("debian")
    yield debian.make(top, part_path("debootstrap"))
    shutil.rmtree(top, ignore_errors=True)


# -- deploy/systemd/install ------------------------------------------------------------------------------------------


class Installed:
    """A copy of the system into which the script installs the gateway."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def install(self, **environ: str) -> str:
        """Run the script with a package index that has only the wheels."""
        (wheel,) = (self.top / "wheels").glob("realtime_gateway-*.whl")
        # Compiling every file of every package takes longer than compiling those that are imported.
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "PIP_NO_COMPILE": "1", "HOME": "/root"}
        command = ("chroot", str(self.top), SCRIPT, f"/wheels/{wheel.name}")
        return run(*command, **offline, **environ)

    def as_service(self, program: str) -> str:
        """Run Python as the service's user, with the unit's configuration, and return its output."""
        return run(
            "chroot", "--userspec=realtime-gateway", str(self.top), "/opt/gateway/bin/python", "-c", program
        )

    def mode(self, name: str) -> tuple[str, str]:
        """Return a file's mode and its owner, by name."""
        output = run("chroot", str(self.top), "stat", "-c", "%a %U:%G", f"/{ETC}/{name}")
        mode, owner = output.split()
        return mode, owner


@pytest.fixture(scope="module")
def installed(plain: Debian, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Copy the system, with the script and the wheels in it."""
    top = tmp_path_factory.mktemp("installed")
    run("cp", "-a", f"{plain.system}/.", str(top))
    run("cp", "-a", str(plain.wheels), str(top / "wheels"))
    # pytest makes its folders readable for their owner only, but the service's user must read this one.
    top.chmod(0o755)
    for folder in ("deploy", "config"):
        ignored = shutil.ignore_patterns("node_modules", "secrets")
        shutil.copytree(ROOT / folder, top / "src" / folder, ignore=ignored)
    yield Installed(top)
    shutil.rmtree(top, ignore_errors=True)


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


def test_the_script_installs_a_gateway_that_serves(installed: Installed) -> None:
    """It makes the package, user, configuration, secrets, first key and unit; the service's user can then serve."""
    output = installed.install(OPENAI_API_KEY="sk-first")
    key = re.search(r"^gwp_\S+$", output, re.MULTILINE)
    files = {
        name: installed.mode(name) for name in ("openai-api-key", "signing-keys", "admin-token", "keys.toml")
    }

    assert key is not None, output
    assert "systemd does not run here" in output
    assert files == {
        "openai-api-key": ("600", "root:root"),
        "signing-keys": ("600", "root:root"),
        "admin-token": ("600", "root:root"),
        "keys.toml": ("640", "root:realtime-gateway"),
    }
    assert (installed.top / ETC / "openai-api-key").read_text() == "sk-first\n"
    production = (ROOT / "config/production.toml").read_text()
    assert (installed.top / ETC / "gateway.toml").read_text() == production.replace(f"/{SECRETS}", f"/{ETC}")
    assert (installed.top / "etc/systemd/system/realtime-gateway.service").exists()
    assert "200" in installed.as_service(SERVE).splitlines()


def test_the_script_keeps_existing_files(installed: Installed) -> None:
    """A second run upgrades and keeps every secret, key and setting."""
    (installed.top / ETC / "gateway.toml").write_text("[log]\nformat = 'json'\n")
    names = ("openai-api-key", "signing-keys", "admin-token", "keys.toml", "gateway.toml")
    before = {name: (installed.top / ETC / name).read_text() for name in names}
    output = installed.install(OPENAI_API_KEY="sk-second")

    assert "gwp_" not in output
    assert {name: (installed.top / ETC / name).read_text() for name in names} == before
    assert len(tomllib.loads(before["keys.toml"])["access"]["keys"]) == 1


@pytest.mark.parametrize("argument", ["", "none.whl", "realtime-gateway", "a.tar.gz"])
def test_the_script_refuses_a_wrong_argument(installed: Installed, argument: str) -> None:
    """It fails with a message before it changes anything."""
    done = subprocess.run(
        ["chroot", str(installed.top), SCRIPT, *([argument] if argument else [])],
        env={"PATH": SYSTEM_PATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("install: ")


# -- deploy/Dockerfile -----------------------------------------------------------------------------------------------


class Image:
    """The image that buildah built on the system, and a container of it, mounted."""

    def __init__(self, buildah: str, store: Path, plain: Debian) -> None:
        self._buildah = buildah
        self._store = store
        self._make_base(plain.system)
        (store / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        self._do(
            *(
                "build",
                "--isolation=chroot",
                "--network=host",
                "--format=docker",
                "--build-arg=BASE=localhost/base",
            ),
            *(f"--volume={plain.wheels}:/wheels:ro", f"--volume={store}/pip.conf:/etc/pip.conf:ro"),
            *("--ignorefile=deploy/Dockerfile.dockerignore", "-f", "deploy/Dockerfile", "-t", "gateway", "."),
        )
        container = self._do("from", "--pull-never", "localhost/gateway").split()[-1]
        self.top = Path(self._do("mount", container).split()[-1])
        described = json.loads(self._do("inspect", "--type=image", "localhost/gateway"))
        self.settings: dict[str, Any] = described["Docker"]["config"]

    def _make_base(self, system: Path) -> None:
        """Commit the system as the image `base`, without what only packages and people read: each copy takes time."""
        container = self._do("from", "scratch").split()[-1]
        top = self._do("mount", container).split()[-1]
        run("cp", "-a", f"{system}/.", top)
        unread = (
            "usr/share/doc",
            "usr/share/locale",
            "usr/share/man",
            "var/cache/apt",
            "var/lib/apt",
            "var/lib/dpkg",
        )
        run("rm", "-rf", *(f"{top}/{folder}" for folder in unread))
        try:
            self._do("run", "--isolation=chroot", container, "true")
        except AssertionError as error:
            pytest.skip(f"buildah cannot run a step here: {error}")
        self._do("commit", "--quiet", "--rm", container, "base")

    def _do(self, *command: str) -> str:
        where = (f"--root={self._store}/images", f"--runroot={self._store}/run", "--storage-driver=vfs")
        return run(self._buildah, *where, *command, HOME=str(self._store), TMPDIR=str(self._store))

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment that the image sets, with additions."""
        return dict(pair.split("=", 1) for pair in self.settings["Env"]) | more

    def contained(self, command: list[str]) -> list[str]:
        """Return a command line that runs the command as a container does: as the image's user, without
        capabilities, on a read-only root."""
        user, group = self.settings["User"].split(":")
        limits = [
            f"--reuid={user}",
            f"--regid={group}",
            "--clear-groups",
            "--bounding-set=-all",
            "--no-new-privs",
        ]
        steps = (
            "mount --make-rprivate /",
            f"mount --bind {self.top} {self.top}",
            f"mount -o remount,bind,ro {self.top}",
            f"mount --bind /proc {self.top}/proc",
            f"mount --bind /dev {self.top}/dev",
            f"exec chroot {self.top} {shlex.join(['setpriv', *limits, '--', *command])}",
        )
        return ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", " && ".join(steps)]


@pytest.fixture(scope="module")
def image(
    plain: Debian, tmp_path_factory: pytest.TempPathFactory, part_path: Callable[[str], str]
) -> Iterator[Image]:
    """Build it once."""
    store = tmp_path_factory.mktemp("buildah")
    yield Image(part_path("buildah"), store, plain)
    run("rm", "-rf", str(store))


@pytest.fixture
def container(
    image: Image, emulator: FarEnd, tmp_path: Path
) -> Iterator[tuple[Path, "subprocess.Popen[bytes]"]]:
    """Start a container with its secrets where the configuration expects them; yield its log and its process."""
    secrets = image.top / SECRETS
    secrets.mkdir(parents=True)
    for name, text in {
        "openai-api-key": "sk-offline",
        "admin-token": "an-admin-token-of-some-length",
        "signing-keys": "0" * 64,
        "keys.toml": f'[[keys]]\nname = "ada"\nsha256 = "{hashlib.sha256(b"gwk-of-ada").hexdigest()}"\n',
    }.items():
        (secrets / name).write_text(text)
    environ = image.environ(
        GATEWAY_UPSTREAM__BASE_URL=emulator.base_url,
        GATEWAY_SERVER__PORT="0",
        GATEWAY_ADMIN__PORT="0",
        GATEWAY_DRAIN__TIMEOUT_SECONDS="1",
    )
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            image.contained([*image.settings["Entrypoint"], *image.settings["Cmd"]]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environ,
        )
    try:
        yield log, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def said(log: Path, process: "subprocess.Popen[bytes]", pattern: str) -> str:
    """Wait for a matching log line and return its first group."""
    deadline = time.monotonic() + START_SECONDS
    while (match := re.search(pattern, log.read_text())) is None:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return match[1].replace("0.0.0.0", "127.0.0.1")


async def ended(command: list[str], environ: dict[str, str]) -> int:
    """Run a command to its end and return its exit status."""
    done = await asyncio.to_thread(
        subprocess.run, command, env=environ, timeout=30, capture_output=True, check=False
    )
    return done.returncode


def rights(pid: int) -> dict[str, str]:
    """Return the user, group and capabilities of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return dict(re.findall(r"^(Uid|Gid|CapEff|CapBnd|NoNewPrivs):\s+(\S+)", status, re.MULTILINE))


@pytest.mark.needs("buildah")
async def test_the_image_serves_as_nobody_on_a_read_only_root(
    image: Image, container: tuple[Path, "subprocess.Popen[bytes]"]
) -> None:
    """It is ready and healthy, serves callers with a key, and ends with status 0."""
    log, process = container
    admin = said(log, process, r"admin listening on (http://[\w.:]+)")
    url = said(log, process, r"(?<!admin )listening on (http://[\w.:]+)")
    allowed = rights(process.pid)
    # Healthcheck is ["CMD", program, argument, ...].
    check = [
        word.replace("http://127.0.0.1:8081", admin) for word in image.settings["Healthcheck"]["Test"][1:]
    ]
    healthy = await ended(image.contained(check), image.environ())
    async with Caller(url) as caller:
        ready, _ = await caller.ask("GET", "/readyz")
        stranger, _ = await caller.ask("POST", "/v1/turns", "Hello")
        friend, text = await caller.ask(
            "POST", "/v1/turns", "Hello", headers={"Authorization": "Bearer gwk-of-ada"}
        )
    process.terminate()
    status = process.wait(30)
    sick = await ended(image.contained(check), image.environ())

    assert (allowed["Uid"], allowed["Gid"], allowed["CapEff"], allowed["NoNewPrivs"]) == (
        NOBODY,
        NOBODY,
        "0" * 16,
        "1",
    )
    assert (ready.status, stranger.status, friend.status) == (200, 401, 200)
    assert text
    assert status == 0
    assert (healthy, sick) == (0, 1)


@pytest.mark.needs("buildah")
def test_the_image_holds_no_installer_and_no_source(image: Image) -> None:
    """The image contains nothing that serving does not need: no pip, no build backend, no tests."""
    packages = {path.name for path in (image.top / "opt/gateway").glob("lib/python3*/site-packages/*")}

    assert packages >= {"gateway", "aiortc", "aiohttp"}
    assert not packages & {"pip", "setuptools", "hatchling", "editables", "pytest", "tests"}
    assert not (image.top / "src").exists()
