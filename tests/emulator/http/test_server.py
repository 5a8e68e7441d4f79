"""The service over HTTP: what it accepts, and how it refuses."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.emulator.caller import Caller

Emulate = Callable[..., Any]
DATA_ONLY = (
    "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n"
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=ice-ufrag:abcd\r\n"
    "a=ice-pwd:0123456789012345678901\r\na=fingerprint:sha-256 AA\r\na=setup:actpass\r\na=sctp-port:5000\r\n"
)
NO_AUDIO = {
    "error": {
        "message": "Invalid SDP offer. Offer did not have an audio media section.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_offer",
    }
}


@pytest_asyncio.fixture
async def caller(emulate: Emulate) -> AsyncIterator[Caller]:
    """Return a client of an emulator that accepts one key."""
    one = Caller((await emulate(api_keys=("sk-test",))).base_url)
    yield one
    await one.close()


async def refused(response: aiohttp.ClientResponse) -> tuple[int, Any]:
    """Return status and error of a refusal."""
    async with response:
        return response.status, (await response.json())["error"]


async def test_offer_without_audio_is_refused_in_the_services_words(caller: Caller) -> None:
    """The error from the forum thread's first attempt, with exactly the same members."""
    async with await caller.post(DATA_ONLY) as response:
        assert response.status == 400
        assert await response.json() == NO_AUDIO


@pytest.mark.parametrize("key", [None, "Basic c2s6", "Bearer "])
async def test_request_without_a_key_is_refused(key: str | None, caller: Caller) -> None:
    """A request without a bearer key is 401."""
    caller.http.headers.pop("Authorization")
    if key is not None:
        caller.http.headers["Authorization"] = key
    status, error = await refused(await caller.post(DATA_ONLY))

    assert (status, error["type"]) == (401, "invalid_request_error")


@pytest.mark.parametrize("key", ["sk-wrong-and-long-enough", "ek_nobody_made_this"])
async def test_wrong_key_is_refused_without_repeating_it(key: str, caller: Caller) -> None:
    """A key that is not accepted is 401, and the answer does not contain it."""
    caller.http.headers["Authorization"] = f"Bearer {key}"
    status, error = await refused(await caller.post(DATA_ONLY))

    assert (status, error["code"]) == (401, "invalid_api_key")
    assert key not in json.dumps(error)


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/realtime?model=gpt-4o-realtime-preview", {"Content-Type": "application/sdp"}),
        ("POST", "/realtime/sessions", {}),
        ("POST", "/realtime/calls", {"OpenAI-Beta": "realtime=v1"}),
        ("POST", "/realtime/client_secrets", {"OpenAI-Beta": "realtime=v1"}),
    ],
)
async def test_beta_is_refused(method: str, path: str, headers: dict[str, str], caller: Caller) -> None:
    """The old URL, the old sessions and the old header were retired in May 2026."""
    response = await caller.http.request(method, caller.base_url + path, headers=headers)
    status, error = await refused(response)

    assert (status, error["code"]) == (400, "beta_api_shape_disabled")


@pytest.mark.parametrize("path", ["/realtime/calls", "/realtime/client_secrets"])
async def test_body_that_cannot_be_decoded_is_refused(path: str, caller: Caller) -> None:
    """A wrong `Content-Encoding` is a client error in the service's error envelope."""
    headers = {"Content-Type": "application/sdp", "Content-Encoding": "gzip"}
    status, error = await refused(
        await caller.http.post(caller.base_url + path, data=b"no gzip", headers=headers)
    )

    assert (status, error["code"]) == (400, "invalid_body")


@pytest.mark.parametrize("typed", [True, False])
async def test_multipart_parts_need_no_types(typed: bool, caller: Caller) -> None:
    """Parts with and without content types open a call, because browsers' FormData writes none."""
    offer = await caller.offer()
    form = aiohttp.MultipartWriter("form-data")
    for name, text, kind in (
        ("sdp", offer, "application/sdp"),
        ("session", '{"type":"realtime"}', "application/json"),
    ):
        part = form.append(text.encode())
        part.set_content_disposition("form-data", name=name)
        part.headers.pop("Content-Type", None)
        if typed:
            part.headers["Content-Type"] = kind
    async with caller.http.post(f"{caller.base_url}/realtime/calls", data=form) as response:
        assert response.status == 201
        assert response.headers["Location"].startswith("/v1/realtime/calls/rtc_")


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ("{}", "missing_required_parameter", "session.type"),
        ('{"type":"realtime","modalities":["text"]}', "unknown_parameter", "session.modalities"),
        ('{"type":"transcription"}', "invalid_value", "session.type"),
        (
            '{"type":"realtime","output_modalities":["text","audio"]}',
            "array_above_max_length",
            "session.output_modalities",
        ),
        ("[]", "invalid_json", "session"),
        ("nonsense", "invalid_json", "session"),
    ],
)
async def test_wrong_session_part_is_refused(session: str, code: str, param: str, caller: Caller) -> None:
    """A session object with an unknown, missing or wrong member does not open a call."""
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("sdp", await caller.offer())
    form.add_field("session", session)
    status, error = await refused(await caller.http.post(f"{caller.base_url}/realtime/calls", data=form))

    assert (status, error["code"], error["param"]) == (400, code, param)


