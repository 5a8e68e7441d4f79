"""Section 1.1: the session as a resource, and the routes beside it."""

import asyncio
import re
from typing import Any

import pytest

from tests.conformance.wire import Json, Session, Wire

MEMBERS = {
    "id", "object", "state", "created_at", "expires_at", "call_expires_at", "model", "call_id", "metadata", "head",
    "oldest", "receivers", "close_reason", "events_url", "limits", "usage", "attached",
}  # fmt: skip
USAGE = (
    "input_text", "input_audio", "input_image", "cached_input", "output_text", "output_audio", "cost_usd",
)  # fmt: skip
TOLD_ONCE = {"client_secret", "stream_url"}
LIMITS = {
    "max_event_bytes", "max_body_bytes", "max_batch_events", "log_max_events", "log_max_bytes",
    "detach_grace_seconds", "heartbeat_seconds", "stream_max_age_seconds",
}  # fmt: skip


async def test_a_create_is_201_with_location_and_link(session: Session) -> None:
    """The answer has the URLs of the session and of its events."""
    headers = session.answer.headers

    assert session.answer.status == 201
    assert headers["Location"] == session.path
    assert headers["Link"] == f'<{session.path}/events>; rel="events"'


async def test_a_create_is_answered_when_the_channel_is_open(session: Session) -> None:
    """When the create is answered, the session is connected, and an event that is sent next arrives."""
    assert session.created["state"] == "connected"
    assert (await session.send({"type": "input_audio_buffer.clear"}))["accepted"] == 1


async def test_the_create_answer_has_the_members_of_the_contract(session: Session) -> None:
    """The session object has all documented members; only the create's answer also has the credentials."""
    created = session.created

    assert created.keys() >= MEMBERS | TOLD_ONCE
    assert created["limits"].keys() >= LIMITS
    assert created["object"] == "gateway.session"
    assert re.fullmatch(r"gws_[A-Za-z0-9_-]+", created["id"])
    assert re.fullmatch(r"[0-9a-z]+-[0-9]+", created["head"])
    assert created["client_secret"]["value"].startswith("gwk_")
    assert created["stream_url"].startswith(f"{session.path}/events?ticket=gwt_")
    assert created["events_url"] == session.events
    assert created["usage"] == dict.fromkeys(USAGE, 0)
    assert created["close_reason"] is None
    assert created["metadata"] == {}
    assert created["receivers"] == 0


async def test_credentials_are_in_the_create_answer_only(session: Session) -> None:
    """The session object of a GET has neither the secret nor the ticket."""
    found = await session.look()

    assert found.keys() >= MEMBERS
    assert not found.keys() & TOLD_ONCE


async def test_a_call_ends_later_than_it_began(session: Session) -> None:
    """`call_expires_at` is a time in the future of `created_at`, in seconds since the epoch."""
    assert session.created["call_expires_at"] > session.created["created_at"] > 1_700_000_000


async def test_a_secret_does_not_expire_before_its_session(session: Session) -> None:
    """If a session does not expire, its secret does not expire either."""
    assert session.created["client_secret"]["expires_at"] == session.created["expires_at"]


@pytest.mark.parametrize("body", [None, "", "{}"])
async def test_an_empty_body_works(wire: Wire, body: str | None) -> None:
    """A create with an empty body works."""
    answer = await wire.call("POST", "/v1/sessions", body)

    assert answer.status == 201
    await wire.call("DELETE", answer.headers["Location"])


async def test_metadata_is_kept(wire: Wire) -> None:
    """The metadata of a create is returned unchanged."""
    metadata = {"user": "42", "deep": {"list": [1, None, "ü"]}}
    async with wire.session(metadata=metadata) as session:
        assert (await session.look())["metadata"] == metadata


async def test_the_session_object_is_merged_over_the_template(wire: Wire) -> None:
    """A caller's member replaces the template's, and the template's other members stay."""
    async with wire.session(session={"instructions": "Answer in one word."}) as session:
        created = (await session.until("session.created"))[-1]["event"]["session"]

    assert created["instructions"] == "Answer in one word."
    assert created["output_modalities"] == ["text"]
    assert created["model"] == session.created["model"]


async def test_detach_grace_is_the_callers_choice(wire: Wire) -> None:
    """A create may set how long its session outlives its receivers; the limits show the value."""
    async with wire.session(detach_grace_seconds=77) as session:
        assert session.created["limits"]["detach_grace_seconds"] == 77


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"detach_grace_seconds": 9}, "/detach_grace_seconds"),
        ({"detach_grace_seconds": 3601}, "/detach_grace_seconds"),
        ({"detach_grace_seconds": "60"}, "/detach_grace_seconds"),
        ({"session": []}, "/session"),
        ({"metadata": "none"}, "/metadata"),
        ({"call_id": "rtc 1"}, "/call_id"),
    ],
    ids=str,
)
async def test_a_wrong_member_of_a_create_is_named(wire: Wire, body: Json, pointer: str) -> None:
    """A create with a member out of bounds is 400, pointing at it."""
    answer = await wire.call("POST", "/v1/sessions", body)

    assert pointer in [flaw["pointer"] for flaw in answer.problem(400, "invalid-parameter")["errors"]]


