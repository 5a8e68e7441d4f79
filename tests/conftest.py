"""What the whole suite shares: the parts a test needs from outside, the recordings, and a guard over tasks.

A test names the programs it runs with `@pytest.mark.needs("chromium")`. On a desk without them it is skipped with a
sentence; in CI, which installs them all, a missing one is a failure, so that nothing is skipped there unseen.
"""

import asyncio
import gc
import inspect
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NoReturn

import pytest
import pytest_asyncio
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Conversations recorded from the live service. They are stored next to the checkout, because we may not publish them.
RECORDINGS = ROOT.parent / "shared" / "recordings"

# Where Debian keeps servers that are not on an ordinary user's PATH.
ADMIN_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", "/usr/local/sbin"])

# A program may have several names; the first one that is found is used.
ALSO_CALLED = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "redis-server": ("redis-server", "valkey-server"),
}

# Closed connections that were not awaited end within a few turns of the loop; a task that is left after this time was forgotten.
TASKS_SETTLE_SECONDS = 4.0

# The files that take longest. They start first, so that none runs alone at the end, and files that mostly wait alternate with
# files that compute. A worker takes one file at a time.
LONGEST_FIRST = (
    "tests/deploy/test_debian.py",
    "tests/e2e/test_continuity_path.py",
    "tests/e2e/test_continuity_chaos.py",
    "tests/e2e/test_bad_path.py",
    "tests/downstream/http/test_protocol.py",
    "tests/e2e/test_openapi.py",
    "tests/e2e/test_faults.py",
    "tests/e2e/test_cluster_nodes.py",
    "tests/e2e/test_examples.py",
    "tests/e2e/test_proxies.py",
    "tests/e2e/test_upstream_failures.py",
    "tests/e2e/test_drain.py",
    "tests/e2e/test_life.py",
    "tests/e2e/test_console.py",
    "tests/upstream/test_consent.py",
    "tests/e2e/test_relay_js.py",
    "tests/e2e/test_under_attack.py",
    "tests/e2e/test_many_sessions.py",
    "tests/cli/test_serve.py",
    "tests/cli/test_demo.py",
    "tests/upstream/test_webrtc.py",
    "tests/cli/test_bench.py",
    "tests/e2e/test_resume_model.py",
    "tests/upstream/test_bad_path.py",
    "tests/e2e/test_odd_requests.py",
    "tests/upstream/test_tuning.py",
    "tests/e2e/test_slow_readers.py",
    "tests/emulator/test_leaks.py",
    "tests/e2e/test_cluster_conformance.py",
    "tests/e2e/test_hardening.py",
)

# A collection after 50,000 new objects instead of 700: the suite makes many objects and few cycles, and the default takes
# a seventh of its processor time.
GC_THRESHOLDS = (50_000, 20, 100)

# A file whose tests are all slow.
ONLY_SLOW = re.compile(r"^pytestmark = .*\bmark\.slow\b", re.MULTILINE)

# Every run uses the same examples, so a failure repeats. There is no deadline, because an example may take long on a busy
# machine; tests of speed measure processor time.
settings.register_profile("suite", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile("suite")


def find_part(part: str) -> str | None:
    """Return the path of a program by the name the suite uses for it, or None."""
    for name in ALSO_CALLED.get(part, (part,)):
        if path := shutil.which(name, path=ADMIN_PATH):
            return path
    return None


def require_part(part: str) -> str:
    """Return a program's path. Without it, skip the test that asks, or fail it in CI."""
    path = find_part(part)
    if path is None:
        _missing(f"{part} is not installed, and this test runs it", "add its package to .ci/run")
    return path


def require_packages(folder: Path) -> Path:
    """Return a folder's npm packages. Without them, skip the test that asks, or fail it in CI."""
    packages = folder / "node_modules"
    if not packages.is_dir():
        reason = f"the npm packages of {folder / 'package.json'} are not installed, and this test runs them"
        _missing(reason, "`npm ci` installs them")
    return packages


def _missing(reason: str, remedy: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{reason}: {remedy}", pytrace=False)
    pytest.skip(reason)


def pytest_configure() -> None:
    """Collect garbage less often, and restore the default handler of SIGINT, also for processes that tests start: a
    shell's background job inherits that it is ignored."""
    gc.set_threshold(*GC_THRESHOLDS)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import files without fast tests for `make test-fast`: some load large libraries."""
    if config.option.markexpr != "not slow":
        return None
    if collection_path == ROOT / "tests/conformance":
        return True
    if collection_path.suffix == ".py" and ONLY_SLOW.search(collection_path.read_text(encoding="utf-8")):
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and leave the others in their order."""
    ranks = {str(ROOT / name): rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(str(item.path), len(ranks)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Look for the programs that a test names before its fixtures are set up."""
    for mark in item.iter_markers("needs"):
        for part in mark.args:
            require_part(part)


@pytest.fixture(scope="session")
def part_path() -> Callable[[str], str]:
    """Return a function that finds a program by name, also in the folders of an administrator's PATH."""
    return require_part


@pytest.fixture(scope="session")
def recordings() -> Path:
    """Return the folder of recorded conversations. Skip the test without it, because no checkout contains it."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no recorded conversations at {RECORDINGS}")
    return RECORDINGS


@pytest.fixture(autouse=True)
def _tasks_are_owned(request: pytest.FixtureRequest) -> None:
    """Check the tasks of every test that runs on a loop; other tests have none."""
    function = getattr(request.node, "function", None)
    if inspect.iscoroutinefunction(inspect.unwrap(function) if function else None):
        request.getfixturevalue("_no_task_left_behind")


@pytest_asyncio.fixture
async def _no_task_left_behind() -> AsyncIterator[None]:
    """Fail a test that leaves tasks running: every task has an owner that awaits it."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=TASKS_SETTLE_SECONDS)
    assert not left, f"the test left tasks behind: {sorted(repr(task.get_coro()) for task in left)}"
