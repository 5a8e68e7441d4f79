"""Each fault of the list, seen by a client."""

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import pytest

from gateway.emulator import faults as faults_of
from gateway.emulator.faults import NONE, Faults, changed
from tests.emulator.caller import Caller
from tests.emulator.talk import Talk

Emulate = Callable[..., Any]
Call = Callable[..., Any]
MakeTalk = Callable[..., Talk]


def test_every_fault_is_in_the_table() -> None:
    """The table at the head of `faults` names each field, and nothing else."""
    table = {line.split("`")[1] for line in (faults_of.__doc__ or "").splitlines() if line.startswith("| `")}

    assert table == {f.name for f in dataclasses.fields(Faults)}


def test_flag_text_and_json_mean_the_same() -> None:
    """`name=value` in a flag means the same as the JSON of the control endpoint."""
    text = {
        "signal_status": "429",
        "deaf": "true",
        "signal_delay_seconds": "0.5",
        "fail": "vanish",
        "signal_times": "null",
        "response_error": "server_error",
    }
    json = {
        "signal_status": 429,
        "deaf": True,
        "signal_delay_seconds": 0.5,
        "fail": "vanish",
        "signal_times": None,
        "response_error": "server_error",
    }
    expected = Faults(429, None, 0.5, None, deaf=True, fail="vanish", response_error="server_error")

    assert changed(NONE, text) == changed(NONE, json) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nonsense", 1),
        ("fail", "x"),
        ("deaf", 3),
        ("burst", 0),
        ("burst", "x"),
        ("burst", None),
        ("signal_status", 99),
        ("response_error", 5),
    ],
)
def test_wrong_fault_is_refused_by_name(name: str, value: Any) -> None:
    """An unknown name or value is refused and named; for a known name only the value is reported."""
    with pytest.raises(ValueError, match=name) as refused:
        changed(NONE, {name: value})

    assert ("no fault is named" in str(refused.value)) is (name == "nonsense")


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "invalid_api_key"), (403, "insufficient_permissions"), (404, "model_not_found"),
     (429, "rate_limit_exceeded"), (500, None), (503, None)],
)  # fmt: skip
async def test_signalling_is_refused(status: int, code: str | None, emulate: Emulate) -> None:
    """`signal_status` refuses calls with the service's body, as often as `signal_times` says."""
    faults = Faults(signal_status=status, signal_retry_after=2, signal_times=1)
    caller = Caller((await emulate(faults=faults)).base_url)
    try:
        offer = await caller.offer()
        async with await caller.post(offer) as response:
            assert response.status == status
            assert response.headers["Retry-After"] == "2"
            assert (await response.json())["error"]["code"] == code
        async with await caller.post(offer) as response:
            assert response.status == 201
    finally:
        await caller.close()


async def test_signalling_is_delayed(emulate: Emulate) -> None:
    """`signal_delay_seconds` delays the answer."""
    caller = Caller((await emulate(faults=Faults(signal_delay_seconds=0.3))).base_url)
    try:
        offer, before = await caller.offer(), time.monotonic()
        async with await caller.post(offer) as response:
            assert response.status == 201
        assert time.monotonic() - before >= 0.3
    finally:
        await caller.close()


async def test_delayed_answer_does_not_hold_up_the_end(emulate: Emulate) -> None:
    """When an emulator is stopped, delayed requests get an error, and no call is opened."""
    emulator = await emulate(faults=Faults(signal_delay_seconds=30))
    caller = Caller(emulator.base_url)
    try:
        asking = asyncio.create_task(caller.post(await caller.offer()))
        while not emulator.service._signals:
            await asyncio.sleep(0.01)
        before = time.monotonic()
        await emulator.close()
        async with await asking as response:
            assert response.status == 503
        assert time.monotonic() - before < 20
        assert emulator.service.opened == 0
    finally:
        await caller.close()


@pytest.mark.parametrize("answer", ["broken", "no_audio", "empty"])
async def test_answer_is_spoilt(answer: Any, emulate: Emulate) -> None:
    """With `answer` the 201 has an answer that no client can apply."""
    caller = Caller((await emulate(faults=Faults(answer=answer))).base_url)
    try:
        async with await caller.post(await caller.offer()) as response:
            assert response.status == 201
            spoilt = await response.text()
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever aiortc says of it
            await caller.take(spoilt)
    finally:
        await caller.close()


