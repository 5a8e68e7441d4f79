"""`POST /v1/sessions/{id}/events`: client events for OpenAI (api.md, 2 Sending).

A body is read, checked and accepted as a whole. The events that are sent are slices of the received bytes.
"""

from collections.abc import Sequence
from typing import Final

from aiohttp import web

from gateway.downstream.auth.access import ACCESS, Grant, session_grant
from gateway.downstream.http.answers import json_answer
from gateway.downstream.http.app_keys import CLOCK, LIMITS, TELEMETRY
from gateway.downstream.http.body import FORM, JSON, NDJSON, TEXT, media_type, read_body
from gateway.downstream.http.steps import in_steps
from gateway.downstream.idempotency import REPLAYED, promise_of
from gateway.errors import CallerError, Flaw
from gateway.relay.events.envelope import ClientEvent, read_json, read_ndjson

_TAKEN: Final = (JSON, NDJSON, TEXT, FORM)


def add_routes(app: web.Application) -> None:
    """Add the route of this file."""
    app.router.add_post("/v1/sessions/{id}/events", post_events)


async def post_events(request: web.Request) -> web.Response:
    """Accept one event, an array or lines of events. Answer 202 with their numbers and the log's head before them."""
    app = request.app
    grant, handle = session_grant(request, "send")
    kind = media_type(request, _TAKEN)
    body = await read_body(request)
    await app[ACCESS].spend_bytes(grant, len(body))
    clock = app[CLOCK].monotonic
    read_at = clock()
    read = read_ndjson if kind == NDJSON else read_json
    max_events = app[LIMITS].max_batch_events
    steps = read(body, max_events=max_events, strict_members=grant.restricted)
    batch = await in_steps(request, steps)
    _require_allowed(grant, batch)

    promise = promise_of(request, grant, body)
    replayed = handle.promised(promise) is not None
    if not replayed:
        await app[ACCESS].spend_events(grant, len(batch))
    receipt = await handle.submit(batch, promise)
    if replayed:
        app[TELEMETRY].idempotent_replay()
    else:
        app[TELEMETRY].relayed_up(clock() - read_at)
    return json_answer(
        {
            "accepted": receipt.accepted,
            "first": receipt.first,
            "last": receipt.last,
            "head": str(receipt.head),
        },
        status=202,
        headers=REPLAYED if replayed else None,
    )


def _require_allowed(grant: Grant, batch: Sequence[ClientEvent]) -> None:
    if not all(map(grant.allows, {event.type for event in batch})):
        flaws = tuple(
            Flaw(f"'{event.type}' is not allowed", pointer=f"/{index}" if len(batch) > 1 else "")
            for index, event in enumerate(batch)
            if not grant.allows(event.type)
        )
        raise CallerError(
            "event-not-allowed", "The client secret does not allow every event of this batch.", flaws=flaws
        )
