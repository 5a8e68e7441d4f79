"""gateway/relay/memory.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import OverloadError
from gateway.relay.memory import Budget


def test_what_is_taken_is_counted_for_its_principal_and_in_total() -> None:
    """The bytes of two principals are counted separately and in total."""
    budget = Budget(100)
    ada, bob = budget.open("ada"), budget.open("bob")
    ada.take(30)
    bob.take(20)

    assert (budget.held, budget.held_by("ada"), budget.held_by("bob")) == (50, 30, 20)


def test_what_does_not_fit_the_total_is_refused_and_not_charged() -> None:
    """A charge beyond the total limit is refused as `capacity` with Retry-After, and changes nothing."""
    budget = Budget(100)
    budget.open("ada").take(60)
    holding = budget.open("bob")

    with pytest.raises(OverloadError) as refused:
        holding.take(41)

    assert (refused.value.code, refused.value.retry_after) == ("capacity", 5.0)
    assert (budget.held, holding.size) == (60, 0)


def test_one_principal_cannot_hold_everything() -> None:
    """At a principal's share its next byte is refused, while another principal can still charge."""
    budget = Budget(100, principal_share=0.75)
    ada = budget.open("ada")
    ada.take(75)

    with pytest.raises(OverloadError, match="one caller"):
        ada.take(1)
    budget.open("bob").take(25)

    assert budget.held == 100


def test_what_cannot_be_refused_is_charged_beyond_the_limit() -> None:
    """An event from upstream is stored even beyond the limit; from then on every other charge is refused."""
    budget = Budget(100)
    log = budget.open("ada")
    log.grow(130)

    assert budget.held == budget.total_bytes + 30
    with pytest.raises(OverloadError):
        budget.check("bob", 0)

    log.grow(-40)

    assert budget.held <= budget.total_bytes
    budget.check("bob", 10)


def test_a_released_holding_gives_everything_back_once() -> None:
    """Releasing twice, or growing after it, changes nothing more."""
    budget = Budget(100)
    with budget.open("ada") as holding:
        holding.take(10)
        holding.resize(25)
    holding.release()
    holding.grow(5)

    assert (budget.held, holding.size) == (0, 0)


def test_a_principal_without_holdings_is_forgotten() -> None:
    """The table contains only principals with bytes, so it cannot grow with invented names."""
    budget = Budget(100)
    for number in range(10):
        budget.open(f"caller-{number}").release()

    assert budget._accounts == {}
    assert budget.held_by("caller-1") == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 60), st.sampled_from(["take", "grow", "release"]))
    )
)
def test_the_total_is_the_sum_of_what_is_held(steps: list[tuple[str, int, str]]) -> None:
    """Whatever is charged, refused and released, the total equals the sizes of the open holdings."""
    budget = Budget(100)
    holdings = {name: budget.open(name) for name in "abc"}
    for name, size, step in steps:
        match step:
            case "take":
                before = budget.held
                try:
                    holdings[name].take(size)
                except OverloadError:
                    assert budget.held == before
                else:
                    assert budget.held <= budget.total_bytes
            case "grow":
                holdings[name].grow(size)
            case _:
                holdings[name].release()
                holdings[name] = budget.open(name)

        assert budget.held == sum(holding.size for holding in holdings.values())
        assert all(budget.held_by(name) == holding.size for name, holding in holdings.items())
