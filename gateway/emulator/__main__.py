"""Run an emulator until a signal: `python -m gateway.emulator --port 0`."""

import argparse
import asyncio
import contextlib
import gc
import importlib
import os
import resource
import signal
import sys
from pathlib import Path

from gateway.emulator.config import EmulatorConfig
from gateway.emulator.faults import NONE, changed
from gateway.emulator.http.server import Emulator
from gateway.emulator.protocol import mcp
from gateway.emulator.recording import load


def parse(arguments: list[str]) -> EmulatorConfig:
    """Read the flags."""
    default = EmulatorConfig()
    parser = argparse.ArgumentParser(prog="python -m gateway.emulator", description=__doc__)
    parser.add_argument("--host", default=default.host)
    parser.add_argument("--port", type=int, default=default.port)
    parser.add_argument("--tokens-per-second", type=float, default=default.tokens_per_second)
    parser.add_argument("--consent", choices=("strict", "lenient"), default=default.consent)
    parser.add_argument("--setup", choices=("active", "passive"), default=default.setup)
    parser.add_argument("--max-session-seconds", type=float, default=default.max_session_seconds)
    parser.add_argument("--record", type=Path, action="append", default=[])
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY[@PROJECT]",
        help="accept this key only (repeatable)",
    )
    parser.add_argument(
        "--fault", action="append", default=[], metavar="NAME=VALUE", help="see gateway.emulator.faults"
    )
    parser.add_argument("--brain-url", help="base URL of a chat completions server to ask for answers")
    parser.add_argument("--brain-model", default=default.brain_model)
    parser.add_argument(
        "--no-item-done-quirk", action="store_true", help="send the real previous_item_id in every event"
    )
    parser.add_argument(
        "--hear",
        action="append",
        default=[],
        metavar="TEXT",
        help="the transcript of input audio (repeatable, used in turn)",
    )
    parser.add_argument(
        "--mcp", type=Path, action="append", default=[], help="a file with an MCP server's tools"
    )
    given = parser.parse_args(arguments)
    try:
        for path in given.record:
            load(path)
        for path in given.mcp:
            mcp.load(path)
        faults = changed(NONE, dict(pair(text) for text in given.fault))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return EmulatorConfig(
        host=given.host,
        port=given.port,
        tokens_per_second=given.tokens_per_second,
        consent=given.consent,
        setup=given.setup,
        max_session_seconds=given.max_session_seconds,
        recordings=tuple(given.record),
        api_keys=tuple(given.api_key),
        faults=faults,
        brain_url=given.brain_url,
        brain_model=given.brain_model,
        brain_key=os.environ.get("EMULATOR_BRAIN_KEY"),
        item_done_quirk=not given.no_item_done_quirk,
        hear=tuple(given.hear),
        mcp_servers=tuple(given.mcp),
    )


def pair(text: str) -> tuple[str, str]:
    """Split `NAME=VALUE`; raises ValueError."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"a fault is NAME=VALUE, not '{text}'")
    return name, value


async def run(config: EmulatorConfig) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    emulator = Emulator(config)
    await emulator.start()
    try:
        # Tests and the demo read this line.
        print(f"emulator listening on {emulator.base_url}", flush=True)
        await stop.wait()
    finally:
        await emulator.close()


def main(arguments: list[str] | None = None) -> None:
    """Run on uvloop where it is installed; raises OSError where the port is taken, SystemExit(2) for wrong flags."""
    config = parse(sys.argv[1:] if arguments is None else arguments)
    # One socket a call: the soft limit is often 1024.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # A full collection over some hundred calls takes 100 ms, which a measured client would see as latency.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    factory = None
    with contextlib.suppress(ImportError):
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run(config))


if __name__ == "__main__":
    try:
        main()
    except OSError as problem:
        sys.exit(f"emulator: {problem}")