async def test_multipart_without_an_offer_is_refused(caller: Caller) -> None:
    """The `sdp` part is required."""
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("session", "{}")
    status, error = await refused(await caller.http.post(f"{caller.base_url}/realtime/calls", data=form))

    assert (status, error["param"]) == (400, "sdp")


@pytest.mark.parametrize(
    ("kind", "body"),
    [("multipart/form-data; boundary=x", b"--y\r\n"), ("multipart/form-data", b""), ("text/plain", b"v=0")],
)
async def test_body_of_another_form_is_refused(kind: str, body: bytes, caller: Caller) -> None:
    """A broken multipart body and any other content type are 400 in the service's error envelope."""
    headers = {"Content-Type": kind}
    status, error = await refused(
        await caller.http.post(f"{caller.base_url}/realtime/calls", data=body, headers=headers)
    )

    assert (status, error["type"]) == (400, "invalid_request_error")


async def test_hangup_of_an_unknown_call_is_404(caller: Caller) -> None:
    """The error is the recorded one, member for member."""
    url = f"{caller.base_url}/realtime/calls/rtc_u1_nobody/hangup"
    status, error = await refused(await caller.http.post(url))

    assert status == 404
    assert error == {
        "message": "No session found for the provided call_id",
        "type": "invalid_request_error",
        "code": "call_id_not_found",
        "param": "",
    }


async def test_unknown_path_is_404_in_the_envelope(caller: Caller) -> None:
    """An unknown path is 404 in the error envelope, which names the path."""
    status, error = await refused(await caller.http.get(f"{caller.base_url}/models"))

    assert (status, error["message"]) == (404, "Invalid URL (GET /v1/models)")


async def test_preflight_allows_what_browsers_ask_for(caller: Caller) -> None:
    """A page of any origin may post with its own headers."""
    headers = {"Origin": "http://a.example", "Access-Control-Request-Headers": "authorization,content-type"}
    async with caller.http.options(f"{caller.base_url}/realtime/calls", headers=headers) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
        assert "POST" in response.headers["Access-Control-Allow-Methods"]


async def test_client_secret_opens_calls_with_its_session(caller: Caller) -> None:
    """A raw offer with an ephemeral key gets the session the key was created with; `?model=` is ignored."""
    request = {"session": {"type": "realtime", "model": "gpt-realtime", "output_modalities": ["text"]}}
    async with caller.http.post(f"{caller.base_url}/realtime/client_secrets", json=request) as response:
        secret = await response.json()
    caller.http.headers["Authorization"] = f"Bearer {secret['value']}"
    response = await caller.post(await caller.offer(), None, "?model=gpt-4o")
    caller.location = response.headers["Location"]
    await caller.take(await response.text())
    created = await caller.until("session.created")

    assert created["session"]["model"] == "gpt-realtime"
    assert created["session"]["output_modalities"] == ["text"]
    assert await caller.hang_up() == 200


@pytest.mark.parametrize(
    ("seconds", "status"), [(9, 400), (10, 200), (7200, 200), (7201, 400), ("60", 400), (60.5, 400)]
)
async def test_client_secret_lives_between_ten_seconds_and_two_hours(
    seconds: Any, status: int, caller: Caller
) -> None:
    """`expires_after.seconds` is a whole number from 10 to 7200."""
    request = {"expires_after": {"anchor": "created_at", "seconds": seconds}}
    async with caller.http.post(f"{caller.base_url}/realtime/client_secrets", json=request) as response:
        assert response.status == status


async def test_client_secret_cannot_make_another(caller: Caller) -> None:
    """An ephemeral key can only open calls."""
    url = f"{caller.base_url}/realtime/client_secrets"
    async with caller.http.post(url) as response:
        caller.http.headers["Authorization"] = f"Bearer {(await response.json())['value']}"
    status, _ = await refused(await caller.http.post(url))

    assert status == 401


async def test_expired_client_secret_is_refused(emulate: Emulate) -> None:
    """A secret that has expired opens nothing."""
    emulator = await emulate()
    secret = emulator.service.secrets.create({"expires_after": {"seconds": 10}}, 1_000_000, "p")
    caller = Caller(emulator.base_url, secret.value)
    try:
        status, error = await refused(await caller.post(DATA_ONLY))
    finally:
        await caller.close()

    assert (status, error["message"]) == (401, "Ephemeral token expired")


@pytest.mark.parametrize("dcid", ["x", "-1", "65535", "999999999999"])
async def test_impossible_channel_id_is_refused(dcid: str, caller: Caller) -> None:
    """`?dcid=` is a number up to 65534."""
    status, error = await refused(await caller.post(await caller.offer(), None, f"?dcid={dcid}"))

    assert (status, error["param"]) == (400, "dcid")


async def test_body_too_large_is_refused(caller: Caller) -> None:
    """A part above two megabytes is refused."""
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("sdp", "x" * (3 * 1024 * 1024))
    status, _ = await refused(await caller.http.post(f"{caller.base_url}/realtime/calls", data=form))

    assert status == 413
