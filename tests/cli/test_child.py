"""Child processes: how they start, and that they never outlive their parent."""

import asyncio
import os
import signal
import sys
import textwrap
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from gateway.cli import child as child_module
from gateway.cli.child import Child, ChildError, offline_environment
from tests.cli.conftest import clean_environment


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a module on the path that prints its pid and sleeps. Return its name."""
    (tmp_path / "sleeper.py").write_text(
        textwrap.dedent(
            """
            import os, sys, time
            print("starting", flush=True)
            if "fail" in sys.argv: sys.exit("cannot go on")
            if "stubborn" in sys.argv:
                import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if "mute" not in sys.argv: print(f"ready as {os.getpid()}", flush=True)
            time.sleep(60)
            """
        )
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "sleeper"


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_child_is_ready_when_it_said_so_and_gone_afterwards(script: str) -> None:
    """The groups of the wanted lines are found, and leaving ends the process."""
    async with Child([script], [r"ready as (\d+)"]) as child:
        pid = int(child.found[0])
        ran = alive(pid)

    assert pid == child.pid
    assert (ran, alive(pid)) == (True, False)


async def test_child_that_fails_tells_its_last_words(script: str) -> None:
    """The error contains what the process printed before it ended."""
    with pytest.raises(ChildError, match=r"ended with status 1\n(.*\n)*  cannot go on"):
        async with Child([script, "fail"], [r"ready as (\d+)"]):
            pass


async def test_child_that_stays_mute_is_ended(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for readiness has a deadline."""
    with pytest.raises(ChildError, match="was not ready after 1 s"):
        async with Child([script, "mute"], [r"ready as (\d+)"], start_seconds=1):
            pass


async def test_stubborn_child_is_killed(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ignores SIGTERM is killed."""
    monkeypatch.setattr(child_module, "STOP_SECONDS", 0.3)
    async with Child([script, "stubborn"], [r"ready as (\d+)"]) as child:
        pid = child.pid

    assert not alive(pid)


async def test_end_of_a_child_is_noticed(script: str) -> None:
    """A waiter learns that the child died."""
    async with Child([script], [r"ready as (\d+)"]) as child:
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(ChildError, match="ended with status -9"):
            await asyncio.wait_for(child.wait(), 10)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its killed parent")
async def test_child_dies_with_a_parent_that_is_killed(script: str) -> None:
    """SIGKILL leaves a parent no time to clean up; the kernel does it."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio, time\n"
        "from gateway.cli.child import Child\n"
        "async def main():\n"
        f"    async with Child(['{script}'], [r'ready as (\\d+)']) as child:\n"
        "        print(child.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())",
        stdout=PIPE,
        env=clean_environment(PYTHONPATH=os.environ["PYTHONPATH"]),
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 20))
    ran = alive(pid)
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(10):
        while alive(pid):
            await asyncio.sleep(0.01)  # The kernel does this asynchronously, so the test polls.

    assert ran


def test_offline_environment_holds_nobodys_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Demo and bench never use a real key."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    monkeypatch.setenv("GATEWAY_UPSTREAM__BASE_URL", "https://api.openai.com/v1")

    environ = offline_environment()

    assert environ["OPENAI_API_KEY"] == "sk-offline"
    assert not [name for name in environ if name.startswith("GATEWAY_")]
