"""Shared fixtures of the tests of deploy/: its files, and a real Prometheus with given targets."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # it ships no types

from tests.farend import FarEnd
from tests.programs import Program

ROOT = Path(__file__).resolve().parents[2]

StartPrometheus = Callable[..., str]


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarEnd]:
    """Run an emulator that answers as fast as it can."""
    with FarEnd(tmp_path_factory.mktemp("far-end") / "log", "--tokens-per-second", "0") as far_end:
        yield far_end


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
            program = Program(
                tmp_path / "prometheus.log",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                "--web.listen-address=127.0.0.1:0",
                command=part_path("prometheus"),
            )
            stack.enter_context(program)
            program.said(r"(Server is ready to receive web requests)")
            return "http://" + program.said(r'"Listening on" address=(\S+)')

        yield start
