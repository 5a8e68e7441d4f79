"""A slow or lossy path is not taken for a loss, and real losses are recovered over it.

The path lies between two network namespaces of the test's own: a veth pair with `tc netem` or, where the kernel has
no netem, `badpath`, which does the same to the packets between two TUN devices. The gateway and the client are at
one end, the far end at the other.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.programs import Program

HERE, THERE = "10.77.0.1", "10.77.0.2"
SECONDS = 240
Lay = Callable[["Bad"], None]


def ip(*arguments: str) -> None:
    """Run `ip`, or `tc` where the first argument says so."""
    command = list(arguments) if arguments[0] == "tc" else ["ip", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=20)


@dataclass(frozen=True, slots=True)
class Bad:
    """What a path does to each packet in each direction."""

    delay_seconds: float
    loss: float


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Return two namespaces; skip the test if none can be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        pytest.skip("network namespaces and netem need root, ip and tc")
    here, there = f"gwa{os.getpid()}", f"gwb{os.getpid()}"
    try:
        for name in (here, there):
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespace can be made here: {error.stderr!r}")
            ip("-n", name, "link", "set", "lo", "up")
        yield here, there
    finally:
        for name in (here, there):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)


@pytest.fixture
def lay(namespaces: tuple[str, str], tmp_path: Path) -> Iterator[Lay]:
    """Return a function that lays a bad path between the namespaces."""
    here, there = namespaces
    with ExitStack() as stack:

        def path(bad: Bad) -> None:
            ip("-n", here, "link", "add", "v", "type", "veth", "peer", "name", "v", "netns", there)
            if not all(netem(name, bad) for name in namespaces):
                ip("-n", here, "link", "del", "v")
                if not Path("/dev/net/tun").exists():
                    pytest.skip("this kernel has neither netem nor TUN devices")
                numbers = (str(bad.delay_seconds), str(bad.loss))
                carrier = Program(tmp_path / "path", "tests.e2e.badpath", here, there, *numbers)
                stack.callback(carrier.stop)
                carrier.said("(the path is open)")
            for name, own, other in ((here, HERE, THERE), (there, THERE, HERE)):
                ip("-n", name, "addr", "add", own, "peer", other, "dev", "v")
                ip("-n", name, "link", "set", "v", "up")

        yield path


def netem(namespace: str, bad: Bad) -> bool:
    """Let the kernel do it; return False if it cannot."""
    wanted = ("delay", f"{bad.delay_seconds * 1000:g}ms", "loss", f"{bad.loss:.0%}")
    try:
        ip("tc", "-n", namespace, "qdisc", "add", "dev", "v", "root", "netem", *wanted)
    except subprocess.CalledProcessError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize(
    "bad",
    [Bad(0.1, 0.05), Bad(0.3, 0.0)],
    ids=["200 ms and every twentieth packet lost", "600 ms there and back"],
)
def test_a_bad_path_is_not_death(namespaces: tuple[str, str], lay: Lay, bad: Bad, tmp_path: Path) -> None:
    """A model that thinks for 10 s over such a path is not taken for lost; then a hand-over and a killed far end are
    survived."""
    here, there = namespaces
    lay(bad)
    program = Program(tmp_path / "talk", "tests.e2e.within", here, "tests.e2e.slowpath", there, THERE)
    try:
        program.process.wait(SECONDS)
    finally:
        program.stop()
    found = re.search(r"^\{.*\}$", program.output, re.M)
    assert found, program.output
    said = json.loads(found[0])

    assert said["before"] == []
    assert ["Ada" in answer for answer in said["answers"]] == [True] * 3
    assert [one["type"] for one in said["own"]] == [
        "gateway.recovered",
        "gateway.recovering",
        "gateway.recovered",
    ]
    assert [one["cause"] for one in said["own"][::2]] == ["restart", "consent_expired"]
    assert [one["items_lost"] for one in said["own"][::2]] == [0, 0]
    assert said["numbers"] == list(range(1, len(said["numbers"]) + 1))
