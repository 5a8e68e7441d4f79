"""The life of a session's calls as a table: phases and inputs. No I/O, no clock.

A session has one call at a time, and sometimes a second one that is to replace it. Where it is in that is its *phase*.
What happens to it is an *input*, and `TABLE` says for each pair what the next phase is and what must be done, in order.
A pair that is not in the table cannot happen: it is a bug in the gateway, and raises `Impossible`.

A call is replaced in two ways. *After a loss* the session has no call (DOWN): accepted events are held, and calls are
tried with growing pauses until one is open and seeded with the conversation. *Before a planned end* the next call is
dialled beside the present one, which stays in use until a pause between responses; only then are events held, until the
old call has confirmed what it was sent and the new one is seeded. So clients notice nothing. If the old call ends or
expires during that, the planned replacement becomes a recovery without a restart: it uses the call that is being seeded.

A session that goes to another node is *parked*: held in a pause, its state written out, its call kept until the other node
has taken over. There it begins in SWITCHING, with a call that was dialled beside. A session whose node was lost begins
in DOWN.

What clients see as the session's state follows from the phase (`STATE_OF`).
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from gateway.relay.states import State


class Phase(StrEnum):
    """Where a session's call is in its life."""

    DIALLING = "dialling"
    """The first call is being set up; clients do not know the session yet."""
    LIVE = "live"
    """A call is in use."""
    SUSPECT = "suspect"
    """The channel refused to send, and its loss was not reported yet: events are held."""
    DIALLING_BESIDE = "dialling beside"
    """The present call is in use while the next one is being set up."""
    WAITING_QUIET = "waiting for quiet"
    """The present call is in use until a pause between responses."""
    SETTLING = "settling"
    """Events are held, and the present call gets time to confirm what it was sent."""
    SEEDING = "seeding"
    """Events are held while the next call is seeded with the conversation."""
    SWITCHING = "switching"
    """As before, but the old call's events are ignored; clients were not told."""
    DOWN = "down"
    """There is no call; events are held while calls are tried."""
    RESEEDING = "reseeding"
    """There is no call except one that is being seeded; events are held."""
    PARKED = "parked"
    """Events are held, and another node is about to take the session over."""
    ENDED = "ended"
    """The session is over."""


class Input(StrEnum):
    """What happens to a session's calls."""

    OPENED = "opened"
    """The call that was dialled is open."""
    FAILED = "failed"
    """The call that was dialled or seeded cannot be used."""
    BLOCKED = "blocked"
    """The present call refused to send."""
    LOST = "lost"
    """The present call is gone."""
    REPLACE = "replace"
    """The present call is to be replaced: it is about to end, or an operator asked."""
    YIELD = "yield"
    """Another node is to take the session over."""
    QUIET = "quiet"
    """No response is in flight, or there is no time to wait for its end."""
    ANSWERING = "answering"
    """A response began after the pause."""
    SETTLED = "settled"
    """Everything sent is confirmed, or the time to wait for that is over."""
    OVERDUE = "overdue"
    """As before, and a response of the present call will be cut off."""
    SEEDED = "seeded"
    """The new call holds the conversation."""
    WRITTEN = "written"
    """The state is written out for another node."""
    RESUMED = "resumed"
    """The other node did not take over."""
    END = "end"
    """The session ends."""


class Action(StrEnum):
    """What the shell does."""

    LEAVE = "leave the call"
    """Ignore the present call from now on."""
    HOLD = "hold"
    """Hold what is accepted from now on."""
    TELL_RECOVERING = "tell recovering"
    """Write gateway.recovering."""
    TAKE_OVER = "take over"
    """Make the new call the present one."""
    RELEASE = "release"
    """Hand what was held to the present call, and hold no more."""
    TELL_RECOVERED = "tell recovered"
    """Write gateway.recovered."""


class Step(NamedTuple):
    """The next phase and the actions of one pair of phase and input."""

    phase: Phase
    actions: Sequence[Action] = ()


_P, _I, _A = Phase, Input, Action
_FALL: Final = (_A.LEAVE, _A.HOLD, _A.TELL_RECOVERING)
_SWITCH: Final = (_A.TAKE_OVER, _A.RELEASE, _A.TELL_RECOVERED)

