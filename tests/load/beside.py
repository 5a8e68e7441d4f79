"""Runs the gateway beside a bare relay on Pion, with one far end and one load generator, in one run.

`python -m tests.load.beside --programs DIR [--words N] [--gap 10ms] [--rounds N] [--sender STACK] [LABEL=CHECKOUT[@PYTHON] ...]`

DIR holds three programs that are not part of this repository: `upstream`, the Realtime WebRTC surface on Pion; `relay`, POST
and SSE over one peer connection a session without any further feature; and `load`, which opens sessions with one reader each,
runs turns, and prints set-up, CPU per event and first deltas. Each round runs the relay and then a gateway from each
checkout, this one by default, on the interpreter PYTHON or on this one. Figures of other runs compare with nothing: read the
ratios within a round.

`--sender libwebrtc` and `--sender libdatachannel` replace `upstream` by a far end on that stack, from npm's binary packages:
`npm install` in tests/emulator/interop first. `--programs` is still needed for the other two.
"""

# ruff: noqa: T201  # its output is its result

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

START_SECONDS = 60
STOP_SECONDS = 30
LOAD_SECONDS = 60
INTEROP = Path(__file__).parents[1] / "emulator" / "interop"
SENDERS = ("pion", "libwebrtc", "libdatachannel")
COMMAND = "import sys; sys.path.insert(0, '.'); from gateway.cli import main; sys.argv[0] = 'gateway'; main()"


def free_port() -> int:
    """Return a port that is currently free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(stack: ExitStack, *command: str, output: Path, **options: object) -> subprocess.Popen[bytes]:
    """Start a program that ends with the exit stack."""
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, **options)  # type: ignore[call-overload]
    stack.callback(ended, process)
    made: subprocess.Popen[bytes] = process
    return made


def ended(process: subprocess.Popen[bytes]) -> None:
    """End a program. libwebrtc's threads sometimes keep its process from ending by itself."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def gateway(stack: ExitStack, checkout: str, base_url: str, output: Path) -> tuple[int, str]:
    """Start a gateway from a checkout; return its process id and its URL."""
    environment = {**os.environ, "OPENAI_API_KEY": "sk-offline", "GATEWAY_ACCESS__ANONYMOUS": "true"}
    flags = ("--port", "0", "--admin-port", "0", "--upstream-url", base_url)
    checkout, _, python = checkout.partition("@")
    process = started(
        stack,
        python or sys.executable,
        "-c",
        COMMAND,
        "serve",
        *flags,
        output=output,
        cwd=checkout,
        env=environment,
    )
    return process.pid, listening(output, r"(?<!admin )listening on (http://[\d.:]+)")


def far_end(stack: ExitStack, given: argparse.Namespace, output: Path) -> str:
    """Start the far end and return its base URL."""
    if given.sender == "pion":
        address = f"127.0.0.1:{free_port()}"
        speech = ("-addr", address, "-words", given.words, "-gap", given.gap)
        started(stack, str(Path(given.programs) / "upstream"), *speech, output=output)
        return f"http://{address}/v1"
    if not (INTEROP / "node_modules").is_dir():
        raise SystemExit(f"{given.sender} is not installed: run `npm install` in {INTEROP}")
    milliseconds = re.fullmatch(r"(\d+)ms|0s", given.gap)
    if milliseconds is None:
        raise SystemExit(f"--gap {given.gap}: give whole milliseconds, such as 10ms")
    paced = ("--words", given.words, "--gap", milliseconds[1] or "0")
    started(stack, "node", str(INTEROP / f"{given.sender}-farend.mjs"), *paced, output=output)
    return listening(output, r"listening on (\S+)")


def listening(output: Path, pattern: str) -> str:
    """Wait until a program has printed its address."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if found := re.search(pattern, output.read_text()):
            return found[1]
        time.sleep(0.1)
    raise SystemExit(f"{output.name} did not start:\n{output.read_text()}")


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", required=True)
    parser.add_argument("--words", default="200")
    parser.add_argument("--gap", default="0s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sessions", default="50")
    parser.add_argument("--turns", default="5")
    parser.add_argument("--sender", choices=SENDERS, default=SENDERS[0])
    parser.add_argument("checkouts", nargs="*", default=["gateway=."], metavar="LABEL=CHECKOUT[@PYTHON]")
    given = parser.parse_args()
    programs = Path(given.programs)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bare, base_url = f"127.0.0.1:{free_port()}", far_end(stack, given, Path(folder, "upstream"))
        calls = f"{base_url}/realtime/calls"
        relay = started(
            stack, str(programs / "relay"), "-addr", bare, "-upstream", calls, output=Path(folder, "relay")
        )
        time.sleep(1)

        def load(label: str, pid: int, url: str) -> None:
            size = ("-n", given.sessions, "-turns", given.turns)
            command = [str(programs / "load"), "-base", url, "-pid", str(pid), *size]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, check=True, timeout=LOAD_SECONDS
                )
            except subprocess.TimeoutExpired:
                print(f"{label}\ndid not finish within {LOAD_SECONDS} s\n", flush=True)
            else:
                print(f"{label}\n{done.stdout}", flush=True)

        for _ in range(given.rounds):
            load("relay", relay.pid, f"http://{bare}")
            for checkout in given.checkouts:
                label, _, path = checkout.partition("=")
                with ExitStack() as running:
                    load(label, *gateway(running, path, base_url, Path(folder, label)))


if __name__ == "__main__":
    main()
