"""The suite's own rules and proof that they work: missing programs, and tasks left behind."""

from pathlib import Path

import pytest

from tests.conftest import LONGEST_FIRST, ROOT

CONFTEST = Path(__file__).with_name("conftest.py")


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """Return a small suite in its own folder, under the same conftest."""
    source = CONFTEST.read_text(encoding="utf-8")
    pytester.makeconftest(source.replace("TASKS_SETTLE_SECONDS = 4.0", "TASKS_SETTLE_SECONDS = 0.5"))
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nmarkers = needs(part): a program"
    )
    return pytester


ASKING = """
import pytest

@pytest.mark.needs("no-such-program")
def test_runs_it(): ...
"""


def test_missing_part_skips_the_test_on_a_desk(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A contributor without a program sees which one is missing, and the rest of the suite runs."""
    monkeypatch.delenv("CI", raising=False)
    suite.makepyfile(ASKING)

    result = suite.runpytest_inprocess("-rs")

    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*no-such-program is not installed*"])


def test_missing_part_fails_the_test_in_ci(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """In CI every program must be installed, so nothing is skipped unnoticed."""
    monkeypatch.setenv("CI", "true")
    suite.makepyfile(ASKING)

    suite.runpytest_inprocess().assert_outcomes(errors=1)


def test_part_that_is_there_runs_the_test(suite: pytest.Pytester) -> None:
    """If a program is installed no test is skipped, by mark or by path."""
    suite.makepyfile(
        """
        import pytest

        @pytest.mark.needs("sh")
        def test_runs_it(part_path):
            assert part_path("sh").endswith("/sh")
        """
    )

    suite.runpytest_inprocess().assert_outcomes(passed=1)


def test_task_left_behind_is_an_error(suite: pytest.Pytester) -> None:
    """A test that leaves an unawaited task fails with the coroutine's name; a task that ends in time is accepted."""
    suite.makepyfile(
        """
        import asyncio

        async def forgotten():
            await asyncio.sleep(3600)

        async def test_forgets():
            globals()["kept"] = asyncio.create_task(forgotten())

        async def test_ends_soon():
            globals()["kept"] = asyncio.create_task(asyncio.sleep(0.01))
        """
    )

    result = suite.runpytest_inprocess()

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*left tasks behind*forgotten*"])


def test_files_that_come_first_are_there() -> None:
    """A file that was renamed would run last again, alone while other cores are idle."""
    assert [name for name in LONGEST_FIRST if not (ROOT / name).is_file()] == []
    assert len(set(LONGEST_FIRST)) == len(LONGEST_FIRST)
