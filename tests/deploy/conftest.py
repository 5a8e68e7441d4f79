"""Shared fixtures of the tests of deploy/: its files, and a real Prometheus with given targets."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # it ships no types

from gateway.cli.child import die_with_parent
from tests.e2e.farend import FarEnd

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0

StartPrometheus = Callable[..., str]


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarEnd]:
    """Run an emulator that answers as fast as it can."""
    far_end = FarEnd(tmp_path_factory.mktemp("far-end") / "log", "--tokens-per-second", "0")
    try:
        far_end.ready()
        yield far_end
    finally:
        far_end.program.stop()


@pytest.fixture
def start_prometheus(
    tmp_path: Path, root: Path, part_path: Callable[[str], str]
) -> Iterator[StartPrometheus]:
    """Return a function that starts Prometheus with deploy/'s configuration, except targets and interval, and returns its URL."""
    with ExitStack() as stack:

        def start(*targets: str) -> str:
            settings = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
            settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
            settings["rule_files"] = [
                str(root / "deploy/prometheus" / name) for name in settings["rule_files"]
            ]
            settings["scrape_configs"][0]["static_configs"] = [{"targets": list(targets)}]
            (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
            log = tmp_path / "prometheus.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [
                        part_path("prometheus"),
                        f"--config.file={tmp_path / 'prometheus.yml'}",
                        f"--storage.tsdb.path={tmp_path / 'data'}",
                        "--web.listen-address=127.0.0.1:0",
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    preexec_fn=die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  # one C function
                )
            stack.callback(_stop, process)
            _said(process, log, r"(Server is ready to receive web requests)")
            return "http://" + _said(process, log, r'"Listening on" address=(\S+)')

        yield start


def _said(process: "subprocess.Popen[bytes]", log: Path, pattern: str) -> str:
    deadline = time.monotonic() + START_SECONDS
    while (match := re.search(pattern, log.read_text())) is None:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return match[1]


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
