"""The walls of the house that import-linter cannot see: which room may touch which library, and what "No I/O" holds.

The order of the rooms themselves is held by `lint-imports`, whose contracts stand in pyproject.toml.
"""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gateway"

# A library, and the rooms that may import it. Whatever it does there is translated before it leaves (house rule).
WALLS = {
    "aiohttp.web": ("gateway.downstream", "gateway.emulator"),
    "aiohttp.web_request": ("gateway.downstream", "gateway.emulator"),
    "aiohttp.web_response": ("gateway.downstream", "gateway.emulator"),
    "aioice": ("gateway.upstream", "gateway.emulator"),
    "aiortc": ("gateway.upstream", "gateway.emulator"),
    "redis": ("gateway.cluster",),
}

PROMISE = "No I/O"

# What a pure file may not import, even indirectly: I/O, the clock, randomness, or a library.
NOT_PURE = {
    *(
        "asyncio",
        "concurrent",
        "datetime",
        "io",
        "logging",
        "multiprocessing",
        "os",
        "pathlib",
        "queue",
        "random",
    ),
    *(
        "secrets",
        "select",
        "selectors",
        "signal",
        "socket",
        "ssl",
        "subprocess",
        "sys",
        "tempfile",
        "threading",
    ),
    *("time", "uuid"),
    *("aiohttp", "aioice", "aiortc", "av", "cryptography", "itsdangerous", "multidict", "prometheus_client"),
    *("pydantic", "pydantic_settings", "pyee", "redis", "rich", "structlog", "typer", "uvloop", "yarl"),
}

# Libraries that turn values into values: they wait for nothing and ask for nothing.
COMPUTING = {"msgspec", "python_mimeparse"}

# Whatever else may come to promise it, these must.
PURE_BY_DESIGN = {
    "gateway.downstream.reading.sse",
    "gateway.relay.memory",
    "gateway.relay.conversation",
    "gateway.relay.events.envelope",
    "gateway.relay.events.jsontext",
    "gateway.relay.events.eventlog",
    "gateway.relay.idempotency",
    "gateway.relay.states",
    "gateway.upstream.sdp",
}


@cache
def modules() -> tuple[tuple[str, ast.Module], ...]:
    """Return the dotted name and the syntax tree of every module of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append((name, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))))
    return tuple(found)


@cache
def imported(tree: ast.Module) -> tuple[str, ...]:
    """Return every dotted name that a module imports, wherever in the module it does so."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
            names += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(names)


def lies_in(name: str, package: str) -> bool:
    """Return whether a dotted name is a package or something in it."""
    return name == package or name.startswith(f"{package}.")


def trespassers(library: str, rooms: tuple[str, ...]) -> list[str]:
    """List the modules outside some rooms that import a library."""
    return [
        name
        for name, tree in modules()
        if not any(lies_in(name, room) for room in rooms)
        and any(lies_in(what, library) for what in imported(tree))
    ]


def promising() -> set[str]:
    """List the gateway's modules that promise in their docstring to do no I/O; the emulator is not a part of it."""
    return {
        name
        for name, tree in modules()
        if PROMISE in (ast.get_docstring(tree) or "") and not lies_in(name, "gateway.emulator")
    }


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    """Return who imports whom in the package, libraries included."""
    return grimp.build_graph("gateway", include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize(("library", "rooms"), WALLS.items())
def test_library_is_imported_in_its_rooms_only(library: str, rooms: tuple[str, ...]) -> None:
    """The server of aiohttp, aiortc and redis are each imported only by the packages that wrap them."""
    assert trespassers(library, rooms) == []


def test_a_trespasser_is_seen() -> None:
    """The check above can fail: all three forms of an import are found, and a name that only begins alike is not."""
    tree = ast.parse(
        "def f():\n import redis.asyncio\n from aiohttp import web\nfrom aiortc.sdp import x\nimport redistribute"
    )
    seen = set(imported(tree))

    assert [
        library
        for library in ("redis", "aiohttp.web", "aiortc", "aioice")
        if any(lies_in(s, library) for s in seen)
    ] == [
        "redis",
        "aiohttp.web",
        "aiortc",
    ]
    assert not lies_in("redistribute", "redis")


def test_emulator_imports_nothing_of_the_gateway() -> None:
    """The far end is a second implementation of the wire: a mistake of the gateway's must not be shared by it."""
    shared = {
        f"{name} imports {what}"
        for name, tree in modules()
        if lies_in(name, "gateway.emulator")
        for what in imported(tree)
        if lies_in(what, "gateway") and not lies_in(what, "gateway.emulator")
    }

    assert shared == set()


def test_no_module_imports_relatively() -> None:
    """A relative import would pass unseen by the checks of this file."""
    relative = {
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    }

    assert relative == set()


def test_files_that_promise_no_io_take_only_parsing_from_urllib() -> None:
    """`urllib.parse` turns text into values; the rest of it opens connections."""
    pure = promising()
    taken = {
        what
        for name, tree in modules()
        if name in pure
        for what in imported(tree)
        if lies_in(what, "urllib") and not lies_in(what, "urllib.parse")
    }

    assert taken == set()


def test_files_that_promise_no_io_reach_none(imports: grimp.ImportGraph) -> None:
    """No chain of imports leads from a pure file to an event loop, a clock, randomness, the system or a third-party library."""
    chains = {
        " -> ".join(chain)
        for name in promising()
        for library in NOT_PURE & imports.modules
        if (chain := imports.find_shortest_chain(importer=name, imported=library))
    }

    assert chains == set()


def test_every_library_is_out_of_reach_of_pure_files() -> None:
    """A requirement that is added to pyproject.toml is forbidden to the pure files with it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["redis"]]
    libraries = {re.split(r"[^A-Za-z0-9-]", requirement)[0].replace("-", "_") for requirement in required}

    assert libraries - NOT_PURE - COMPUTING == set()


def test_files_that_are_pure_by_design_say_so() -> None:
    """The core's files promise "No I/O" to their reader, by which they are found and measured."""
    silent = {name for name, _ in modules() if name in PURE_BY_DESIGN} - promising()

    assert silent == set()