TABLE: Final[Mapping[tuple[Phase, Input], Step]] = {
    (_P.DIALLING, _I.OPENED): Step(_P.LIVE),
    (_P.LIVE, _I.BLOCKED): Step(_P.SUSPECT, (_A.HOLD,)),
    (_P.LIVE, _I.LOST): Step(_P.DOWN, _FALL),
    (_P.LIVE, _I.REPLACE): Step(_P.DIALLING_BESIDE),
    (_P.LIVE, _I.YIELD): Step(_P.WAITING_QUIET),
    (_P.SUSPECT, _I.LOST): Step(_P.DOWN, (_A.LEAVE, _A.TELL_RECOVERING)),
    (_P.DIALLING_BESIDE, _I.OPENED): Step(_P.WAITING_QUIET),
    (_P.DIALLING_BESIDE, _I.FAILED): Step(_P.LIVE),
    (_P.DIALLING_BESIDE, _I.BLOCKED): Step(_P.SUSPECT, (_A.HOLD,)),
    (_P.DIALLING_BESIDE, _I.LOST): Step(_P.DOWN, _FALL),
    (_P.WAITING_QUIET, _I.FAILED): Step(_P.LIVE),
    (_P.WAITING_QUIET, _I.QUIET): Step(_P.SETTLING, (_A.HOLD,)),
    (_P.WAITING_QUIET, _I.BLOCKED): Step(_P.SUSPECT, (_A.HOLD,)),
    (_P.WAITING_QUIET, _I.LOST): Step(_P.DOWN, _FALL),
    (_P.SETTLING, _I.ANSWERING): Step(_P.WAITING_QUIET, (_A.RELEASE,)),
    (_P.SETTLING, _I.SETTLED): Step(_P.SEEDING),
    (_P.SETTLING, _I.OVERDUE): Step(_P.SWITCHING, (_A.LEAVE,)),
    (_P.SETTLING, _I.WRITTEN): Step(_P.PARKED),
    (_P.SETTLING, _I.FAILED): Step(_P.LIVE, (_A.RELEASE,)),
    (_P.SETTLING, _I.LOST): Step(_P.DOWN, (_A.LEAVE, _A.TELL_RECOVERING)),
    (_P.SEEDING, _I.SEEDED): Step(_P.LIVE, _SWITCH),
    (_P.SEEDING, _I.FAILED): Step(_P.LIVE, (_A.RELEASE,)),
    (_P.SEEDING, _I.LOST): Step(_P.RESEEDING, (_A.LEAVE, _A.TELL_RECOVERING)),
    (_P.SWITCHING, _I.SEEDED): Step(_P.LIVE, _SWITCH),
    (_P.SWITCHING, _I.FAILED): Step(_P.DOWN, (_A.TELL_RECOVERING,)),
    (_P.DOWN, _I.OPENED): Step(_P.RESEEDING),
    (_P.DOWN, _I.FAILED): Step(_P.DOWN),
    (_P.RESEEDING, _I.SEEDED): Step(_P.LIVE, _SWITCH),
    (_P.RESEEDING, _I.FAILED): Step(_P.DOWN),
    (_P.PARKED, _I.RESUMED): Step(_P.LIVE, (_A.RELEASE,)),
    (_P.PARKED, _I.LOST): Step(_P.DOWN, (_A.LEAVE, _A.TELL_RECOVERING)),
    **{(phase, _I.END): Step(_P.ENDED) for phase in _P if phase is not _P.ENDED},
}

STATE_OF: Final[Mapping[Phase, State]] = {
    **dict.fromkeys(Phase, State.CONNECTED),
    _P.DIALLING: State.CONNECTING,
    _P.DOWN: State.RECOVERING,
    _P.RESEEDING: State.RECOVERING,
    _P.ENDED: State.CLOSED,
}

HOLDING: Final = frozenset(
    {_P.SUSPECT, _P.SETTLING, _P.SEEDING, _P.SWITCHING, _P.DOWN, _P.RESEEDING, _P.PARKED}
)
"""Phases in which accepted events are held."""

HEARING: Final = frozenset(
    {
        _P.DIALLING,
        _P.LIVE,
        _P.SUSPECT,
        _P.DIALLING_BESIDE,
        _P.WAITING_QUIET,
        _P.SETTLING,
        _P.SEEDING,
        _P.PARKED,
    }
)
"""Phases in which the present call is listened to."""


class Impossible(Exception):
    """An input that the phase has no row for: a bug in the gateway."""


def advance(phase: Phase, happened: Input) -> Step:
    """Return the table's row for a pair. Raises Impossible where the table has no row."""
    try:
        return TABLE[phase, happened]
    except KeyError:
        raise Impossible(f"'{happened}' in phase '{phase}'") from None


def page() -> str:
    """Return the page of the documentation that shows the table."""
    rows = [
        f"| {phase} | {happened} | {step.phase} | {', '.join(step.actions)} |"
        for (phase, happened), step in TABLE.items()
        if happened is not Input.END
    ]
    phases = [f"| {phase} | {STATE_OF[phase]} | {'yes' if phase in HOLDING else 'no'} |" for phase in Phase]
    return "\n".join(
        [
            "# The life of a session's calls",
            "",
            "Generated from `gateway/relay/calls/lifecycle.py`; the theory is in its docstring, and `tests/relay/calls/test_lifecycle.py`",
            "keeps this page equal to it. In every phase but the last, `end` leads to `ended`.",
            "",
            "```mermaid",
            diagram(),
            "```",
            "",
            "| phase | input | next phase | what is done |",
            "|---|---|---|---|",
            *rows,
            "",
            "| phase | state that clients see | holds events |",
            "|---|---|---|",
            *phases,
            "",
        ]
    )


def diagram() -> str:
    """Return the table as a Mermaid state diagram, for the documentation. Inputs that end a session share one line,
    because every phase has them."""
    names = {phase: phase.name for phase in Phase}
    lines = [
        "stateDiagram-v2",
        "    [*] --> DIALLING: create",
        "    [*] --> DOWN: node lost",
        "    [*] --> SWITCHING: hand-over",
    ]
    for (phase, happened), step in TABLE.items():
        if happened is not Input.END:
            done = f" / {', '.join(step.actions)}" if step.actions else ""
            lines.append(f"    {names[phase]} --> {names[step.phase]}: {happened}{done}")
    return "\n".join([*lines, "    ENDED --> [*]"])
