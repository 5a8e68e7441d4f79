"""`gateway bench`: measures the gateway's CPU, memory and latency on this machine.

Without `--url` it runs a gateway and an emulator in separate processes. In the same run it also measures bare aiortc peers
that receive the same stream, since figures of different days or machines cannot be compared.
"""

import asyncio
import json
import os
import platform
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateway import __version__

if TYPE_CHECKING:
    from gateway.cli.scrape import Buckets
    from gateway.client import Client, Session

IDLE_SECONDS: Final = 10.0
"""Two rounds of consent checks, the only work of an idle session."""

SETTLE_SECONDS: Final = 1.0
WARM_SESSIONS: Final = 3
BARE_SECONDS: Final = 600.0

SENDER: Final = "the emulator (aiortc; messages of one turn of its loop are bundled into datagrams)"
"""Printed with every figure: the cost of receiving an event depends more on its sender and its pace than on code."""

Figures = dict[str, float | int | str | None]


def bench(
    url: Annotated[
        str | None,
        typer.Option(metavar="U", help="A running gateway. Without it, bench starts one."),
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="K", envvar="GATEWAY_KEY", help="API key.")] = None,
    sessions: Annotated[int, typer.Option(metavar="N", min=1, help="Sessions at once.")] = 50,
    turns: Annotated[int, typer.Option(metavar="T", min=1, help="Turns of each.")] = 3,
    words: Annotated[int, typer.Option(metavar="W", min=1, help="Length of an answer.")] = 100,
    tokens_per_second: Annotated[
        float, typer.Option(metavar="R", min=0, help="Pace of the emulator; 0 for as fast as possible.")
    ] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the figures into this file.")
    ] = None,
) -> None:
    """Open sessions, run turns, and print what they cost."""
    import aiohttp

    from gateway.cli.child import ChildError
    from gateway.cli.running import fail, full_url, refused, run, why
    from gateway.client import ProblemError

    console = Console(stderr=True)
    plan = Plan(sessions, turns, words, tokens_per_second)
    url = None if url is None else full_url(url)
    try:
        with _progress(console) as progress:
            figures = run(_bench(url, key, plan, progress))
    except ProblemError as error:
        fail(f"bench failed: {f'{url}: ' if url else ''}{refused(error)}")
    except (ChildError, aiohttp.ClientError, TimeoutError) as error:
        fail(f"bench failed: {f'{url}: ' if url else ''}{why(error)}")
    except ExceptionGroup as errors:
        fail(f"bench failed: {errors.exceptions[0]}")
    if svg is not None:
        from gateway.cli.chart import svg as drawing

        try:
            svg.write_text(drawing(_title(figures), figures), encoding="utf-8")
        except OSError as error:
            fail(f"the drawing cannot be written: {svg}: {why(error)}")
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        _show(Console(), figures)


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of a run."""

    sessions: int
    turns: int
    words: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Target:
    """The gateway under test; also its process and the emulator's URL if this run started them."""

    url: str
    pid: int | None = None
    admin: str | None = None
    upstream: str | None = None

    @property
    def cpu_seconds(self) -> float:
        """The CPU time of the process so far; 0 if it is not known."""
        from gateway.cli.procfs import cpu_seconds

        return cpu_seconds(self.pid) if self.pid else 0.0

    @property
    def resident_bytes(self) -> int:
        """The memory of the process; 0 if it is not known."""
        from gateway.cli.procfs import resident_bytes

        return resident_bytes(self.pid) if self.pid else 0


async def _bench(url: str | None, key: str | None, plan: Plan, progress: Progress) -> Figures:
    from gateway.client import Client

    async with AsyncExitStack() as stack:
        target = Target(url) if url else await stack.enter_async_context(_own(plan))
        async with Client(target.url, key) as client:
            await client.reach()
            figures = await _measure(client, target, plan, progress)
        if target.upstream is not None:
            figures |= await _compare(target.upstream, plan, progress)
    _derive(figures)
    return {**_conditions(plan, target), **figures}


@asynccontextmanager
async def _own(plan: Plan) -> AsyncIterator[Target]:
    """Run an emulator and a gateway."""
    from gateway.cli.child import Child, emulator, offline_environment

    async with emulator("--tokens-per-second", str(plan.tokens_per_second)) as far_end:
        serve = ("gateway", "serve", "--port", "0", "--admin-port", "0", "--upstream-url", far_end.found[0])
        environ = {**offline_environment(), "GATEWAY_LOG__ACCESS": "false"}
        async with Child(serve, [r"\blistening on (\S+)", r"admin listening on (\S+)"], environ) as server:
            yield Target(server.found[0], server.pid, server.found[1], far_end.found[0])


