"""The view of `gateway top`: totals, rates between two snapshots of a gateway, and a table of sessions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gateway.cli.scrape import Buckets, Samples, buckets, quantile, since, total

Json = Mapping[str, Any]  # Any: JSON

STATES: Final = ("connected", "recovering", "connecting")
_STYLES: Final = {"connected": "green", "recovering": "yellow", "connecting": "cyan", "closed": "dim"}

_MINUTE: Final = 60
_HOUR: Final = 3600


@dataclass(frozen=True, slots=True)
class Look:
    """A snapshot from the operator's listener."""

    at: float
    """Monotonic seconds."""
    unix: float
    samples: Samples
    sessions: Sequence[Json]
    more: bool = False
    """There are more sessions than were requested."""


@dataclass(frozen=True, slots=True)
class Row:
    """One session."""

    id: str
    principal: str
    state: str
    model: str
    age_seconds: float
    readers: int
    events_per_second: float
    tokens: int
    cost_usd: float | None


def rows(before: Look | None, now: Look) -> list[Row]:
    """Return the sessions, ordered by activity, then by cost."""
    heads = {session["id"]: _sequence(session) for session in before.sessions} if before else {}
    seconds = now.at - before.at if before else 0.0
    found = [_row(session, heads.get(session["id"]), seconds, now.unix) for session in now.sessions]
    return sorted(found, key=lambda row: (-row.events_per_second, -(row.cost_usd or 0), row.id))


def _row(session: Json, head: int | None, seconds: float, unix: float) -> Row:
    usage = session.get("usage") or {}
    counted = ("input_text", "input_audio", "input_image", "output_text", "output_audio")
    events = _sequence(session) - head if head is not None else 0
    return Row(
        id=str(session["id"]),
        principal=str(session["principal"]),
        state=str(session["state"]),
        model=str(session.get("model") or "-"),
        age_seconds=max(0.0, unix - session["created_at"]),
        readers=int(session["receivers"]),
        events_per_second=max(0, events) / seconds if seconds > 0 else 0.0,
        tokens=sum(usage.get(name, 0) for name in counted),
        cost_usd=usage.get("cost_usd"),
    )


def _sequence(session: Json) -> int:
    """Return the sequence in an event id, `epoch-sequence`. It continues across calls and nodes."""
    number = str(session["head"]).rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def drawing(before: Look | None, now: Look, height: int) -> Group:
    """Return the totals and as many sessions as fit."""
    table = Table(box=None, pad_edge=False, expand=True, header_style="bold")
    for name in ("session", "key", "state", "model"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in ("age", "readers", "events/s", "tokens", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = rows(before, now)
    room = max(1, height)
    for row in shown[:room]:
        table.add_row(
            escape(row.id),
            escape(row.principal),
            Text(row.state, style=_STYLES.get(row.state, "")),
            escape(row.model),
            duration(row.age_seconds),
            str(row.readers),
            f"{row.events_per_second:.1f}",
            f"{row.tokens:,}",
            dollars(row.cost_usd),
        )
    hidden = len(shown) - room
    left = "" if hidden <= 0 else f"… and {hidden}{'+' if now.more else ''} more"
    return Group(*totals(before, now), "", table, Text(left, style="dim"))


def totals(before: Look | None, now: Look) -> list[Text]:
    """Return the lines above the table."""
    samples = now.samples
    states = " · ".join(f"{total(samples, 'sessions', state=state):.0f} {state}" for state in STATES)
    limit = total(samples, "limit", kind="sessions")
    draining = "  DRAINING" if total(samples, "draining") else ""
    rate = partial(_rate, before, now)
    lag = quantile(_between(before, now, "event_loop_lag_seconds"), 0.99)
    memory = total(samples, "process_resident_memory_bytes") / 2**20
    up, down = rate("events_total", direction="up"), rate("events_total", direction="down")
    hour, whole = dollars(rate("cost_dollars_total") * _HOUR), dollars(total(samples, "cost_dollars_total"))
    lines = [
        f"sessions  {states}, of {limit:.0f} allowed{draining}",
        f"events    {up:.1f}/s up · {down:.1f}/s down · {total(samples, 'streams'):.0f} streams open",
        f"tokens    {rate('tokens_total') * _MINUTE:,.0f} a minute · {total(samples, 'tokens_total'):,.0f} since start",
        f"cost      {hour} an hour · {whole} since start{_unpriced(samples)}",
        f"process   {memory:.0f} MiB · loop lag p99 {_milliseconds(lag)}",
    ]
    return [Text(line) for line in lines]


def _rate(before: Look | None, now: Look, name: str, **labels: str) -> float:
    """Return the rate of a counter per second; 0 without an earlier snapshot."""
    if before is None or now.at <= before.at:
        return 0.0
    grown = total(now.samples, name, **labels) - total(before.samples, name, **labels)
    return max(0.0, grown) / (now.at - before.at)


def _between(before: Look | None, now: Look, name: str) -> Buckets:
    found = buckets(now.samples, name)
    return since(buckets(before.samples, name), found) if before else found


def _unpriced(samples: Samples) -> str:
    tokens = total(samples, "unpriced_tokens_total")
    return f" · {tokens:,.0f} tokens have no price" if tokens else ""


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def dollars(value: float | None) -> str:
    """Format an amount of dollars. Small amounts have more digits."""
    if value is None:
        return "unknown"
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.4f}"


def duration(seconds: float) -> str:
    """Format a duration in its two largest units."""
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
