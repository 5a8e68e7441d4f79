"""What is shipped and what is pinned: the wheel's contents, and the requirement files in .ci."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / ".ci" / "requirements.txt"
AUDIT = ROOT / ".ci" / "requirements-audit.txt"
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


@pytest.fixture(scope="module")
def light(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with what `pip install realtime-gateway` installs: the wheel and its requirements, without
    extras."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    wanted, seen = ["aiohttp"], set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        for file in found.files or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    target.symlink_to(Path(str(found.locate_file(file))))
        requirements = map(Requirement, found.requires or [])
        wanted += [
            one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return folder


def in_light(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with only that folder and the standard library on its path."""
    return subprocess.run(
        [sys.executable, "-S", "-P", *arguments],
        env={"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=BUILD_DEADLINE_SECONDS,
        check=False,
    )


def named(requirement: str) -> str:
    """Return the normalised name of a requirement."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    """Every file of the package is in the wheel: modules, the typing marker and the browser's files."""
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "gateway").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert files - set(wheel.namelist()) == set()


def test_wheel_holds_nothing_beside_the_package(wheel: zipfile.ZipFile) -> None:
    """The wheel installs no test and no configuration file into site-packages."""
    tops = {name.split("/")[0] for name in wheel.namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"gateway"}


def test_wheel_brings_the_price_list_to_its_reader(wheel: zipfile.ZipFile) -> None:
    """In the checkout the price list is a configuration file; in the wheel it is beside the module that reads it."""
    assert wheel.read("gateway/config/prices.toml") == (ROOT / "config" / "prices.toml").read_bytes()


def test_wheel_brings_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    """An installed wheel has the command `gateway` and its licence."""
    (entry_points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    (licence,) = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]

    assert "gateway = gateway.__main__:main" in wheel.read(entry_points).decode()
    assert "the realtime-gateway authors" in wheel.read(licence).decode()


def test_client_is_imported_without_an_extra(light: Path) -> None:
    """Importing the client loads neither the gateway's libraries nor media codecs."""
    program = (
        "import sys, gateway.client; print(*sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'aioice', 'aiortc', 'av', 'cryptography', 'pydantic', 'prometheus_client', 'structlog', 'typer', 'uvloop'}))"
    )
    done = in_light(light, "-c", program)

    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("arguments", [[], ["serve"], ["--help"]])
def test_command_without_its_extra_says_what_to_install(light: Path, arguments: list[str]) -> None:
    """Without its extra the command prints one line instead of a traceback and exits with the status for wrong
    usage."""
    done = in_light(light, "-m", "gateway", *arguments)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'realtime-gateway[server]'" in done.stderr


@pytest.mark.parametrize(
    ("name", "floor"),
    [("aiohttp", (3, 14, 4)), ("cryptography", (50,))],
)
def test_floors_leave_known_holes_out(name: str, floor: tuple[int, ...]) -> None:
    """Versions below the floors allow request smuggling or break certificate checks; the pins are above them, too."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    (found,) = [requirement for requirement in map(Requirement, requirements) if requirement.name == name]
    pinned = [pin.partition("==")[2] for pin in pins(RUNTIME) if pin.startswith(f"{name}==")]

    too_old = ".".join(map(str, (*floor[:-1], floor[-1] - 1, 99)))
    assert not found.specifier.contains(too_old)
    assert all(found.specifier.contains(version) for version in pinned)


@pytest.mark.parametrize("file", [RUNTIME, SUITE, AUDIT], ids=lambda file: file.name)
def test_pins_name_no_host(file: Path) -> None:
    """Pins name no package index."""
    text = file.read_text(encoding="utf-8")

    assert re.findall(r"\S*://\S*|--(?:extra-)?index-url.*|--find-links.*", text) == []


@pytest.mark.parametrize("file", [RUNTIME, SUITE, AUDIT], ids=lambda file: file.name)
def test_pins_have_hashes(file: Path) -> None:
    """Every pin has a hash, so a package that was changed later is refused."""
    assert [pin for pin, hashes in pins(file).items() if not hashes] == []


def test_pins_agree_where_both_files_have_one() -> None:
    """The suite runs on the versions that the demo uses."""
    assert pins(RUNTIME).keys() - pins(SUITE).keys() == set()


def test_every_requirement_is_pinned() -> None:
    """A requirement that was added to pyproject.toml without `make lock` is found here."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        table = tomllib.load(file)
    project, groups = table["project"], table["dependency-groups"]
    extras = project["optional-dependencies"]
    runtime = {
        named(r) for r in [*project["dependencies"], *extras["server"], *extras["redis"], *groups["build"]]
    }
    suite = runtime.union(*({named(r) for r in extra} for extra in extras.values()))

    assert runtime - {pin.split("==")[0] for pin in pins(RUNTIME)} == set()
    assert suite - {pin.split("==")[0] for pin in pins(SUITE)} == set()