async def _measure(client: "Client", target: Target, plan: Plan, progress: Progress) -> Figures:
    from gateway.cli.load import close_all, listening, open_one_by_one, talk

    # Modules and memory that are loaded once belong to no session. These sessions stay open: the next ones would reuse
    # their memory and seem to need less.
    warm, _ = await open_one_by_one(client, WARM_SESSIONS, lambda done: None)
    async with listening(warm) as talkers:
        await talk(talkers, 1, plan.words, lambda done: None)
    sessions, figures = await _open(client, target, plan, progress)
    figures |= await _talk(sessions, target, plan, progress)
    await close_all([*warm, *sessions])
    return figures


async def _open(
    client: "Client", target: Target, plan: Plan, progress: Progress
) -> "tuple[list[Session], Figures]":
    """Open the sessions. Return them with the cost of a set-up and of an idle session."""
    from gateway.cli.load import open_one_by_one

    idle_before = await _idle_share(target, progress, "idle before")
    task = progress.add_task("opening sessions", total=plan.sessions)
    memory, cpu = target.resident_bytes, target.cpu_seconds
    sessions, took = await open_one_by_one(client, plan.sessions, lambda done: progress.advance(task, done))
    cpu = target.cpu_seconds - cpu
    await asyncio.sleep(SETTLE_SECONDS)
    figures: Figures = {"setup_ms_p50": _ms(took, 50), "setup_ms_p99": _ms(took, 99)}
    if target.pid:
        figures["setup_cpu_ms"] = cpu / plan.sessions * 1e3
        figures["session_kib"] = (target.resident_bytes - memory) / plan.sessions / 1024
        idle = await _idle_share(target, progress, "idle with all")
        figures["idle_cpu_percent"] = max(0.0, idle - idle_before) / plan.sessions * 100
    return sessions, figures


async def _talk(sessions: "list[Session]", target: Target, plan: Plan, progress: Progress) -> Figures:
    """Run the turns. Return their latencies and their cost."""
    from gateway.cli.load import delays, listening, talk

    task = progress.add_task("talking", total=plan.sessions * plan.turns)
    async with listening(sessions) as talkers:
        histograms, cpu = await _histograms(target), target.cpu_seconds
        rounds = await talk(talkers, plan.turns, plan.words, lambda done: progress.advance(task, done))
        cpu = target.cpu_seconds - cpu
    figures: Figures = {
        "events": rounds.events,
        "events_per_second": rounds.events / rounds.seconds,
        "first_delta_ms_p50": _ms(rounds.first_deltas, 50),
        "first_delta_ms_p99": _ms(rounds.first_deltas, 99),
    }
    if plan.tokens_per_second and target.upstream:
        late = sorted(seconds for turn in rounds.arrivals for seconds in delays(turn, plan.tokens_per_second))
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999)):
            figures[f"delta_delay_ms_{name}"] = late[int(share * (len(late) - 1))] * 1e3
    figures |= _quantiles(histograms, await _histograms(target))
    if target.pid:
        figures["gateway_us_per_event"] = cpu / rounds.events * 1e6
        figures["gateway_cpu_percent"] = cpu / rounds.seconds * 100
    return figures


async def _histograms(target: Target) -> "dict[str, Buckets]":
    """Return the gateway's own histograms, if the URL of its operator's listener is known."""
    from gateway.cli.scrape import histogram

    if target.admin is None:
        return {}
    return {
        "relay_ms": await histogram(target.admin, "relay_seconds", direction="down"),
        "loop_lag_ms": await histogram(target.admin, "event_loop_lag_seconds"),
    }


def _quantiles(before: "dict[str, Buckets]", after: "dict[str, Buckets]") -> Figures:
    from gateway.cli.scrape import quantile, since

    figures: Figures = {}
    for name in after:
        counted = since(before[name], after[name])
        for percent in (50, 99):
            seconds = quantile(counted, percent / 100)
            figures[f"{name}_p{percent}"] = None if seconds is None else seconds * 1e3
    return figures


async def _idle_share(target: Target, progress: Progress, what: str) -> float:
    """Return the share of a core that the gateway's process uses while idle; 0 if it is not known."""
    if target.pid is None:
        return 0.0
    task = progress.add_task(what, total=int(IDLE_SECONDS))
    cpu, began = target.cpu_seconds, time.perf_counter()
    for _ in range(int(IDLE_SECONDS)):
        await asyncio.sleep(1)
        progress.advance(task)
    return (target.cpu_seconds - cpu) / (time.perf_counter() - began)


