"""`GET /openapi.json`: the description of the API (OpenAPI 3.1).

Schemas of bodies come from the models that validate them, and errors from the table in `gateway.errors`, so both are always
current. The rest is written by hand; a test compares the paths with the router's.
"""

from functools import cache
from typing import Final

from aiohttp import web

from gateway import __version__
from gateway.downstream.http.answers import compact
from gateway.downstream.openapi_parameters import READING, TEXT, Schema, parameters
from gateway.downstream.opening import SessionWanted
from gateway.errors import KINDS
from gateway.relay.usage import Usage

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
    "events_url": TEXT,
    "limits": {"type": "object", "additionalProperties": {"type": "number"}},
}

_CREDENTIALS: Final[Schema] = {
    "client_secret": {
        "type": "object",
        "required": ["value", "expires_at"],
        "properties": {"value": {"type": "string", "pattern": "^gwk_"}, "expires_at": _TIME},
    },
    "stream_url": TEXT,
}


def add_routes(app: web.Application) -> None:
    """Add the route of this file."""
    body = _encoded()

    async def serve(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    app.router.add_get("/openapi.json", serve)


@cache
def _encoded() -> bytes:
    """Return the document as JSON. It depends on nothing, so a process builds it once."""
    return compact(document())


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
            "parameters": parameters(),
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
                "application/x-ndjson": {"schema": TEXT},
                "application/json": {"schema": _ref("Events")},
            },
        },
        "204": {"description": "The session is closed and everything was read. Stop reconnecting (SSE)."},
    }
    turn = {
        "200": {
            "description": "The answer.",
            "content": {
                "text/plain": {"schema": TEXT},
                "text/event-stream": {},
                "application/x-ndjson": {"schema": TEXT},
                "application/json": {"schema": _ref("Turn")},
            },
        },
        "202": {"description": "Not done within `wait`. Repeat with the same Idempotency-Key."},
    }
    turn_body = _body({"application/json": _ref("TurnWanted"), "text/plain": TEXT}, required=True)
    events_body = _body(
        {
            "application/json": {
                "oneOf": [_ref("ClientEvent"), {"type": "array", "items": _ref("ClientEvent")}]
            },
            "application/x-ndjson": TEXT,
        },
        required=True,
    )
    reading = [_parameter(name) for name in READING] + [_parameter("LastEventId"), _parameter("Format")]
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
            {"ticket": {"type": "string", "pattern": "^gwt_"}, "url": TEXT, "expires_at": _TIME}
        ),
        "ClientEvent": {
            "type": "object",
            "required": ["type"],
            "properties": {"type": TEXT, "event_id": {"type": ["string", "null"]}},
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
                "input": {"oneOf": [TEXT, {"type": "array", "items": _OBJECT}]},
                "session": _OBJECT,
            },
            "description": "Other members go into response.create.",
        },
        "Turn": {
            "type": "object",
            "properties": {
                "id": {"type": ["string", "null"]},
                "status": TEXT,
                "output_text": {"type": ["string", "null"]},
                "output": {"type": "array", "items": _OBJECT},
                "usage": {"type": ["object", "null"]},
                "error": {"type": ["object", "null"]},
                "incomplete_details": {"type": "object"},
                "session_id": TEXT,
                "head": _EVENT_ID,
            },
        },
        "Problem": _problem(),
    }


def _problem() -> Schema:
    members: Schema = {
        "type": {"type": "string", "format": "uri"},
        "title": TEXT,
        "status": {"enum": sorted({kind.status for kind in KINDS.values()})},
        "detail": TEXT,
        "instance": {"type": "string", "format": "uri-reference"},
        "code": {"enum": list(KINDS)},
        "retryable": {"type": "boolean"},
    }
    flaw = {"detail": TEXT, "pointer": TEXT, "line": _COUNT}
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
