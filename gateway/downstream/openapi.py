"""`GET /openapi.json`: the description of the API (OpenAPI 3.1).

Schemas of bodies come from the models that validate them, and errors from the table in `gateway.errors`, so both are always
current. The rest is written by hand; a test compares the paths with the router's.
"""

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from gateway import __version__
from gateway.downstream.http.answers import compact
from gateway.downstream.reading.parameters import MAX_PAGE_BYTES
from gateway.downstream.sessions import DEFAULT_LISTED, MAX_LISTED, SessionWanted
from gateway.downstream.turns.body import MAX_WAIT_SECONDS
from gateway.errors import KINDS
from gateway.relay.usage import Usage

Schema = dict[str, Any]  # JSON Schema, with values of any type

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_TIME: Final[Schema] = {"type": ["integer", "null"], "description": "Unix seconds"}
_OBJECT: Final[Schema] = {"type": "object"}
_EVENT_ID: Final[Schema] = {
    "type": "string",
    "pattern": "^[0-9a-z-]+$",
    "description": "Opaque; a position in the session's log.",
}

_SESSION: Final[Schema] = {
    "id": {"type": "string", "pattern": "^gws_"},
    "object": {"const": "gateway.session"},
    "state": {"enum": ["connecting", "connected", "recovering", "closed"]},
    "created_at": _COUNT,
    "expires_at": _TIME,
    "call_expires_at": _TIME,
    "model": {"type": ["string", "null"]},
    "call_id": {"type": ["string", "null"]},
    "attached": {"type": "boolean"},
    "metadata": _OBJECT,
    "head": _EVENT_ID,
    "oldest": _EVENT_ID,
    "receivers": _COUNT,
    "close_reason": {"type": ["string", "null"]},
    "usage": {
        "type": "object",
        "properties": {
            name: {"type": ["number", "null"] if name == "cost_usd" else "integer"}
            for name in Usage().shown()
        },
        "required": list(Usage().shown()),
        "additionalProperties": False,
        "description": "Tokens and dollars of all responses so far. The cost is null if any token had no price.",
    },
    "events_url": _TEXT,
    "limits": {"type": "object", "additionalProperties": {"type": "number"}},
}

_CREDENTIALS: Final[Schema] = {
    "client_secret": {
        "type": "object",
        "required": ["value", "expires_at"],
        "properties": {"value": {"type": "string", "pattern": "^gwk_"}, "expires_at": _TIME},
    },
    "stream_url": _TEXT,
}


