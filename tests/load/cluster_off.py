"""What the code for several nodes costs a single process: `python -m tests.load.cluster_off`.

The relay runs alone in a process, from the call's sink to the log and from `submit` to the call, and its CPU time is
measured per event. It is compared with the same code of which every statement that concerns a journal is removed. The two
alternate in child processes, and the medians are printed. The exit status is 1 if they differ by more than 2 %.
"""

# ruff: noqa: T201  # a command prints its result

import argparse
import asyncio
import importlib.abc
import importlib.machinery
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

BOUND: Final = 0.02
STRIPPED: Final = ("gateway.relay.core", "gateway.relay.session")
EVENTS, BATCHES = 40_000, 4_000
QUESTION: Final = (
    b'[{"type":"conversation.item.create","item":{"type":"message","role":"user","content":'
    b'[{"type":"input_text","text":"Hello there"}]}},{"type":"response.create"}]'
)
ANSWERS: Final = tuple(
    json.dumps(event)
    for event in (
        {
            "type": "conversation.item.added",
            "item": {"id": "i", "type": "message", "role": "user", "status": "completed", "content": []},
        },
        {"type": "response.created", "response": {"id": "q"}},
        {
            "type": "response.done",
            "response": {"id": "q", "status": "completed", "usage": {"total_tokens": 1}},
        },
    )
)
_CONDITION: Final = re.compile(r" and self\.journal\.sure| or not self\.journal\.sure")


def without_journal(source: str) -> str:
    """Remove the statements that pass something to a journal or wait for it."""
    kept: list[str] = []
    block: int | None = None
    for line in source.splitlines():
        indent = len(line) - len(line.lstrip())
        if block is not None and (not line.strip() or indent > block):
            continue
        block = None
        if line.lstrip().startswith("if self.journal.keeps"):
            block = indent
        elif line.strip() == "await self.journal.flushed()":
            kept.append(" " * indent + "pass")
        else:
            kept.append(_CONDITION.sub("", line))
    return "\n".join(kept) + "\n"


class _Stripping(importlib.abc.MetaPathFinder):
    """Imports the relay without its journal."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        # Any: a module spec, as importlib types it
        if name not in STRIPPED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert isinstance(spec.loader, importlib.machinery.SourceFileLoader)
        loader = spec.loader

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> Any:  # Any: a code object or None, as importlib types it
                source = loader.get_source(fullname)
                assert source is not None
                stripped = without_journal(source)
                assert stripped.count("\n") < source.count("\n"), f"{fullname} has nothing to remove"
                return compile(stripped, loader.path, "exec")

        spec.loader = Loader(name, loader.path)
        return spec


def response(number: int) -> Iterator[dict[str, Any]]:
    """Yield the server events of one response of 20 deltas."""
    name, item_id = f"resp_{number}", f"item_{number}"
    item = {"id": item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
    done = {**item, "status": "completed", "content": [{"type": "output_text", "text": "word " * 20}]}
    yield {"type": "response.created", "response": {"id": name, "status": "in_progress", "metadata": None}}
    yield {"type": "response.output_item.added", "response_id": name, "item": item}
    yield {"type": "conversation.item.added", "item": item}
    for _ in range(20):
        delta = {"response_id": name, "item_id": item_id, "delta": " word", "padding": "y" * 150}
        yield {"type": "response.output_text.delta", **delta}
    yield {"type": "response.output_item.done", "response_id": name, "item": done}
    yield {"type": "conversation.item.done", "item": done}
    usage = {"total_tokens": 3, "input_tokens": 1, "output_tokens": 2}
    yield {
        "type": "response.done",
        "response": {"id": name, "status": "completed", "usage": usage, "output": [done]},
    }


class Quiet:
    """Telemetry that does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        def nothing(*_: object) -> None: ...

        setattr(self, name, nothing)
        return nothing


class Call:
    """An open call that accepts everything."""

    call_id, buffered, acknowledged, undelivered, max_message_bytes = "rtc_1", 0, 0, False, None
    diagnostics: Final[dict[str, object]] = {}

    def __init__(self, sink: Any, generation: int) -> None:  # Any: imported later
        self.sink, self.generation = sink, generation

    def send(self, batch: Sequence[str]) -> None:
        self.acknowledged += len(batch)

    async def probe(self, timeout: float) -> bool:
        return True

    async def close(self, hang_up: bool) -> None: ...


class Dialer:
    """Opens such a call."""

    call: Call

    async def dial(self, request: Any, sink: Any) -> Call:  # Any: imported later
        self.call = Call(sink, request.generation)
        greeting = {"type": "session.created", "session": {"type": "realtime", "model": "m"}}
        sink.received(request.generation, json.dumps(greeting))
        return self.call


async def measure() -> dict[str, float]:
    """Return the CPU time per event and per batch, in µs."""
    # Imported after the hook that removes statements is installed.
    from gateway.downstream.reading.sse import frame
    from gateway.relay.events.envelope import read_json
    from gateway.relay.events.jsontext import finish
    from gateway.relay.hub import Hub
    from gateway.relay.limits import RelayLimits
    from gateway.relay.ports import OpenRequest
    from gateway.relay.requests import Principal

    dialer: Any = Dialer()  # Any: as little of a dialer as the relay needs here
    telemetry: Any = Quiet()
    hub = Hub(dialer, frame, telemetry, RelayLimits(log_max_events=2000))
    hub.start()
    session = await hub.open(OpenRequest(Principal("one")))
    session.reader.subscribe(lambda: None)
    call, texts = dialer.call, [json.dumps(one) for number in range(EVENTS // 27) for one in response(number)]
    delta = next(text for text in texts if "output_text.delta" in text)
    spent: dict[str, float] = {}

    def timed(name: str, began: float, count: int) -> None:
        spent[name] = (time.process_time() - began) / count * 1e6

    began = time.process_time()
    for _ in range(EVENTS):
        call.sink.received(call.generation, delta)
    timed("a delta", began, EVENTS)
    began = time.process_time()
    for text in texts:
        call.sink.received(call.generation, text)
    timed("an event of a response", began, len(texts))
    batch = finish(read_json(QUESTION, max_events=4))
    began = time.process_time()
    for _ in range(BATCHES):
        await session.submit(batch)
        for text in ANSWERS:
            call.sink.received(call.generation, text)
    timed("a question and its three answers", began, BATCHES)
    await hub.close()
    return spent


def child(*, stripped: bool) -> dict[str, float]:
    """Measure in its own process."""
    command = [
        sys.executable,
        "-m",
        "tests.load.cluster_off",
        "--child",
        *(["--stripped"] if stripped else []),
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(said)
    return found


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.cluster_off", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--stripped", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        if given.stripped:
            sys.meta_path.insert(0, _Stripping())
        print(json.dumps(asyncio.run(measure())))
        return 0
    pairs = [(child(stripped=False), child(stripped=True)) for _ in range(given.rounds)]
    print("| CPU, medians | as it is | without the journal's statements | difference |\n|---|---|---|---|")
    worst = 0.0
    for name in pairs[0][0]:
        own, bare = (statistics.median(pair[side][name] for pair in pairs) for side in (0, 1))
        worst = max(worst, own / bare - 1)
        print(f"| {name} | {own:.2f} µs | {bare:.2f} µs | {own / bare - 1:+.1%} |")
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
