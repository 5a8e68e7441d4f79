"""The rules that import-linter cannot check: which package may import which library, and what "No I/O" means.

The order of the packages is checked by `lint-imports`; its contracts are in pyproject.toml.
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

# A library, and the packages that may import it. Its exceptions are translated there.
WALLS = {
    "aiohttp.web": ("gateway.downstream", "gateway.emulator"),
    "aiohttp.web_request": ("gateway.downstream", "gateway.emulator"),
    "aiohttp.web_response": ("gateway.downstream", "gateway.emulator"),
    "aioice": ("gateway.upstream", "gateway.emulator"),
    "aiortc": ("gateway.upstream", "gateway.emulator"),
    "redis": ("gateway.cluster",),
}

PROMISE = "No I/O"

# What a pure file may not import, even indirectly: I/O, the clock, randomness, or a third-party library.
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

# Libraries that only transform values: they neither wait nor perform I/O.
COMPUTING = {"msgspec", "python_mimeparse"}

# These must promise it; others may.
PURE_BY_DESIGN = {
    "gateway.downstream.reading.sse",
    "gateway.relay.memory",
    "gateway.relay.conversation",
    "gateway.relay.events.envelope",
    "gateway.relay.events.frames",
    "gateway.relay.events.jsontext",
    "gateway.relay.events.eventlog",
    "gateway.relay.idempotency",
    "gateway.relay.states",
    "gateway.upstream.sdp",
}


@cache
def modules() -> tuple[tuple[str, ast.Module], ...]:
    """Return the dotted name and the syntax tree of every module in the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append((name, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))))
    return tuple(found)


@cache
def imported(tree: ast.Module) -> tuple[str, ...]:
    """Return every dotted name that a module imports, anywhere in the module."""
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
    """List the modules outside the given packages that import a library."""
    return [
        name
        for name, tree in modules()
        if not any(lies_in(name, room) for room in rooms)
        and any(lies_in(what, library) for what in imported(tree))
    ]


def promising() -> set[str]:
    """List the gateway's modules whose docstring promises "No I/O", without the emulator's."""
    return {
        name
        for name, tree in modules()
        if PROMISE in (ast.get_docstring(tree) or "") and not lies_in(name, "gateway.emulator")
    }


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    """Return which module imports which, libraries included."""
    return grimp.build_graph("gateway", include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize(("library", "rooms"), WALLS.items())
def test_library_is_imported_in_its_rooms_only(library: str, rooms: tuple[str, ...]) -> None:
    """The server of aiohttp, aiortc and redis are each imported only by the packages that wrap them."""
    assert trespassers(library, rooms) == []


def test_a_trespasser_is_seen() -> None:
    """The check above can fail: it finds all three forms of an import, and ignores a name that only has the same
    beginning."""
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
    """The far end is a second implementation of the protocol, so it must not share a bug with the gateway."""
    shared = {
        f"{name} imports {what}"
        for name, tree in modules()
        if lies_in(name, "gateway.emulator")
        for what in imported(tree)
        if lies_in(what, "gateway") and not lies_in(what, "gateway.emulator")
    }

    assert shared == set()


def test_no_module_imports_relatively() -> None:
    """The checks of this file would miss a relative import."""
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
    """A requirement that is added to pyproject.toml is automatically forbidden in pure files."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["redis"]]
    libraries = {re.split(r"[^A-Za-z0-9-]", requirement)[0].replace("-", "_") for requirement in required}

    assert libraries - NOT_PURE - COMPUTING == set()


def test_files_that_are_pure_by_design_say_so() -> None:
    """The core's files say "No I/O" in their docstrings, which is how they are found and measured."""
    silent = {name for name, _ in modules() if name in PURE_BY_DESIGN} - promising()

    assert silent == set()
