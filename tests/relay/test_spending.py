"""gateway/relay/spending.py: what callers may spend, what is reserved, and what happens when a session reaches its
limit."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from gateway.errors import OverloadError
from gateway.relay.ports import LossCause
from gateway.relay.requests import Principal
from gateway.relay.spending import (
    BYTES_PER_TOKEN,
    MAX_RESERVED,
    OUTPUT_TOKENS,
    RESERVED_SECONDS,
    RETRY_SECONDS,
    Account,
    Allowance,
    Amount,
)
from gateway.relay.state.turn import TurnRequest
from gateway.relay.states import CloseReason
from gateway.relay.usage import PICODOLLARS, Charge, ModelPrices, PriceList
from tests.relay.conftest import Build
from tests.relay.fakes import client_event

NOON = 1_790_000_000.0 // 86_400 * 86_400 + 43_200
ANN = Principal("ann", tokens_per_day=10)
DOLLAR = PICODOLLARS
PRICES = PriceList(
    models={
        "m": ModelPrices({("input", "text"): 2, ("output", "text"): 5, ("output", "audio"): 7}),
        "dear": ModelPrices({("input", "text"): 100, ("output", "text"): 1000}),
    }
)


def cost(tokens: int, picodollars: int = 0) -> Charge:
    """Return the cost of a response with this many tokens."""
    return Charge("m", output={"text": tokens}, assumed_cost=picodollars, tokens=tokens)


def create(**response: Any) -> Any:
    """Return a response.create."""
    return client_event("response.create", response=response) if response else client_event("response.create")


def ask(account: Account, *responses: Any, unix: float = NOON) -> int:
    """Reserve the budget for these responses."""
    return account.reserve(responses or (create(),), None, "m", unix)


# --- days -------------------------------------------------------------------------------------------------------------


def test_a_spent_day_is_refused_until_midnight() -> None:
    """The refusal says how long it is until midnight; the next day starts at zero."""
    allowance = Allowance()
    allowance.spend("ann", 9, 0, NOON)
    allowance.check(ANN, NOON)
    allowance.spend("ann", 1, 0, NOON)
    with pytest.raises(OverloadError) as caught:
        allowance.check(ANN, NOON)

    assert (caught.value.code, caught.value.retry_after) == ("rate-limited", 43_200)
    assert "10 tokens" in caught.value.detail
    allowance.check(ANN, NOON + 43_200)


def test_dollars_of_a_day_are_a_limit_of_their_own() -> None:
    """The limit in dollars applies independently of the tokens."""
    allowance, ann = Allowance(), Principal("ann", tokens_per_day=10, dollars_per_day=0.25)
    allowance.spend("ann", 1, DOLLAR // 4 - 1, NOON)
    allowance.check(ann, NOON)
    allowance.spend("ann", 0, 1, NOON)

    with pytest.raises(OverloadError, match=r"0\.25 dollars"):
        allowance.check(ann, NOON)


def test_callers_spend_apart() -> None:
    """Tokens of other callers, or of a caller without a limit, do not count."""
    allowance = Allowance()
    allowance.spend("bob", 1000, 0, NOON)

    allowance.check(ANN, NOON)
    allowance.check(Principal("bob"), NOON)


# --- reservations -----------------------------------------------------------------------------------------------------


def test_parallel_sessions_cannot_spend_the_same_tokens() -> None:
    """While the rest of the day is smaller than an estimate, one of twenty is accepted, and the next one when it is
    done."""
    allowance = Allowance()
    accounts = [allowance.open(Principal("ann", tokens_per_day=100)) for _ in range(20)]
    let_in, spent = [], 0
    for account in accounts:
        with suppress(OverloadError):
            ask(account)
            let_in.append(account)
    assert let_in == accounts[:1]
    with pytest.raises(OverloadError) as refused:
        ask(accounts[1])
    assert (refused.value.code, refused.value.retry_after) == ("rate-limited", RETRY_SECONDS)
    for account in accounts:
        with suppress(OverloadError):
            if account not in let_in:
                ask(account)
            account.spend(cost(30), NOON)
            spent += 30

    assert spent == 120  # the last response exceeded the limit, which was not reached when it was accepted


def test_responses_that_fit_together_run_together() -> None:
    """Responses with their own token limit have small estimates and can run together."""
    allowance = Allowance()
    first, second, third = (allowance.open(Principal("ann", tokens_per_day=1000)) for _ in range(3))
    small = create(max_output_tokens=400)
    ask(first, small)
    ask(second, small)
    with pytest.raises(OverloadError):
        ask(third, small)
    first.spend(cost(100), NOON)

    assert ask(third, small) == 1


def test_a_batch_is_reserved_whole_or_not_at_all() -> None:
    """A batch is reserved whole or not at all: its first response alone is accepted, both together are not."""
    allowance = Allowance()
    account = allowance.open(Principal("ann", tokens_per_day=1000))
    with pytest.raises(OverloadError):
        ask(account, create(max_output_tokens=600), create(max_output_tokens=600))
    assert account.reserved == 0

    assert ask(account, create(max_output_tokens=400), create(max_output_tokens=400)) == 2


def test_a_batch_that_was_not_sent_gives_back_its_own_reservations() -> None:
    """If a batch is not sent, its own reservations are released, and those of running responses stay."""
    allowance = Allowance()
    account = allowance.open(Principal("ann", tokens_per_day=1000))
    ask(account, create(max_output_tokens=700))
    account.cancel(ask(account, create(max_output_tokens=50), create(max_output_tokens=50)))
    account.cancel(0)

    assert account.reserved == 1
    with pytest.raises(OverloadError):
        ask(account, create(max_output_tokens=700))


def test_a_limit_of_the_session_counts_what_is_reserved_in_it() -> None:
    """A session's limit counts its own reservations; another session of the same key has its own limit."""
    allowance = Allowance()
    ann = Principal("ann", tokens_per_session=100)
    account, other = allowance.open(ann), allowance.open(ann)
    ask(account)
    with pytest.raises(OverloadError):
        ask(account)

    assert ask(other) == 1


