"""The Dockerfile's steps, done by hand: a fresh environment in an empty folder, and what it starts as nobody.

Where Docker itself cannot run, this is the nearest: each COPY and RUN is performed as it is written, with the image's
folders moved below a temporary one, and the entry point runs as an unprivileged user on a read-only root.
"""

import asyncio
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.config import Config
from tests.deploy.conftest import ROOT
from tests.e2e.farend import FarEnd
from tests.e2e.house import Caller

DOCKERFILE = ROOT / "deploy/Dockerfile"
STEP_SECONDS = 300.0
START_SECONDS = 60.0
NOBODY = "65532"


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction."""

    word: str
    rest: str


def steps() -> list[list[Step]]:
    """Return the instructions of each stage."""
    lines = re.sub(r"\\\n", " ", DOCKERFILE.read_text()).splitlines()
    stages: list[list[Step]] = []
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            stages.append([])
        elif word != "ARG":
            stages[-1].append(Step(word, rest))
    return stages


def last(stage: list[Step], word: str) -> str:
    """Return what follows the last instruction of its kind."""
    return [step.rest for step in stage if step.word == word][-1]


class Image:
    """What the build leaves behind, below a folder."""

    def __init__(self, top: Path) -> None:
        self.top = top
        build, self.final = steps()
        self._folder = top
        for step in build:
            self._perform(step)
        for step in self.final:
            if step.word == "COPY" and "--from=build" not in step.rest:
                self._perform(step)

    def _perform(self, step: Step) -> None:
        if step.word == "WORKDIR":
            self._folder = self.top / step.rest.lstrip("/")
            self._folder.mkdir(parents=True)
        elif step.word == "COPY":
            *sources, target = step.rest.split()
            self._copy(sources, self._place(target), into=target.endswith("/"))
        elif step.word == "RUN":
            # `python` of the base image is the one that runs this suite.
            command = re.sub(r"^python ", f"{sys.executable} ", step.rest)
            done = subprocess.run(
                ["sh", "-c", self.moved(command)],
                cwd=self._folder,
                capture_output=True,
                text=True,
                timeout=STEP_SECONDS,
                umask=0o022,
                check=False,
            )
            assert done.returncode == 0, f"{step.rest}\n{done.stdout}{done.stderr}"
        else:
            raise AssertionError(f"no hand knows how to do {step.word}")

    def _place(self, target: str) -> Path:
        return self.top / target.lstrip("/") if target.startswith("/") else self._folder / target

    def _copy(self, sources: list[str], target: Path, *, into: bool) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        for source in sources:
            place = target / Path(source).name if into else target
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, place)

    def moved(self, command: str) -> str:
        """Return a command with the image's folders replaced by the local ones."""
        return command.replace("/opt/gateway", str(self.top / "opt/gateway"))

    def command(self, word: str) -> list[str]:
        """Return a command in its list form, with the image's folders replaced by the local ones."""
        listed = last(self.final, word)
        found: list[str] = json.loads(self.moved(listed[listed.index("[") :]))
        return found

    def environ(self) -> dict[str, str]:
        """Return the environment that the image sets; its configuration is moved, too."""
        pairs = (step.rest.split("=", 1) for step in self.final if step.word == "ENV")
        given = {name: self.moved(value) for name, value in pairs}
        given["GATEWAY_CONFIG"] = f"{self.top}{given['GATEWAY_CONFIG']}"
        given["PATH"] = given["PATH"].replace("$PATH", os.defpath)
        return given


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Build it once, where everybody may read: pytest's own folders are for their owner alone."""
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        top = Path(folder)
        top.chmod(0o755)
        yield Image(top)


