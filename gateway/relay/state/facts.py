"""Plain facts of a session, as its state holds them. No I/O, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from gateway.relay.events.envelope import member
from gateway.relay.requests import Principal
from gateway.relay.states import State

Json = Mapping[str, object]

_Fact = TypeVar("_Fact")


@dataclass(frozen=True, slots=True)
class Opening:
    """What a session is opened with, checked and merged by the hub."""

    id: str
    principal: Principal
    metadata: Json
    detach_grace_seconds: int
    created_at: float
    """Unix seconds."""
    secret_allows: tuple[str, ...] = ()
    retry_interrupted: bool = False
    """Ask again for a response that a lost call cut off."""
    attach_to: str | None = None
    """ID of another application's call that it is attached to."""
    mirrored: bool = True
    """Its calls can be replaced, so the conversation is followed."""
    own_credential: bool = False
    """Its calls use the caller's own credential, which is kept only in memory."""
    single_turn: bool = False
    """It was opened for one turn, and the request that opened it closes it."""


@dataclass(frozen=True, slots=True)
class Call:
    """The present call, or the last one."""

    state: State = State.CONNECTING
    call_id: str | None = None
    expires_at: int | None = None
    model: str | None = None
    cause: str | None = None


@dataclass(slots=True)
class Spent:
    """What the responses of the session have cost so far, as budgets count it (see `allowance.Account.load`)."""

    tokens: int = 0
    cost: int = 0
    context: int = 0
    """Tokens of the last response."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The members of the session object that the relay uses."""

    text_only: bool = False
    transcription_model: str | None = None
    max_output_tokens: object = None


def settings_of(session: object) -> Settings:
    """Read them from a session object."""
    model = member(session, "audio", "input", "transcription", "model")
    return Settings(
        member(session, "output_modalities") == ["text"], _text(model), member(session, "max_output_tokens")
    )


def loaded(kind: type[_Fact], dumped: Mapping[str, Any]) -> _Fact:  # Any: JSON of `asdict`
    """Make a value of its dumped members. Those that another version added are ignored."""
    return kind(**{one.name: dumped[one.name] for one in fields(kind) if one.name in dumped})  # type: ignore[arg-type]  # a dataclass


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