def test_a_session_that_is_spent_asks_for_nothing_more() -> None:
    """A session that reached its limit requests nothing more; another session may, within the day's budget."""
    allowance = Allowance()
    ann = Principal("ann", dollars_per_session=1.5)
    account = allowance.open(ann)
    assert not account.exhausted
    account.spend(cost(1, DOLLAR * 3 // 2), NOON)

    assert account.exhausted
    with pytest.raises(OverloadError, match=r"1\.5 dollars.*another session"):
        ask(account)
    assert ask(allowance.open(ann)) == 1


def test_an_estimate_is_the_context_and_the_longest_answer() -> None:
    """The estimate is the last response's tokens, which are read again, what was sent since, and the longest answer,
    each at its model's highest price."""
    allowance = Allowance(PRICES)
    account = allowance.open(Principal("ann", dollars_per_day=1))
    account.spend(cost(1000), NOON)
    item = client_event("conversation.item.create", item={"text": "x" * 400})
    asking = create(max_output_tokens=50)
    account.reserve([item, asking], "inf", "m", NOON)

    context = 1000 + item.size // BYTES_PER_TOKEN + asking.size // BYTES_PER_TOKEN
    assert allowance.release(account, 1) == [Amount(context + 50, context * 2 + 50 * 7)]


@pytest.mark.parametrize(
    ("of_session", "of_response", "output"),
    [
        (None, None, OUTPUT_TOKENS),
        (7, None, 7),
        (7, 9, 9),
        (7, "inf", OUTPUT_TOKENS),
        ("inf", None, OUTPUT_TOKENS),
        (True, None, OUTPUT_TOKENS),
    ],
)
def test_the_longest_answer_is_what_the_response_or_its_session_says(
    of_session: object, of_response: object, output: int
) -> None:
    """The longest answer is the limit of the response or of its session; a model without a price is treated as the
    most expensive one."""
    allowance = Allowance(PRICES)
    account = allowance.open(Principal("ann", tokens_per_day=10**6))
    asking = create() if of_response is None else create(max_output_tokens=of_response)
    account.reserve([asking], of_session, "unheard-of", NOON)
    (reserved,) = allowance.release(account, 1)

    context = asking.size // BYTES_PER_TOKEN
    assert reserved == Amount(context + output, context * 100 + output * 1000)


def test_nothing_is_reserved_where_nothing_is_limited() -> None:
    """Requests of a caller without limits use no memory."""
    account = Allowance().open(Principal("bob"))

    assert (ask(account), account.reserved) == (0, 0)
    account.spend(cost(5), NOON)
    account.close()


def test_what_asks_for_nothing_reserves_nothing() -> None:
    """An event that requests no response is accepted even if the budget is spent."""
    allowance = Allowance()
    account = allowance.open(ANN)
    allowance.spend("ann", 10, 0, NOON)

    assert account.reserve([client_event("response.cancel")], None, "m", NOON) == 0


def test_a_reservation_does_not_outlive_the_longest_response() -> None:
    """A response that upstream forgot does not keep its reservation for ever."""
    allowance = Allowance()
    first, second = (allowance.open(Principal("ann", tokens_per_day=100)) for _ in range(2))
    ask(first)
    with pytest.raises(OverloadError):
        ask(second, unix=NOON + RESERVED_SECONDS - 1)

    assert ask(second, unix=NOON + RESERVED_SECONDS) == 1


def test_reservations_are_bounded_in_number() -> None:
    """The number of reservations is limited, because the budget alone would allow very many tiny ones."""
    allowance = Allowance()
    account = allowance.open(Principal("ann", tokens_per_day=10**9))
    for _ in range(MAX_RESERVED):
        ask(account, create(max_output_tokens=1))

    with pytest.raises(OverloadError):
        ask(account, create(max_output_tokens=1))


def test_a_closed_session_reserves_nothing() -> None:
    """A closed session releases its reservations, and another session of its key continues."""
    allowance = Allowance()
    first, second = allowance.open(ANN), allowance.open(ANN)
    ask(first)
    first.close()

    assert ask(second) == 1


def test_what_will_never_be_told_is_charged_as_estimated() -> None:
    """A response whose cost will never be reported is charged as estimated, because OpenAI bills it anyway."""
    allowance = Allowance()
    account = allowance.open(Principal("ann", tokens_per_day=10**6))
    ask(account)
    (estimate,) = allowance.release(account, 1)
    ask(account)
    account.forfeit(2, NOON)  # one more than the limit

    assert allowance.spent("ann", NOON) == account.spent
    assert account.spent.tokens >= estimate.tokens
    assert account.reserved == 0


def test_a_transcription_gives_no_reservation_back() -> None:
    """A transcription releases no reservation, because no response.create requested it."""
    account = Allowance().open(Principal("ann", tokens_per_day=100))
    ask(account)
    account.spend(cost(2), NOON, response=False)

    assert (account.reserved, account.spent.tokens) == (1, 2)


def test_another_node_goes_on_counting() -> None:
    """Another node continues counting from plain JSON; the day is the node's own."""
    account = Allowance().open(Principal("ann", tokens_per_session=100))
    account.spend(cost(60, 5), NOON)
    taken = Allowance(PRICES).open(Principal("ann", tokens_per_session=100))
    taken.load(account.dump())

    assert (taken.spent, taken.dump()) == (Amount(60, 5), account.dump())
    taken.load({"tokens": "x"})
    assert taken.spent == Amount()


# --- in a session -----------------------------------------------------------------------------------------------------


async def test_a_session_that_has_cost_its_limit_ends(build: Build) -> None:
    """The session ends with reason `limit` after the response.done that reaches it."""
    harness = build()
    session = await harness.open(principal=Principal("ann", tokens_per_session=5))
    for _ in range(2):  # three tokens each
        await session.submit([client_event("response.create")])
        harness.call.start()
        harness.call.finish()

    assert await harness.closed(session) is CloseReason.LIMIT


async def test_nothing_more_is_asked_once_the_day_is_spent(build: Build) -> None:
    """Neither events, nor turns, nor another session can request a response; events that cost nothing are accepted."""
    harness = build()
    ann = Principal("ann", tokens_per_day=3)
    session = await harness.open(principal=ann)
    await session.submit([client_event("response.create")])
    harness.call.start()
    harness.call.finish()

    for asking in (
        session.submit([client_event("response.create")]),
        session.turn(TurnRequest([])),
        harness.open(principal=ann),
    ):
        with pytest.raises(OverloadError) as caught:
            await asking
        assert caught.value.code == "rate-limited"
    await session.submit([client_event("conversation.item.create", item={})])


async def test_twenty_sessions_at_once_stay_within_the_day(build: Build) -> None:
    """Each of twenty sessions requests before any response is done, and together they stay within the day's budget."""
    harness = build()
    ann = Principal("ann", tokens_per_day=4)
    sessions = [await harness.open(principal=ann) for _ in range(20)]
    results = await asyncio.gather(
        *(session.submit([client_event("response.create")]) for session in sessions), return_exceptions=True
    )

    assert sum(not isinstance(result, OverloadError) for result in results) == 1


async def test_a_turn_waits_for_what_another_session_reserved(build: Build) -> None:
    """A turn waits for another session's reservation. It is sent when that response is done, or refused if the day
    is spent by then."""
    harness = build()
    ann = Principal("ann", tokens_per_day=6)
    first, second = [await harness.open(principal=ann) for _ in range(2)]
    await first.submit([client_event("response.create")])
    calls = harness.dialer.calls
    turn = await second.turn(TurnRequest([]))
    assert calls[1].types() == []
    calls[0].start()
    calls[0].finish()  # three tokens
    await asyncio.sleep(1.5)
    assert calls[1].types() == ["response.create"]
    last = await first.turn(TurnRequest([]))
    calls[1].finish()
    assert not turn.finished
    await asyncio.sleep(1.5)

    assert last.failure is not None
    assert last.failure.code == "rate-limited"


async def test_a_refused_response_gives_its_reservation_back(build: Build) -> None:
    """An error that names the request releases its reservation, because no response will follow."""
    harness = build()
    session = await harness.open(principal=Principal("ann", tokens_per_day=4))
    await session.submit([client_event("response.create", event_id="e1")])
    harness.call.say("error", error={"code": "invalid_value", "event_id": "e1"})

    await session.submit([client_event("response.create")])


async def test_an_error_that_names_nothing_gives_a_reservation_back_when_the_call_had_time_to_answer(
    build: Build,
) -> None:
    """Such an error may be about another event and the response may still begin, so the reservation stays until the
    call had time to answer."""
    harness = build()
    session = await harness.open(principal=Principal("ann", tokens_per_day=4))
    await session.submit([client_event("response.create")])
    harness.call.say("error", error={"code": "invalid_value", "event_id": None})
    with pytest.raises(OverloadError, match="reserved"):
        await session.submit([client_event("response.create")])
    await asyncio.sleep(8)  # The call is probed, and has answered everything before that.

    await session.submit([client_event("response.create")])


async def test_an_error_about_another_event_leaves_the_reservation(build: Build) -> None:
    """An error about another event keeps the reservation, because a caller could otherwise exceed a budget by
    provoking errors."""
    harness = build()
    session = await harness.open(principal=Principal("ann", tokens_per_day=4))
    await session.submit([client_event("conversation.item.delete", event_id="d1", item_id="x")])
    await session.submit([client_event("response.create")])
    harness.call.say("error", error={"code": "item_delete_invalid_item_id", "event_id": "d1"})

    with pytest.raises(OverloadError, match="reserved"):
        await session.submit([client_event("response.create")])


async def test_a_batch_that_is_not_taken_reserves_nothing(build: Build) -> None:
    """A batch that is refused for back-pressure reserves nothing, and is accepted when there is room."""
    harness = build(high_water_bytes=10)
    session = await harness.open(principal=Principal("ann", tokens_per_day=4))
    harness.call.buffered = 100
    with pytest.raises(OverloadError, match="OpenAI"):
        await session.submit([client_event("response.create")])
    harness.call.buffered = 0

    await session.submit([client_event("response.create")])


async def test_a_lost_response_is_charged_as_estimated(build: Build) -> None:
    """Its cost will never be reported, but OpenAI bills it."""
    harness = build(continuity=False)
    ann = Principal("ann", tokens_per_day=100)
    session = await harness.open(principal=ann)
    await session.submit([client_event("response.create")])
    harness.call.start()
    harness.call.lose(LossCause.CONNECTION_FAILED)
    await harness.closed(session)

    with pytest.raises(OverloadError):
        await harness.open(principal=ann)


async def test_usage_stands_in_the_session(build: Build) -> None:
    """The session's usage is the sum of every response.done and of the transcriptions of all models."""
    prices = PriceList(models={"m": PRICES.of("m"), "t": ModelPrices(minute=60)})
    harness = build(prices=prices)
    session = await harness.open(session={"model": "m"})
    transcription = {"audio": {"input": {"transcription": {"model": "t"}}}}
    harness.call.say("session.updated", session=transcription)
    harness.call.say(
        "conversation.item.input_audio_transcription.completed", usage={"type": "duration", "seconds": 3}
    )
    harness.call.say("conversation.item.input_audio_transcription.completed")
    details = {"input_token_details": {"text_tokens": 10}, "output_token_details": {"text_tokens": 4}}
    for _ in range(2):
        harness.call.start()
        harness.call.finish(usage=details)

    usage = session.view().usage
    assert (usage.input_text, usage.output_text, usage.cost) == (20, 8, 3 + 2 * (10 * 2 + 4 * 5))
    assert session.diagnostics()["usage"] == usage.shown()


# --- with other nodes -------------------------------------------------------------------------------------------------


def test_what_other_nodes_spent_counts_against_the_day() -> None:
    """The received total replaces this node's own, plus what it has not reported yet."""
    allowance = Allowance()
    allowance.share(lambda: None)
    allowance.spend("ann", 3, 1, NOON)
    allowance.spend("ann", 1, 1, NOON)
    day, unsent = allowance.take_unsent(NOON)
    allowance.spend("ann", 2, 0, NOON)
    allowance.learn(day, "ann", Amount(8, 5))

    assert unsent == {"ann": Amount(4, 2)}
    assert allowance.spent("ann", NOON) == Amount(10, 5)
    with pytest.raises(OverloadError, match="10 tokens per day"):
        allowance.check(ANN, NOON)
    assert allowance.take_unsent(NOON)[1] == {"ann": Amount(2, 0)}


def test_what_could_not_be_told_is_kept_for_the_next_time() -> None:
    """Unreported spending is added to what is spent meanwhile; spending of another day is dropped."""
    allowance = Allowance()
    allowance.share(lambda: None)
    allowance.spend("ann", 3, 1, NOON)
    day, unsent = allowance.take_unsent(NOON)
    allowance.spend("ann", 2, 1, NOON)
    allowance.put_back(day, unsent)
    assert allowance.take_unsent(NOON) == (day, {"ann": Amount(5, 2)})

    allowance.spend("ann", 1, 0, NOON)
    tomorrow = NOON + 86_400
    assert allowance.take_unsent(tomorrow) == (day + 1, {})
    allowance.put_back(day, unsent)
    allowance.learn(day, "ann", Amount(99, 99))
    assert allowance.take_unsent(tomorrow)[1] == {}
    assert allowance.spent("ann", tomorrow) == Amount()


def test_totals_are_asked_for_as_long_as_a_key_is_used() -> None:
    """The first check of a day's budget requests the total; a key without one never does."""
    asked: list[None] = []
    allowance = Allowance()
    allowance.share(lambda: asked.append(None))
    for _ in range(2):
        allowance.check(ANN, NOON)
        allowance.check(Principal("bob"), NOON)

    assert len(asked) == 1
    assert allowance.watched(NOON + 59) == {"ann"}
    assert allowance.watched(NOON + 61) == set()
    allowance.check(ANN, NOON + 62)
    assert len(asked) == 2


def test_a_single_process_keeps_nothing_for_others() -> None:
    """A single process collects nothing for other nodes."""
    allowance = Allowance()
    allowance.spend("ann", 3, 1, NOON)
    allowance.check(ANN, NOON)
    allowance.learn(int(NOON // 86_400), "ann", Amount(99, 99))
    allowance.put_back(int(NOON // 86_400), {"ann": Amount(1, 1)})

    assert allowance.watched(NOON) == set()
    assert allowance.spent("ann", NOON) == Amount(3, 1)