def unprivileged(part_path: Callable[[str], str], command: list[str]) -> list[str]:
    """Return the command as nobody without capabilities, with the whole root read-only to it."""
    drop = [
        *(part_path("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *("--bounding-set=-all", "--no-new-privs", "--", *command),
    ]
    read_only = "mount --make-rprivate / && mount -o remount,bind,ro / && exec "
    return [part_path("unshare"), "--mount", "sh", "-c", read_only + shlex.join(drop)]


@pytest.fixture
def running(
    image: Image, emulator: FarEnd, tmp_path: Path, part_path: Callable[[str], str]
) -> Iterator[tuple[Path, "subprocess.Popen[bytes]", dict[str, str]]]:
    """Start the image's entry point and command as the container would be; give its log."""
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    secrets = image.top / "secrets"
    secrets.mkdir(exist_ok=True)
    for name, text in {
        "openai-api-key": "sk-offline",
        "admin-token": "an-admin-token-of-some-length",
        "signing-keys": "0" * 64,
        "keys.toml": f'[[keys]]\nname = "ada"\nsha256 = "{_sha256("gwk-of-ada")}"\n',
    }.items():
        (secrets / name).write_text(text)
    environ = image.environ() | {
        "GATEWAY_ACCESS__KEYS_FILE": str(secrets / "keys.toml"),
        "GATEWAY_ACCESS__SIGNING_KEY_FILE": str(secrets / "signing-keys"),
        "GATEWAY_UPSTREAM__API_KEY_FILE": str(secrets / "openai-api-key"),
        "GATEWAY_ADMIN__TOKEN_FILE": str(secrets / "admin-token"),
        "GATEWAY_UPSTREAM__BASE_URL": emulator.base_url,
        "GATEWAY_SERVER__PORT": "0",
        "GATEWAY_ADMIN__PORT": "0",
        "GATEWAY_DRAIN__TIMEOUT_SECONDS": "1",
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            unprivileged(part_path, [*image.command("ENTRYPOINT"), *image.command("CMD")]),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environ,
        )
    try:
        yield log, process, environ
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def said(log: Path, process: "subprocess.Popen[bytes]", pattern: str) -> str:
    """Wait for a matching log line and return its first group."""
    deadline = time.monotonic() + START_SECONDS
    while (match := re.search(pattern, log.read_text())) is None:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return match[1]


async def ended(command: list[str], environ: dict[str, str]) -> int:
    """Run a command to its end and return its exit status."""
    done = await asyncio.to_thread(
        subprocess.run, command, env=environ, timeout=30, capture_output=True, check=False
    )
    return done.returncode


def identity(pid: int) -> dict[str, str]:
    """Return what the kernel says of a process's rights."""
    status = Path(f"/proc/{pid}/status").read_text()
    return dict(re.findall(r"^(Uid|Gid|CapEff|CapBnd|NoNewPrivs):\s+(\S+)", status, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.needs("setpriv", "unshare")
async def test_the_steps_by_hand_give_a_gateway_that_nobody_runs(
    image: Image, running: tuple[Path, "subprocess.Popen[bytes]", dict[str, str]], emulator: FarEnd
) -> None:
    """As a number without rights, on a read-only root, it is healthy, serves who has a key, and ends with status 0."""
    log, process, environ = running
    admin = said(log, process, r"admin listening on (http://[\w.:]+)").replace("0.0.0.0", "127.0.0.1")
    url = said(log, process, r"(?<!admin )listening on (http://[\w.:]+)").replace("0.0.0.0", "127.0.0.1")
    rights = identity(process.pid)
    check = [word.replace("http://127.0.0.1:8081", admin) for word in image.command("HEALTHCHECK")]
    healthy = await ended(check, environ)
    key = {"Authorization": "Bearer gwk-of-ada"}
    async with Caller(url) as caller:
        stranger, _ = await caller.ask("POST", "/v1/turns", "Hello")
        friend, text = await caller.ask("POST", "/v1/turns", "Hello", headers=key)
    process.terminate()
    status = process.wait(30)
    sick = await ended(check, environ)

    assert (rights["Uid"], rights["Gid"], rights["CapEff"]) == (NOBODY, NOBODY, "0" * 16)
    assert (stranger.status, friend.status) == (401, 200)
    assert text
    assert status == 0
    assert (healthy, sick) == (0, 1)
    assert last(image.final, "USER") == f"{NOBODY}:{NOBODY}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_image_holds_no_installer_and_no_source(image: Image) -> None:
    """The image contains nothing that serving does not need: no pip, no build backend, no tests."""
    packages = {path.name for path in (image.top / "opt/gateway").glob("lib/python3*/site-packages/*")}

    assert packages >= {"gateway", "aiortc", "aiohttp"}
    assert not packages & {"pip", "setuptools", "hatchling", "editables", "pytest", "tests"}


def test_the_health_check_asks_where_the_operator_listens() -> None:
    """Its port is that of the configuration in the image."""
    config = Config.model_validate(tomllib.loads((ROOT / "config/production.toml").read_text()))
    final = steps()[-1]

    assert f"127.0.0.1:{config.admin.port}/livez" in last(final, "HEALTHCHECK")
    assert last(final, "EXPOSE") == f"{config.server.port} {config.admin.port}"


def test_what_is_copied_is_let_through_to_the_build() -> None:
    """The ignore file starts from nothing, so each thing that is copied must be named in it."""
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for stage in steps()
        for step in stage
        if step.word == "COPY" and "--from" not in step.rest
        for source in step.rest.split()[:-1]
    }

    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)