@pytest.mark.parametrize("body", ["[]", '"text"', "{", "{'a': 1}"])
async def test_a_create_whose_body_is_no_json_object_is_400(wire: Wire, body: str) -> None:
    """A create takes a JSON object or nothing."""
    assert (await wire.call("POST", "/v1/sessions", body)).status == 400


async def test_a_caller_lists_its_own_sessions_newest_first(wire: Wire) -> None:
    """The list holds the sessions of this caller, the newest first."""
    if wire.key is None:
        pytest.skip("anonymous callers have no list")
    async with wire.session() as older, wire.session() as newer:
        listed = (await wire.call("GET", "/v1/sessions")).json

    ids = [session["id"] for session in listed["data"]]
    assert listed["object"] == "list"
    assert ids.index(newer.id) < ids.index(older.id)
    assert not any(session.keys() & TOLD_ONCE for session in listed["data"])


async def test_a_deleted_session_is_closed_by_its_client(session: Session) -> None:
    """DELETE is answered with 204, and the closed session has the close reason `client`."""
    answer = await session.wire.call("DELETE", session.path)
    found = await session.look()

    assert (answer.status, answer.body) == (204, b"")
    assert (found["state"], found["close_reason"]) == ("closed", "client")


async def test_a_delete_may_be_repeated(session: Session) -> None:
    """A repeated DELETE gets the same answer."""
    first, second = [await session.wire.call("DELETE", session.path) for _ in range(2)]

    assert (first.status, second.status) == (204, 204)


async def test_close_is_the_same_as_delete(session: Session) -> None:
    """A client that can only send POST can close a session, too."""
    answer = await session.wire.call("POST", f"{session.path}/close")

    assert answer.status == 204
    assert (await session.look())["state"] == "closed"


async def test_close_takes_the_client_secret_as_its_body(session: Session) -> None:
    """`navigator.sendBeacon` cannot set headers, so the secret is accepted as a text body."""
    page = session.wire.with_key(None)
    headers = {"Content-Type": "text/plain;charset=UTF-8"}
    answer = await page.call("POST", f"{session.path}/close", session.secret, headers=headers)

    assert answer.status == 204
    assert (await session.look())["state"] == "closed"


async def test_a_ticket_is_made_for_a_session(session: Session) -> None:
    """A ticket comes with the URL that it opens."""
    answer = await session.wire.call("POST", f"{session.path}/tickets")

    assert answer.status == 201
    assert answer.json.keys() >= {"ticket", "url", "expires_at"}
    assert answer.json["ticket"].startswith("gwt_")
    assert answer.json["url"] == f"{session.events}?ticket={answer.json['ticket']}"
    assert answer.json["expires_at"] == session.created["expires_at"]


async def test_receivers_are_counted(session: Session) -> None:
    """The session object says how many read it at the moment."""
    async with session.stream() as first, session.stream() as second:
        await first.next()
        await second.next()

        assert (await session.look())["receivers"] == 2


async def test_a_create_is_repeated_without_a_second_session(wire: Wire) -> None:
    """The same create with the same Idempotency-Key gives the stored answer, secret included."""
    body: Any = {"metadata": {"n": 1}}
    headers = {"Idempotency-Key": "create-once"}
    async with wire.session(headers, **body) as session:
        again = await wire.call("POST", "/v1/sessions", body, headers=headers)
        changed = await wire.call("POST", "/v1/sessions", {"metadata": {"n": 2}}, headers=headers)

    assert (again.status, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert again.json == session.created
    assert "Idempotency-Replayed" not in session.answer.headers
    changed.problem(422, "idempotency-key-reused")


async def test_a_create_repeated_meanwhile_is_409_or_its_answer(wire: Wire) -> None:
    """Two simultaneous creates with one key open one session."""
    headers = {"Idempotency-Key": "create-twice"}
    answers = await asyncio.gather(*(wire.call("POST", "/v1/sessions", headers=headers) for _ in range(2)))
    opened = [answer for answer in answers if answer.status == 201]
    for answer in answers:
        if answer.status != 201:
            answer.problem(409, "idempotency-in-progress")
    await wire.call("DELETE", opened[0].headers["Location"])

    assert len({answer.json["id"] for answer in opened}) == 1


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/openapi.json", "application/json"),
        ("/", "text/html"),
        ("/relay.js", "text/javascript"),
    ],
)
async def test_the_api_describes_itself(wire: Wire, path: str, media_type: str) -> None:
    """The description, the console page and the browser client need no credential."""
    answer = await wire.with_key(None).call("GET", path)

    assert answer.status == 200
    assert answer.media_type == media_type
    assert answer.body


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_the_probes_answer_clients_too(wire: Wire, path: str) -> None:
    """`/livez` and `/readyz` are also served on the client's listener."""
    assert (await wire.with_key(None).call("GET", path)).status == 200
