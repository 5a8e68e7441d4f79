"""A conversation over a slow and lossy path, as a program: `ip netns exec A python -m tests.e2e.slowpath B
10.77.0.2`.

It runs in namespace A, where the gateway is, and starts the far end in namespace B at that address. It prints what
happened as one JSON object, which its caller checks.
"""

# ruff: noqa: T201  # its output is its result

import asyncio
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from gateway.app import Gateway
from tests.e2e.caller import Caller, Json, answer_of, configured, number, say
from tests.programs import Program

PORT = 18090
# Longer than the gateway waits for a silent peer; then just long enough to be cut in the middle of a response.
THINKING_SECONDS, LATER_SECONDS = 10, 2


def far_end(stack: ExitStack, folder: Path, namespace: str, host: str, seconds: float) -> Program:
    """Start a far end in the other namespace that waits so long before it answers."""
    flags = ("--host", host, "--port", str(PORT), "--tokens-per-second", "0")
    thinking = ("--fault", f"first_delta_seconds={seconds}")
    program = Program(
        folder / f"far-end-{len(list(folder.iterdir()))}",
        "tests.e2e.within",
        *(namespace, "gateway", "emulate", *flags, *thinking),
    )
    stack.callback(program.stop)
    program.said(r"emulator listening on (\S+)\n")
    return program


async def ask(caller: Caller, session_id: str, text: str) -> tuple[str, str]:
    """Run a turn and return the answer and the cursor after it."""
    receipt = await caller.send(session_id, *say(text))
    reads = await caller.until(session_id, "response.done", after=receipt["head"], seconds=60)
    return answer_of(read.value for read in reads), str(reads[-1].id)


async def talk(namespace: str, host: str) -> Json:
    """Take turns, hand over, lose the far end, and take another turn."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        here = Path(folder)
        other = far_end(stack, here, namespace, host, THINKING_SECONDS)
        gateway = Gateway(configured(f"http://{host}:{PORT}/v1"))
        await gateway.start()
        try:
            async with Caller(gateway.url) as caller, Caller(gateway.admin_url) as operator:
                session_id = (await caller.open())["id"]
                first, quiet = await ask(caller, session_id, "My name is Ada.")
                _, page = await caller.ask(
                    "GET", f"/v1/sessions/{session_id}/events?format=json&limit=1000&wait=0"
                )
                before = [event["event"]["type"] for event in page["events"]]
                await operator.ask("POST", f"/sessions/{session_id}/restart")
                await caller.until(session_id, "gateway.recovered", after=quiet, seconds=60)
                second, last = await ask(caller, session_id, "What is my name?")
                await caller.send(session_id, *say("Count to 9."))
                await caller.until(session_id, "response.created", after=last, seconds=60)
                other.kill()
                far_end(stack, here, namespace, host, LATER_SECONDS)
                await caller.until(session_id, "gateway.recovered", after=last, seconds=90)
                third, last = await ask(caller, session_id, "What is my name?")
                log = await caller.take(session_id, number(last))
                return {
                    "answers": [first, second, third],
                    "before": [kind for kind in before if kind.startswith("gateway.")],
                    "own": [read.value for read in log if read.type.startswith("gateway.")],
                    "numbers": [number(read.id) for read in log],
                }
        finally:
            await gateway.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(talk(*sys.argv[1:]))))
