"""gateway/relay/responses.py: what each response cost, and when it began to speak."""

from typing import Any

import pytest

from gateway.relay.responses import MAX_ACTIVE, Responses
from gateway.relay.usage import PriceList, charge
from tests.relay.fakes import Notebook

USAGE = {"total_tokens": 5, "input_token_details": {"text_tokens": 5, "audio_tokens": 0}}


class Desk:
    """The responses of one session, and what was told of them."""

    def __init__(self) -> None:
        self.notebook = Notebook()
        self.responses = Responses("gws_1", "somebody", self.notebook.port, PriceList())

    def create(self, id: str = "r1", now: float = 0.0, conversation: str | None = "c") -> None:
        self.responses.created({"response": {"id": id, "conversation_id": conversation}}, now)

    def finish(self, id: str = "r1", now: float = 0.0, **members: Any) -> None:
        response = {"id": id, "status": "completed", "usage": USAGE, **members}
        self.responses.done({"response": response}, now)


def test_a_response_is_active_until_it_is_done() -> None:
    """Whatever it was created by."""
    desk = Desk()
    desk.create()
    assert (desk.responses.active, desk.responses.busy) == (("r1",), True)
    desk.finish()

    assert (desk.responses.active, desk.responses.busy) == ((), False)


def test_a_response_out_of_band_leaves_the_conversation_free() -> None:
    """It has no conversation, so the default one may be answered beside it."""
    desk = Desk()
    desk.create(conversation=None)

    assert (desk.responses.active, desk.responses.busy) == (("r1",), False)


def test_the_first_delta_is_timed_from_the_question() -> None:
    """Once a response, however many deltas follow."""
    desk = Desk()
    desk.responses.asked(10.0)
    desk.create(now=10.2)
    assert desk.responses.awaiting_delta
    for now in (10.5, 11.0):
        desk.responses.delta({"response_id": "r1"}, now)
    desk.responses.delta({}, 12.0)

    assert desk.notebook.told("first_delta") == [(0.5,)]
    assert not desk.responses.awaiting_delta


def test_a_response_nobody_asked_for_is_timed_from_its_creation() -> None:
    """Turn detection creates such; an earlier question is not theirs."""
    desk = Desk()
    desk.responses.asked(1.0)
    desk.create("r1", now=2.0)
    desk.create("r2", now=50.0)
    desk.responses.delta({"response_id": "r2"}, 50.25)

    assert desk.notebook.told("first_delta") == [(0.25,)]


def test_a_done_response_is_told_with_status_time_and_tokens() -> None:
    """Under the model of the session and the name of its owner."""
    desk = Desk()
    desk.responses.model = "gpt-realtime-2.1"
    desk.create(now=1.0)
    desk.finish(now=3.5)

    assert desk.notebook.facts == [
        ("response_done", ("completed", 2.5)),
        ("charged", ("somebody", charge(USAGE, "gpt-realtime-2.1", PriceList()))),
    ]


@pytest.mark.parametrize("usage", [None, 7, []])
def test_a_response_without_usage_is_counted_as_unrecorded(usage: object) -> None:
    """The bill will hold something that the metrics do not."""
    desk = Desk()
    desk.create()
    desk.finish(usage=usage)

    assert desk.notebook.told("usage_unrecorded") == [()]
    assert desk.notebook.told("charged") == []


@pytest.mark.parametrize("value", [{}, {"response": None}, {"response": 7}])
def test_a_done_of_no_shape_is_told_as_other(value: dict[str, object]) -> None:
    """The service's shapes are not trusted."""
    desk = Desk()
    desk.responses.done(value, 1.0)

    assert desk.notebook.facts == [("response_done", ("other", 0.0)), ("usage_unrecorded", ())]


@pytest.mark.parametrize(
    ("details", "codes"),
    [
        ({"error": {"code": "rate_limit_exceeded", "type": "t"}}, [("rate_limit_exceeded",)]),
        ({"error": {"type": "server_error", "code": None}}, [("server_error",)]),
        ({"error": {"code": 7}}, [("other",)]),
        ({"error": {}}, [("other",)]),
        ({"error": None}, []),
        ("failed", []),
        (None, []),
    ],
)
def test_a_failed_response_is_an_error_of_upstreams(details: object, codes: list[tuple[str]]) -> None:
    """Many failures show only here."""
    desk = Desk()
    desk.create()
    desk.finish(status="failed", status_details=details)

    assert desk.notebook.told("upstream_error") == codes


def test_a_lost_call_leaves_its_responses_unrecorded() -> None:
    """Each of them, and nothing is active any more."""
    desk = Desk()
    desk.create("r1")
    desk.create("r2")
    assert (desk.responses.lost(), desk.responses.lost()) == (2, 0)

    assert desk.notebook.told("usage_unrecorded") == [(), ()]
    assert (desk.responses.active, desk.responses.busy, desk.responses.awaiting_delta) == ((), False, False)


def test_responses_that_never_end_are_bounded() -> None:
    """Above the bound the oldest is taken for lost."""
    desk = Desk()
    for number in range(MAX_ACTIVE + 1):
        desk.create(f"r{number}")

    assert len(desk.responses.active) == MAX_ACTIVE
    assert desk.responses.active[0] == "r1"
    assert desk.notebook.told("usage_unrecorded") == [()]


def test_audio_tokens_in_a_text_session_are_told_once() -> None:
    """They cost money that nobody expects; the counts of both directions add up."""
    desk = Desk()
    desk.responses.text_only = True
    usage = {"input_token_details": {"audio_tokens": 2}, "output_token_details": {"audio_tokens": 3}}
    for _ in range(2):
        desk.finish(usage=usage)

    assert desk.notebook.told("audio_tokens_in_text_session") == [("gws_1", 5)]


@pytest.mark.parametrize(
    ("text_only", "usage"),
    [
        (False, {"input_token_details": {"audio_tokens": 2}}),
        (True, {"input_token_details": {"audio_tokens": 0}}),
        (True, {"input_token_details": {"audio_tokens": "2"}, "output_token_details": None}),
        (True, {}),
    ],
)
def test_no_audio_tokens_are_told_where_there_is_nothing_to_tell(text_only: bool, usage: object) -> None:
    """Where audio was asked for, or none was counted, or the count is no number."""
    desk = Desk()
    desk.responses.text_only = text_only
    desk.finish(usage=usage)

    assert desk.notebook.told("audio_tokens_in_text_session") == []


def test_a_transcription_is_charged_to_its_own_model() -> None:
    """It is billed apart from the responses, by tokens or by the minute."""
    desk = Desk()
    desk.responses.transcription_model = "gpt-realtime-whisper"
    prices = PriceList()
    for usage in ({"type": "duration", "seconds": 3}, {"type": "tokens", "input_tokens": 7}, None):
        desk.responses.transcribed({"type": "…completed", "usage": usage})

    told = [cost for _, cost in desk.notebook.told("charged")]
    assert told == [
        charge({"type": "duration", "seconds": 3}, "gpt-realtime-whisper", prices),
        charge({"input_tokens": 7}, "gpt-realtime-whisper", prices),
    ]
