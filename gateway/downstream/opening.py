"""Opens sessions for requests: for a create, and for a turn that gets its own session."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.downstream.auth.access import ACCESS, Grant, upstream_bearer
from gateway.downstream.http.answers import compact
from gateway.downstream.http.app_keys import LIMITS, SESSIONS
from gateway.errors import CallerError, Flaw
from gateway.relay.ports import OpenRequest, View

Object = dict[str, Any]  # Any JSON object: its content belongs to OpenAI or the caller.

_MAX_MEMBERS: Final = 32
"""Limit for objects whose members are all known. Each unknown member is reported with its pointer: for a megabyte of them
this would block the event loop for two seconds and produce a response of five megabytes (measured)."""


class ClientSecretWanted(BaseModel):
    """What the session's client secret may send in addition to the default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    allow: list[str] = Field(default_factory=list, max_length=64)


class SessionWanted(BaseModel):
    """The body of a create. Everything is optional."""

    model_config = ConfigDict(extra="forbid", strict=True)

    session: Object = Field(default_factory=dict)
    call_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,200}$")
    """An existing call to attach to."""
    metadata: Object = Field(default_factory=dict)
    detach_grace_seconds: int | None = None
    client_secret: ClientSecretWanted = Field(default_factory=ClientSecretWanted)
    on_interrupted: Literal["report", "retry"] = "report"
    """Whether a response interrupted by the loss of a call is reported or requested again, which is billed again."""


def required_upstream_bearer(request: web.Request) -> str | None:
    """Return the caller's upstream credential. Raises `unauthorized` if callers must bring one and it is missing."""
    bearer = upstream_bearer(request)
    if bearer is None and request.app[ACCESS].rules.client_upstream:
        raise CallerError(
            "unauthorized", "Send your upstream credential as 'X-Upstream-Authorization: Bearer'."
        )
    return bearer


def parse_wanted(request: web.Request, body: Mapping[str, object]) -> SessionWanted:
    """Check a create's body. Raises `invalid-parameter`, naming the members by JSON pointer."""
    _require_call_alone(body)
    _require_few(body, "")
    _require_few(body.get("client_secret"), "/client_secret")
    try:
        # Clients that build a body from optional values send null for those that are not set.
        wanted = SessionWanted.model_validate(
            {name: value for name, value in body.items() if value is not None}
        )
    except ValidationError as error:
        flaws = tuple(
            Flaw(_said(found["msg"]), pointer=_pointer(found["loc"]))
            for found in error.errors(include_url=False, include_input=False)
        )
        named = "; ".join(f"{flaw.detail} (at '{flaw.pointer}')" for flaw in flaws)
        raise CallerError(
            "invalid-parameter", f"The body cannot open a session: {named}.", flaws=flaws
        ) from None
    limit = request.app[LIMITS].max_metadata_bytes
    if len(compact(wanted.metadata)) > limit:
        raise CallerError("too-large", f"'metadata' is larger than {limit} bytes.", members={"limit": limit})
    return wanted


def _require_call_alone(body: Mapping[str, object]) -> None:
    """Check that a body that names a call does not describe a session, which the call already has."""
    if "call_id" in body and body["call_id"] is None:
        detail = "'call_id' must be the ID of a call, such as rtc_…; omit it to make a new call."
        flaw = Flaw("must be a string", pointer="/call_id")
    elif "call_id" in body and body.get("session") is not None:
        detail = (
            "A call that you attach to already has a session: omit 'session' and send session.update instead."
        )
        flaw = Flaw("not together with 'call_id'", pointer="/session")
    else:
        return
    raise CallerError("invalid-parameter", detail, flaws=(flaw,))


def _require_few(value: object, pointer: str) -> None:
    if isinstance(value, Mapping) and len(value) > _MAX_MEMBERS:
        flaw = Flaw(f"has {len(value)} members", pointer=pointer)
        raise CallerError(
            "invalid-parameter", "The body cannot open a session: too many members.", flaws=(flaw,)
        )


async def open_wanted(
    request: web.Request,
    caller: Grant,
    wanted: SessionWanted,
    bearer: str | None,
    session_id: str | None = None,
    *,
    single_turn: bool = False,
) -> View:
    """Open the requested session. The hub owns this work, so a client that leaves cannot leave it half done."""
    await request.app[ACCESS].spend_opening(caller)
    handle = await request.app[SESSIONS].open(
        OpenRequest(
            principal=caller.principal,
            session=wanted.session,
            metadata=wanted.metadata,
            detach_grace_seconds=wanted.detach_grace_seconds,
            bearer=bearer,
            secret_allows=tuple(wanted.client_secret.allow),
            retry_interrupted=wanted.on_interrupted == "retry",
            call_id=wanted.call_id,
            session_id=session_id,
            single_turn=single_turn,
        )
    )
    return handle.view()


def _pointer(location: tuple[int | str, ...]) -> str:
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in location)


def _said(message: str) -> str:
    """Return pydantic's message in the terms of this API."""
    known = next((words for start, words in _MESSAGES if message.startswith(start)), None)
    message = message.replace("Input should be", "must be")
    return known or message[0].lower() + message[1:]


_MESSAGES: Final = (
    ("Extra inputs", "unknown member"),
    ("Input should be a valid dictionary", "must be an object"),
    ("Input should be a valid string", "must be a string"),
    ("Input should be a valid integer", "must be a whole number"),
    ("Input should be a valid list", "must be a list"),
    ("String should match pattern", "must be the ID of a call, such as rtc_…"),
)