def add_routes(app: web.Application) -> None:
    """Add the route of this file. The document is built once."""
    body = compact(document())

    async def serve(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    app.router.add_get("/openapi.json", serve)


def document() -> Schema:
    """Return the whole description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Realtime gateway",
            "version": __version__,
            "description": "OpenAI's Realtime API over HTTP POST and Server-Sent Events.",
        },
        "security": [{"bearer": []}, {"ticket": []}, {}],
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "parameters": _parameters(),
            "responses": {"Problem": _answer("An error (RFC 9457)", "Problem", "application/problem+json")},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, a session's client secret (gwk_…), or a ticket (gwt_…) for reading.",
                },
                "ticket": {
                    "type": "apiKey",
                    "in": "query",
                    "name": "ticket",
                    "description": "For reading with EventSource, which cannot send headers.",
                },
            },
        },
    }


def _paths() -> Schema:
    session = {"parameters": [_parameter("SessionId")]}
    key = [_parameter("IdempotencyKey")]
    read = {
        "200": {
            "description": "The session's log from the cursor on. A stream stays open for new events.",
            "content": {
                "text/event-stream": {},
                "application/x-ndjson": {"schema": _TEXT},
                "application/json": {"schema": _ref("Events")},
            },
        },
        "204": {"description": "The session is closed and everything was read. Stop reconnecting (SSE)."},
    }
    turn = {
        "200": {
            "description": "The answer.",
            "content": {
                "text/plain": {"schema": _TEXT},
                "text/event-stream": {},
                "application/x-ndjson": {"schema": _TEXT},
                "application/json": {"schema": _ref("Turn")},
            },
        },
        "202": {"description": "Not done within `wait`. Repeat with the same Idempotency-Key."},
    }
    turn_body = _body({"application/json": _ref("TurnWanted"), "text/plain": _TEXT}, required=True)
    events_body = _body(
        {
            "application/json": {
                "oneOf": [_ref("ClientEvent"), {"type": "array", "items": _ref("ClientEvent")}]
            },
            "application/x-ndjson": _TEXT,
        },
        required=True,
    )
    reading = [_parameter(name) for name in _READING] + [_parameter("LastEventId"), _parameter("Format")]
    turning = [*key, _parameter("LastEventId"), _parameter("Format"), _parameter("TurnWait")]
    return {
        "/v1/sessions": {
            "post": _operation(
                "Open a session; the response comes when its data channel is open",
                {"201": _answer("The session, with its credentials", "CreatedSession")},
                parameters=key,
                body=_body({"application/json": _ref("SessionWanted")}),
            ),
            "get": _operation(
                "List the caller's sessions",
                {"200": _answer("Newest first", "SessionList")},
                parameters=[_parameter("ListLimit"), _parameter("ListAfter")],
            ),
        },
        "/v1/sessions/{id}": session
        | {
            "get": _operation("Get a session", {"200": _answer("The session", "Session")}),
            "delete": _operation(
                "Close a session",
                {"204": {"description": "Closed; may be repeated."}},
                parameters=[_parameter("HangUp")],
            ),
        },
        "/v1/sessions/{id}/close": session
        | {
            "post": _operation(
                "Close a session by POST, for navigator.sendBeacon",
                {"204": {"description": "Closed; may be repeated."}},
                parameters=[_parameter("HangUp")],
                body=_body({"text/plain": {"type": "string", "description": "The client secret."}}),
            )
        },
        "/v1/sessions/{id}/tickets": session
        | {
            "post": _operation(
                "Create a read-only credential for a URL", {"201": _answer("The ticket", "Ticket")}
            )
        },
        "/v1/sessions/{id}/events": session
        | {
            "post": _operation(
                "Send client events",
                {"202": _answer("Accepted", "Receipt")},
                parameters=key,
                body=events_body,
            ),
            "get": _operation("Read the log as SSE, NDJSON or by long-poll", read, parameters=reading),
        },
        "/v1/sessions/{id}/events/stream": session
        | {
            "post": _operation(
                "The same read, for clients and proxies that buffer GET",
                read,
                parameters=reading,
                body=_body({"application/json": _OBJECT}),
            )
        },
        "/v1/sessions/{id}/turns": session
        | {"post": _operation("One text turn in one request", turn, parameters=turning, body=turn_body)},
        "/v1/turns": {
            "post": _operation(
                "One text turn in a new session that is closed afterwards",
                turn,
                parameters=turning,
                body=turn_body,
            )
        },
    }


_READING: Final[Mapping[str, tuple[Schema, str]]] = {
    "after": (_TEXT, "Cursor: an event id, `earliest` or `now`. `Last-Event-ID` wins over it."),
    "lastEventId": (
        _TEXT,
        "The cursor of a reconnecting polyfill, also as lastEventID, last_event_id and Last-Event-ID. Wins over `after`.",
    ),
    "types": (
        _TEXT,
        "Only these types, separated by commas; each may end with `*`. `gateway.*` always passes.",
    ),
    "exclude": (_TEXT, "All types except these."),
    "heartbeat": ({"type": "number", "minimum": 5, "maximum": 60}, "Seconds of silence before a heartbeat."),
    "heartbeat_as": ({"enum": ["comment", "event"]}, "The form of heartbeats in SSE."),
    "pad": (
        {"type": "integer", "minimum": 0, "maximum": 4096},
        "Bytes of padding, for proxies that buffer small writes.",
    ),
    "max_age": (
        {"type": "number", "minimum": 1, "maximum": 3600},
        "Seconds until the connection is rotated.",
    ),
    "on_gap": ({"enum": ["continue", "fail"]}, "Whether a gap is reported in the stream, or as 410."),
    "errors": (
        {"enum": ["stream", "status"]},
        "With `status`, a read with a ticket also gets error statuses.",
    ),
    "wait": ({"type": "number", "minimum": 0, "maximum": 55}, "Seconds to wait for a response."),
    "linger": (
        {"type": "integer", "minimum": 0, "maximum": 2000},
        "Milliseconds for which a long-poll collects events after the first one.",
    ),
    "limit": ({"type": "integer", "minimum": 1, "maximum": 1000}, "Maximum number of events in a long-poll."),
    "max_bytes": (
        {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_BYTES},
        "Maximum bytes of a long-poll; at least one event is returned.",
    ),
}


def _parameters() -> Schema:
    named: Schema = {
        "SessionId": {"name": "id", "in": "path", "required": True, "schema": _TEXT},
        "IdempotencyKey": {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "A repeat returns the stored response.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        },
        "LastEventId": {"name": "Last-Event-ID", "in": "header", "schema": _TEXT},
        "Format": {"name": "format", "in": "query", "description": "Overrides Accept.", "schema": _TEXT},
        "TurnWait": {
            "name": "wait",
            "in": "query",
            "description": "Seconds to wait for a JSON answer; then 202. Needs an Idempotency-Key.",
            "schema": {"type": "number", "minimum": 1, "maximum": MAX_WAIT_SECONDS},
        },
        "HangUp": {
            "name": "hang_up",
            "in": "query",
            "description": "Also end the call to which the session is attached.",
            "schema": {"type": "boolean", "default": False},
        },
        "ListLimit": {
            "name": "limit",
            "in": "query",
            "description": "Sessions per page.",
            "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": DEFAULT_LISTED},
        },
        "ListAfter": {
            "name": "after",
            "in": "query",
            "description": "ID of the last session of the previous page.",
            "schema": _TEXT,
        },
    }
    queries = {
        name: {"name": name, "in": "query", "description": said, "schema": schema}
        for name, (schema, said) in _READING.items()
    }
    return named | queries


def _schemas() -> Schema:
    wanted = SessionWanted.model_json_schema(ref_template="#/components/schemas/{model}")
    parts: Schema = wanted.pop("$defs", {})
    return parts | {
        "SessionWanted": wanted,
        "Session": _closed(_SESSION),
        "CreatedSession": _closed(_SESSION | _CREDENTIALS),
        "SessionList": _closed(
            {
                "object": {"const": "list"},
                "data": {"type": "array", "items": _ref("Session")},
                "has_more": {"type": "boolean"},
            }
        ),
        "Ticket": _closed(
            {"ticket": {"type": "string", "pattern": "^gwt_"}, "url": _TEXT, "expires_at": _TIME}
        ),
        "ClientEvent": {
            "type": "object",
            "required": ["type"],
            "properties": {"type": _TEXT, "event_id": {"type": ["string", "null"]}},
            "description": "An OpenAI Realtime client event; sent unchanged.",
        },
        "Receipt": _closed({"accepted": _COUNT, "first": _COUNT, "last": _COUNT, "head": _EVENT_ID}),
        "Events": _closed(
            {
                "events": {"type": "array", "items": _closed({"id": _EVENT_ID, "event": _OBJECT})},
                "cursor": _EVENT_ID,
            }
        ),
        "TurnWanted": {
            "type": "object",
            "required": ["input"],
            "properties": {
                "input": {"oneOf": [_TEXT, {"type": "array", "items": _OBJECT}]},
                "session": _OBJECT,
            },
            "description": "Other members go into response.create.",
        },
        "Turn": {
            "type": "object",
            "properties": {
                "id": {"type": ["string", "null"]},
                "status": _TEXT,
                "output_text": {"type": ["string", "null"]},
                "output": {"type": "array", "items": _OBJECT},
                "usage": {"type": ["object", "null"]},
                "error": {"type": ["object", "null"]},
                "incomplete_details": {"type": "object"},
                "session_id": _TEXT,
                "head": _EVENT_ID,
            },
        },
        "Problem": _problem(),
    }


def _problem() -> Schema:
    members: Schema = {
        "type": {"type": "string", "format": "uri"},
        "title": _TEXT,
        "status": {"enum": sorted({kind.status for kind in KINDS.values()})},
        "detail": _TEXT,
        "instance": {"type": "string", "format": "uri-reference"},
        "code": {"enum": list(KINDS)},
        "retryable": {"type": "boolean"},
    }
    flaw = {"detail": _TEXT, "pointer": _TEXT, "line": _COUNT}
    errors = {"type": "array", "items": {"type": "object", "required": ["detail"], "properties": flaw}}
    schema = _closed(members)
    schema["properties"] = members | {"errors": errors, "retry_after": _COUNT}
    return schema


def _closed(members: Schema) -> Schema:
    """Return the schema of an object that always has all its members."""
    return {"type": "object", "required": list(members), "properties": members}


def _operation(
    summary: str, answers: Schema, *, parameters: list[Schema] | None = None, body: Schema | None = None
) -> Schema:
    operation: Schema = {
        "summary": summary,
        "responses": answers | {"default": {"$ref": "#/components/responses/Problem"}},
    }
    if parameters:
        operation["parameters"] = parameters
    if body:
        operation["requestBody"] = body
    return operation


def _body(content: Schema, *, required: bool = False) -> Schema:
    return {"required": required, "content": {kind: {"schema": schema} for kind, schema in content.items()}}


def _answer(description: str, schema: str, media_type: str = "application/json") -> Schema:
    return {"description": description, "content": {media_type: {"schema": _ref(schema)}}}


def _ref(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _parameter(name: str) -> Schema:
    return {"$ref": f"#/components/parameters/{name}"}