@pytest.mark.slow
async def test_deaf_far_end_answers_no_check(emulate: Emulate, call: Call) -> None:
    """With `deaf` ICE keeps checking until the fault is cleared."""
    caller: Caller = await call(await emulate(faults=Faults(deaf=True)), connect=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(caller.until("session.created"), 0.5)
    await caller.tell("fault", {"deaf": False})

    await caller.until("session.created")


async def test_consent_stops_and_data_goes_on(emulate: Emulate, call: Call) -> None:
    """Without consent no check is answered, while events still pass."""
    caller: Caller = await call(await emulate())
    await caller.tell("fault", {"do": "stop_consent"})
    connection = caller.peer.sctp.transport.transport._connection  # type: ignore[union-attr] # connected by now
    pair = connection._nominated[1]
    pair.protocol.send_stun(
        _signed(connection.build_request(pair, nominate=True), connection), pair.remote_addr
    )

    assert await caller.ask("ping") == "Pong!"
    assert (await caller.look())["checks_ignored"] == 1


def _signed(request: Any, connection: Any) -> Any:
    request.add_message_integrity(str(connection.remote_password).encode())
    return request


async def test_silence_in_mid_response(emulate: Emulate, call: Call) -> None:
    """After `silence` in the middle of a response nothing more arrives, but the channel stays open."""
    caller: Caller = await call(await emulate(faults=Faults(fail="silence", fail_after_deltas=3)))
    caller.say("Count to 20")
    await caller.until("response.output_text.delta", 3)
    caller.send({"type": "nonsense"})
    while (await caller.look())["received"] < 3:
        await asyncio.sleep(0.01)

    assert caller.types.count("response.output_text.delta") == 3
    assert "error" not in caller.types
    assert not caller.ended.is_set()


@pytest.mark.parametrize("how", ["close_channel", "hang_up"])
async def test_channel_closes_in_mid_response(how: str, emulate: Emulate, call: Call) -> None:
    """The channel or the whole connection closes after two deltas, and the client notices it at once."""
    caller: Caller = await call(await emulate(faults=Faults(fail=how, fail_after_deltas=2)))  # type: ignore[arg-type]
    caller.say("Count to 20")

    await asyncio.wait_for(caller.ended.wait(), 10)
    assert "response.done" not in caller.types


async def test_far_end_vanishes_without_a_word(emulate: Emulate, call: Call) -> None:
    """After `vanish` no datagram arrives, and the client still considers itself connected."""
    caller: Caller = await call(await emulate())
    await caller.tell("fault", {"do": "vanish"})
    before = len(caller.frames)
    caller.say("ping")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(caller.until("response.done"), 0.5)

    assert len(caller.frames) == before
    assert caller.peer.connectionState == "connected"


async def test_oversized_event_is_sent_when_told(emulate: Emulate, call: Call) -> None:
    """`oversize=send` ignores the offer's max-message-size."""
    caller: Caller = await call(await emulate(faults=Faults(oversize="send")), offer_size=300)

    assert await caller.ask("ping") == "Pong!"


async def test_late_expiry_can_be_brought_forward(emulate: Emulate, call: Call) -> None:
    """`expire` ends a session now, with its last events."""
    caller: Caller = await call(await emulate())
    await caller.tell("fault", {"do": "expire"})

    assert (await caller.until("error"))["error"]["code"] == "session_expired"
    await asyncio.wait_for(caller.ended.wait(), 10)


@pytest.mark.parametrize(
    ("garbage", "length"), [("text", 17), ("utf8", 14), ("array", 17), ("huge", 3 * 1024 * 1024)]
)
async def test_garbage_is_sent_before_the_deltas(garbage: str, length: int, talk: MakeTalk) -> None:
    """One frame of the chosen kind is sent between `response.created` and the rest of a valid response."""
    one = talk(faults=changed(NONE, {"garbage": garbage}))
    assert await one.ask("ping") == "Pong!"

    frame = one.frames[3]
    assert len(frame) >= length
    if garbage == "utf8":
        with pytest.raises(UnicodeDecodeError):
            frame.decode()


async def test_text_frame_without_utf8_crosses_the_channel(emulate: Emulate, call: Call) -> None:
    """The far end does send such a frame. Stock aiortc closes on it, which the gateway must survive."""
    caller: Caller = await call(await emulate(faults=Faults(garbage="utf8")))
    caller.say("ping")

    await asyncio.wait_for(caller.ended.wait(), 10)


async def test_response_fails_with_a_given_code(talk: MakeTalk) -> None:
    """With `response_error` the response is failed, with that code, and no tokens are charged."""
    one = talk(faults=Faults(response_error="rate_limit_exceeded", fail_after_deltas=2))
    one.user("Count to 20")
    done = await one.respond()

    assert done["status"] == "failed"
    assert done["status_details"]["type"] == "failed"
    assert done["status_details"]["error"]["code"] == "rate_limit_exceeded"
    assert done["usage"]["total_tokens"] == 0
    assert one.types.count("response.output_text.delta") == 2


async def test_response_is_cut_by_a_filter(talk: MakeTalk) -> None:
    """With `response_incomplete` the response is incomplete, with that reason."""
    one = talk(faults=Faults(response_incomplete="content_filter", fail_after_deltas=2))
    one.user("Count to 20")
    done = await one.respond()

    await one.ask("ping")

    assert (done["status"], done["status_details"]["reason"]) == ("incomplete", "content_filter")
    assert one.types.count("response.output_text.delta") == 4


@pytest.mark.parametrize(
    ("mode", "at_once", "in_the_end"), [("missing", 0, 0), ("doubled", 2, 2), ("late", 0, 1)]
)
async def test_rate_limits_go_wrong(mode: Any, at_once: int, in_the_end: int, talk: MakeTalk) -> None:
    """`rate_limits.updated` is missing, doubled or late."""
    one = talk(faults=Faults(rate_limits=mode))
    await one.ask("ping")
    assert one.types.count("rate_limits.updated") == at_once

    await one.until(lambda: one.types.count("rate_limits.updated") == in_the_end)


async def test_unknown_event_type_is_said(talk: MakeTalk) -> None:
    """`unknown_event` adds an event of an unknown type."""
    one = talk(faults=Faults(unknown_event=True))
    await one.ask("ping")

    assert "response.premonition.updated" in one.types


async def test_deltas_come_slowly_and_in_bursts(talk: MakeTalk) -> None:
    """`tokens_per_second` and `burst` keep the mean pace; `first_delta_seconds` is added before it."""
    one = talk(rate=1000, faults=Faults(tokens_per_second=100, burst=10, first_delta_seconds=0.1))
    before = time.monotonic()
    await one.ask("Repeat after me: " + "a b " * 10)

    assert 0.3 <= time.monotonic() - before < 20


async def test_faults_are_shown_changed_and_cleared(emulate: Emulate, call: Call) -> None:
    """The control endpoint changes given names only, refuses unknown ones, and clears all."""
    caller: Caller = await call(await emulate(faults=Faults(burst=2)))
    url = f"{caller.root}/_emulator/faults"
    async with caller.http.post(url, json={"signal_status": 503}) as response:
        shown = await response.json()
    async with caller.http.post(url, json={"no_such": 1}) as response:
        status = response.status
    async with caller.http.delete(url) as response:
        cleared = await response.json()

    assert (shown["signal_status"], shown["burst"]) == (503, 2)
    assert status == 400
    assert cleared == dataclasses.asdict(NONE)


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("fault", {"do": "dance", "fail": "silence"}),
        ("send", {"frames": 1}),
        ("send", {"frames": [1]}),
        ("fault", {"burst": -1}),
    ],
)
async def test_control_refuses_what_it_does_not_know(
    what: str, body: dict[str, Any], emulate: Emulate, call: Call
) -> None:
    """A wrong request to a control endpoint is 400 and changes nothing."""
    caller: Caller = await call(await emulate())
    async with caller.http.post(f"{caller.control}/{what}", json=body) as response:
        assert response.status == 400
    assert await caller.ask("ping") == "Pong!"


async def test_control_lists_running_and_ended_calls(emulate: Emulate, call: Call) -> None:
    """The control endpoint still describes a call that ended, with what it received."""
    emulator = await emulate()
    caller: Caller = await call(emulator)
    await caller.hang_up()
    second: Caller = await call(emulator)
    async with second.http.get(f"{second.root}/_emulator/calls") as response:
        calls = (await response.json())["data"]
    async with second.http.get(f"{second.root}/_emulator") as response:
        about = await response.json()

    assert [(c["id"], c["open"], c["end_reason"]) for c in calls] == [
        (caller.call_id, False, "hung up"),
        (second.call_id, True, None),
    ]
    assert (about["calls"], about["opened"]) == (1, 2)
    assert about["cpu_seconds"] > 0