async def _compare(upstream: str, plan: Plan, progress: Progress) -> Figures:
    """Run the same turns directly over data channels, without a gateway."""
    figures: Figures = {}
    for name, flags in (("bare_tuned", ()), ("bare_stock", ("--stock",))):
        task = progress.add_task(f"{name.replace('_', ' ')} aiortc", total=None)
        measured = await _bare(upstream, plan, flags)
        progress.update(task, total=1, completed=1)
        figures[f"{name}_us_per_event"] = measured["cpu_seconds"] / measured["events"] * 1e6
        figures[f"{name}_events"] = int(measured["events"])
        figures[f"{name}_session_kib"] = measured["session_bytes"] / 1024
    return figures


async def _bare(upstream: str, plan: Plan, flags: Sequence[str]) -> dict[str, float]:
    from gateway.cli.child import Child, offline_environment

    arguments = ["gateway.cli.bare", "--url", upstream, "--sessions", str(plan.sessions)]
    arguments += ["--turns", str(plan.turns), "--words", str(plan.words), *flags]
    async with Child(arguments, [r"^(\{.*\})$"], offline_environment(), start_seconds=BARE_SECONDS) as child:
        return dict(json.loads(child.found[0]))


def _derive(figures: Figures) -> None:
    whole, bare = figures.get("gateway_us_per_event"), figures.get("bare_tuned_us_per_event")
    if isinstance(whole, float) and isinstance(bare, float):
        figures["own_us_per_event"] = whole - bare


def _conditions(plan: Plan, target: Target) -> Figures:
    from gateway.cli.procfs import processor

    return {
        "version": __version__,
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "sender": SENDER if target.upstream else "unknown",
        "sessions": plan.sessions,
        "turns": plan.turns,
        "words": plan.words,
        "tokens_per_second": plan.tokens_per_second if target.upstream else None,
    }


def _ms(seconds: list[float], percent: int) -> float:
    if len(seconds) == 1:
        return seconds[0] * 1e3
    return statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1] * 1e3


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


_ROWS: Final = (
    ("setup_ms_p50", "session set-up, p50", "ms", 1),
    ("setup_ms_p99", "session set-up, p99", "ms", 1),
    ("setup_cpu_ms", "CPU of a set-up", "ms", 1),
    ("session_kib", "memory of an idle session", "KiB", 0),
    ("idle_cpu_percent", "CPU of an idle session", "% of a core", 4),
    ("first_delta_ms_p50", "question to first delta, p50", "ms", 1),
    ("first_delta_ms_p99", "question to first delta, p99", "ms", 1),
    ("delta_delay_ms_p50", "delay of a delta, sender to client, p50", "ms", 2),
    ("delta_delay_ms_p99", "delay of a delta, sender to client, p99", "ms", 2),
    ("delta_delay_ms_p999", "delay of a delta, sender to client, p99.9", "ms", 2),
    ("relay_ms_p50", "data channel to socket, p50", "ms", 2),
    ("relay_ms_p99", "data channel to socket, p99", "ms", 2),
    ("loop_lag_ms_p99", "event loop lag during the turns, p99", "ms", 1),
    ("events", "events relayed", "", 0),
    ("events_per_second", "events a second", "", 0),
    ("gateway_cpu_percent", "CPU of the gateway during the turns", "% of a core", 0),
    ("gateway_us_per_event", "CPU of an event, gateway", "µs", 1),
    ("bare_tuned_us_per_event", "CPU of an event, aiortc alone, same tuning", "µs", 1),
    ("bare_stock_us_per_event", "CPU of an event, aiortc alone, stock", "µs", 1),
    ("own_us_per_event", "CPU of an event, without aiortc's", "µs", 1),
    ("bare_tuned_session_kib", "memory of a call, aiortc alone, same tuning", "KiB", 0),
    ("bare_stock_session_kib", "memory of a call, aiortc alone, stock", "KiB", 0),
)


def _title(figures: Figures) -> str:
    pace = figures["tokens_per_second"]
    talk = f"{figures['sessions']} sessions, {figures['turns']} turns of {figures['words']} words"
    if pace is not None:
        talk += f", {pace:g} tokens a second each" if pace else ", as fast as possible"
    return f"gateway {figures['version']}: {talk}"


def _show(console: Console, figures: Figures) -> None:
    sender = "" if figures["sender"] == "unknown" else f"sender: {figures['sender']}\n"
    machine = f"{sender}{figures['cores']} cores, {figures['processor']}, Python {figures['python']}"
    table = Table(title=_title(figures), caption=machine)
    table.add_column("what")
    table.add_column("measured", justify="right")
    table.add_column("")
    for name, text, unit, digits in _ROWS:
        value = figures.get(name)
        if isinstance(value, int | float):
            table.add_row(text, f"{value:,.{digits}f}", unit)
    console.print(table)
