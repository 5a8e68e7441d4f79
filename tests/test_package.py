"""What is shipped and what it is pinned to: the wheel's contents, and the requirement files under .ci."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / ".ci" / "requirements.txt"
SUITE = ROOT / ".ci" / "requirements-test.txt"

BUILD_DEADLINE_SECONDS = 60


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel with the pinned backend, which fetches nothing."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=BUILD_DEADLINE_SECONDS)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def pins(file: Path) -> dict[str, set[str]]:
    """Return the hashes of each pinned requirement, under `name==version`."""
    found: dict[str, set[str]] = {}
    hashes: set[str] = set()
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([a-z0-9-]+==[^ ;]+)", line):
            hashes = found.setdefault(match[1], set())
        elif match := re.match(r" +--hash=(sha256:[0-9a-f]{64})", line):
            hashes.add(match[1])
    return found


def named(requirement: str) -> str:
    """Return the normalised name in a requirement."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    """Whatever lies in the package ships with it: the typing marker and the browser's files as well as the modules."""
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "gateway").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert files - set(wheel.namelist()) == set()


def test_wheel_holds_nothing_beside_the_package(wheel: zipfile.ZipFile) -> None:
    """No test and no configuration lands in somebody's site-packages."""
    tops = {name.split("/")[0] for name in wheel.namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"gateway"}


def test_wheel_brings_the_price_list_to_its_reader(wheel: zipfile.ZipFile) -> None:
    """It lies with the configuration in the checkout, and beside the module that looks for it once installed."""
    assert wheel.read("gateway/config/prices.toml") == (ROOT / "config" / "prices.toml").read_bytes()


def test_wheel_brings_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    """An installed wheel has `gateway` on the PATH, and its licence beside it."""
    (entry_points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    (licence,) = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]

    assert "gateway = gateway.cli:main" in wheel.read(entry_points).decode()
    assert "the realtime-gateway authors" in wheel.read(licence).decode()


@pytest.mark.parametrize("file", [RUNTIME, SUITE], ids=lambda file: file.name)
def test_pins_name_no_host(file: Path) -> None:
    """Where the packages come from is the business of whoever installs them."""
    text = file.read_text(encoding="utf-8")

    assert re.findall(r"\S*://\S*|--(?:extra-)?index-url.*|--find-links.*", text) == []


@pytest.mark.parametrize("file", [RUNTIME, SUITE], ids=lambda file: file.name)
def test_pins_have_hashes(file: Path) -> None:
    """A package that was changed after it was pinned is refused."""
    assert [pin for pin, hashes in pins(file).items() if not hashes] == []


def test_pins_agree_where_both_files_have_one() -> None:
    """The suite runs on what the demo runs on."""
    assert pins(RUNTIME).keys() - pins(SUITE).keys() == set()


def test_every_requirement_is_pinned() -> None:
    """A requirement added to pyproject.toml without `make lock` is found here and not by a newcomer."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        table = tomllib.load(file)
    project, groups = table["project"], table["dependency-groups"]
    runtime = {named(r) for r in [*project["dependencies"], *groups["build"]]}
    suite = runtime.union(*({named(r) for r in extra} for extra in project["optional-dependencies"].values()))

    assert runtime - {pin.split("==")[0] for pin in pins(RUNTIME)} == set()
    assert suite - {pin.split("==")[0] for pin in pins(SUITE)} == set()
