"""What following the conversation costs: `python -m tests.load.mirror`.

Not collected by pytest. The same conversation runs through gateways with `relay.continuity` on and off, alternately,
several times in one run, because machines differ and change; CPU is the gateway process's own, from /proc. The exit
status is 1 above 5 % per event.
"""

# ruff: noqa: T201  # a command prints its result

import argparse
import asyncio
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.caller import Caller, say
from tests.farend import FarEnd
from tests.load.churn import Process
from tests.programs import Served

BOUND = 0.05
WARM_UP_TURNS = 2


@dataclass(frozen=True, slots=True)
class Cost:
    """What one gateway spent on one conversation."""

    micros_per_event: float
    memory_kib: int


async def talk(caller: Caller, session_id: str, turns: int) -> int:
    """Hold this many turns and return the number of events that were read."""
    events = 0
    for _ in range(turns):
        receipt = await caller.send(session_id, *say("Count to 20."))
        events += len(await caller.until(session_id, "response.done", after=receipt["head"]))
    return events


async def cost(gateway: Served, sessions: int, turns: int) -> Cost:
    """Converse in this many sessions at once and return the cost."""
    async with Caller(gateway.url) as caller:
        ids = [(await caller.open())["id"] for _ in range(sessions)]
        await asyncio.gather(*(talk(caller, session_id, WARM_UP_TURNS) for session_id in ids))
        before = Process.of(gateway.process.pid)
        events = sum(await asyncio.gather(*(talk(caller, session_id, turns) for session_id in ids)))
        after = Process.of(gateway.process.pid)
    spent = after.cpu_seconds - before.cpu_seconds
    return Cost(spent / events * 1e6, after.memory_kib)


def main() -> int:
    """Run it and compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.mirror", description=__doc__)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    costs: dict[bool, list[Cost]] = {False: [], True: []}
    with (
        tempfile.TemporaryDirectory() as folder,
        FarEnd(Path(folder) / "far-end", "--tokens-per-second", "0") as far_end,
    ):
        for at in range(2 * given.rounds):
            # On, off, off, on: other load on the machine affects both.
            on = at % 4 in (0, 3)
            environ = {"GATEWAY_LOG__ACCESS": "false", "GATEWAY_RELAY__CONTINUITY": str(on).lower()}
            with Served(Path(folder) / f"gateway-{at}", far_end.base_url, environ=environ) as gateway:
                costs[on].append(asyncio.run(cost(gateway, given.sessions, given.turns)))
            last = costs[on][-1]
            print(f"continuity {str(on).lower():5}: {last.micros_per_event:.1f} us an event", flush=True)
    return compare(costs, given.sessions)


def compare(costs: dict[bool, list[Cost]], sessions: int) -> int:
    """Print what the mirror adds."""
    off, on = (statistics.median(one.micros_per_event for one in costs[with_it]) for with_it in (False, True))
    memory = [statistics.median(one.memory_kib for one in costs[with_it]) for with_it in (False, True)]
    print(f"median: off {off:.1f}, on {on:.1f} us an event: {(on - off) / off:+.1%}")
    print(f"memory: {(memory[1] - memory[0]) / sessions:+.0f} KiB a session")
    return 0 if on <= off * (1 + BOUND) else 1


if __name__ == "__main__":
    sys.exit(main())
