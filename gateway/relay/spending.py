"""What each caller may spend: tokens and dollars, of one session and of one day. No I/O, no clock.

What a response costs is known when it is done. Many that are asked for at once would all pass a budget that is nearly
spent, so each one reserves an estimate before it is sent and releases it when its real cost is known. While something
is reserved, more is let in only if all estimates together fit. If nothing is reserved, one response is let in as long
as anything is left. So a budget is exceeded by one response at most, or by what estimates fall short of.

Days are UTC's. The counts are this process's own and start at zero with it: they limit a bill and are not a ledger. Where
several nodes share the budgets (`share`), another part adds what is spent here to a total of all, and tells the total.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from gateway.errors import OverloadError
from gateway.relay.events.envelope import ClientEvent, read_members
from gateway.relay.ports import Json
from gateway.relay.requests import Principal
from gateway.relay.usage import PICODOLLARS, Charge, Direction, PriceList

_DAY_SECONDS: Final = 86_400


class _Response(msgspec.Struct, frozen=True, gc=False):
    max_output_tokens: int | float | str | bool | None = None


class _Asks(msgspec.Struct, frozen=True, gc=False):
    response: _Response = _Response()


_asks = msgspec.json.Decoder(_Asks)

OUTPUT_TOKENS: Final = 4096
"""Estimate for a response without a token limit of its own."""

BYTES_PER_TOKEN: Final = 4
"""Approximate for English text and JSON."""

RESERVED_SECONDS: Final = 600
"""Older reservations are dropped: no response takes that long, so upstream refused or forgot it."""

MAX_RESERVED: Final = 1024
"""Reservations of one caller at once; bounds memory where estimates are tiny."""

RETRY_SECONDS: Final = 2.0
"""Most responses are done by then, and the next one fits."""


WATCHED_SECONDS: Final = 60.0
"""How long after its last check a caller's total is still asked for."""


class Amount(NamedTuple):
    """Tokens, and picodollars. A tuple, because several are made for every response."""

    tokens: int = 0
    cost: int = 0

    def __add__(self, other: "Amount") -> "Amount":  # type: ignore[override]  # a sum, where a tuple would grow
        return Amount(self.tokens + other.tokens, self.cost + other.cost)


_NOTHING: Final = Amount()


@dataclass(frozen=True, slots=True)
class Limit:
    """What may be spent, in both units; None for no limit."""

    tokens: int | None = None
    dollars: float | None = None

    def reached(self, amount: Amount) -> str | None:
        """Return the name of the exhausted limit; None if tokens and dollars are left."""
        if self.tokens is not None and amount.tokens >= self.tokens:
            return f"{self.tokens} tokens"
        if self.dollars is not None and amount.cost >= self.dollars * PICODOLLARS:
            return f"{self.dollars:g} dollars"
        return None

    def holds(self, amount: Amount) -> bool:
        """Whether the amount may be spent."""
        fits = self.tokens is None or amount.tokens <= self.tokens
        return fits and (self.dollars is None or amount.cost <= self.dollars * PICODOLLARS)


_NO_LIMIT: Final = Limit()


@dataclass(frozen=True, slots=True, eq=False)
class _Reservation:
    amount: Amount
    until: float
    account: "Account"


class Allowance:
    """What all callers have spent today, and what is reserved. Bounded by the configured names."""

    def __init__(self, prices: PriceList | None = None) -> None:
        self._prices = prices or PriceList()
        self._day = 0.0
        # Tokens and picodollars, as lists: they change with every response.
        self._spent: dict[str, list[int]] = {}
        self._reserved: dict[str, list[_Reservation]] = {}
        self._unsent: dict[str, list[int]] | None = None
        self._asked: dict[str, float] = {}
        self._told_of_asking: Callable[[], None] = lambda: None

    # --- with other nodes ---------------------------------------------------------------------------------------------

    def share(self, asked: Callable[[], None]) -> None:
        """Keep account of what other nodes have to be told. `asked` is called when a budget of a day is checked that was not
        checked lately, so its total may be unknown here."""
        self._unsent, self._told_of_asking = {}, asked

    def take_unsent(self, unix: float) -> tuple[int, dict[str, Amount]]:
        """Return the day, and what each caller has spent on it since the last call."""
        self._today(unix)
        unsent, self._unsent = self._unsent or {}, {}
        return int(self._day), {name: Amount(*amount) for name, amount in unsent.items()}

    def put_back(self, day: int, unsent: Mapping[str, Amount]) -> None:
        """Return what could not be told."""
        if day != self._day or self._unsent is None:
            return  # It was another day's.
        for name, amount in unsent.items():
            _add(self._unsent, name, amount.tokens, amount.cost)

    def learn(self, day: int, principal: str, total: Amount) -> None:
        """Take in what all nodes together have spent on a day, this one included as far as it was told."""
        if day == self._day and self._unsent is not None:
            unsent = self._unsent.get(principal, _NOTHING)
            self._spent[principal] = [total.tokens + unsent[0], total.cost + unsent[1]]

    def watched(self, unix: float) -> set[str]:
        """Return the callers whose budgets of a day were checked lately."""
        self._asked = {name: at for name, at in self._asked.items() if unix - at < WATCHED_SECONDS}
        return set(self._asked)

    # --- for this node ------------------------------------------------------------------------------------------------

    def open(self, principal: Principal) -> "Account":
        """Return the account of a new session."""
        return Account(self, principal)

    def check(self, principal: Principal, unix: float) -> None:
        """Raise `rate-limited`, with the seconds to midnight UTC, once today's tokens or dollars are spent."""
        limit = _of_day(principal)
        if self._unsent is not None and limit != _NO_LIMIT:
            new = principal.name not in self._asked
            self._asked[principal.name] = unix
            if new:
                self._told_of_asking()
        spent = limit.reached(self.spent(principal.name, unix))
        if spent is not None:
            left = _DAY_SECONDS - unix % _DAY_SECONDS
            detail = f"This key's {spent} per day are used up; the next day begins at midnight UTC."
            raise OverloadError("rate-limited", detail, retry_after=left, members={"limit": spent})

    def spent(self, principal: str, unix: float) -> Amount:
        """Return what a caller has spent today."""
        return Amount(*self._today(unix).get(principal, _NOTHING))

    def spend(self, principal: str, tokens: int, cost: int, unix: float) -> None:
        """Count what was spent."""
        _add(self._today(unix), principal, tokens, cost)
        if self._unsent is not None:
            _add(self._unsent, principal, tokens, cost)

    def reserve(self, account: "Account", wanted: Sequence[Amount], unix: float) -> None:
        """Reserve an amount for each response about to be asked for, or raise and reserve nothing."""
        principal = account.principal
        account.check(unix)
        reserved = [one for one in self._reserved.get(principal.name, ()) if one.until > unix]
        own = [one for one in reserved if one.account is account]
        day = sum((one.amount for one in reserved), self.spent(principal.name, unix))
        session = sum((one.amount for one in own), account.spent)
        for index, amount in enumerate(wanted):
            day, session = day + amount, session + amount
            # The first of a day, and the first of a session, is let in: `check` found something left.
            fits_day = not (reserved or index) or _of_day(principal).holds(day)
            fits_session = not (own or index) or _of_session(principal).holds(session)
            if not (fits_day and fits_session):
                raise _reserved_whole()
        if len(reserved) + len(wanted) > MAX_RESERVED:
            raise _reserved_whole()
        until = unix + RESERVED_SECONDS
        self._reserved[principal.name] = reserved + [_Reservation(one, until, account) for one in wanted]

    def release(self, account: "Account", count: int, *, newest: bool = False) -> list[Amount]:
        """Release some of a session's reservations, oldest or newest first. Return the amount that was reserved."""
        if not count:
            return []
        reserved = self._reserved.get(account.principal.name, [])
        own = [one for one in reserved if one.account is account]
        released = own[-count:] if newest else own[:count]
        self._reserved[account.principal.name] = [one for one in reserved if one not in released]
        return [one.amount for one in released]

    def reserved(self, account: "Account") -> int:
        """Return how many reservations a session has."""
        return sum(one.account is account for one in self._reserved.get(account.principal.name, ()))

    def estimate(self, input_tokens: int, output_tokens: int, model: str | None) -> Amount:
        """Return what to expect of a response, each token at the highest price of its model and direction."""
        cost = input_tokens * self._price(model, "input") + output_tokens * self._price(model, "output")
        return Amount(input_tokens + output_tokens, cost)

    def _today(self, unix: float) -> dict[str, list[int]]:
        day = unix // _DAY_SECONDS
        if day != self._day:
            self._day = day
            self._spent.clear()
            if self._unsent:
                self._unsent.clear()  # It would be told for the wrong day.
        return self._spent

    def _price(self, model: str | None, direction: Direction) -> int:
        tokens = self._prices.of(model or "").tokens
        prices = [price for (priced, _), price in tokens.items() if priced == direction]
        return max(prices) if prices else self._prices.highest(direction)


def _add(counts: dict[str, list[int]], name: str, tokens: int, cost: int) -> None:
    counted = counts.get(name)
    if counted is None:
        counts[name] = [tokens, cost]
    else:
        counted[0] += tokens
        counted[1] += cost


class Account:
    """What one session has spent. Its session closes it."""

    def __init__(self, allowance: Allowance, principal: Principal) -> None:
        self.principal = principal
        self.limited = principal.budgeted
        """Some budget applies."""
        self._tokens = self._cost = 0
        self._allowance = allowance
        self._limit = _of_session(principal)
        self._context = 0
        """Tokens that the next response reads: those of the last one, and an estimate of what was sent since."""

    @property
    def spent(self) -> Amount:
        """What the session has spent."""
        return Amount(self._tokens, self._cost)

    @property
    def exhausted(self) -> bool:
        """The session's own tokens or dollars are spent, so it ends."""
        return self.limited and self._limit.reached(self.spent) is not None

    @property
    def reserved(self) -> int:
        """How many responses have been asked for and not settled yet; 0 where nothing is limited."""
        return self._allowance.reserved(self) if self.limited else 0

    def check(self, unix: float) -> None:
        """Raise `rate-limited` once the tokens or dollars of today or of the session are spent."""
        self._allowance.check(self.principal, unix)
        spent = self._limit.reached(self.spent)
        if spent is not None:
            detail = f"The {spent} per session of this key are used up; open another session."
            raise OverloadError("rate-limited", detail, retry_after=RETRY_SECONDS, members={"limit": spent})

    def reserve(
        self, batch: Sequence[ClientEvent], max_output_tokens: object, model: str | None, unix: float
    ) -> int:
        """Reserve what the responses that `batch` asks for may cost; `max_output_tokens` is the session's.

        Returns how many there are, for `cancel` if the batch is not sent. Raises `rate-limited` and reserves nothing."""
        if not self.limited:
            return 0
        context, wanted = self._context, []
        for event in batch:
            context += event.size // BYTES_PER_TOKEN
            if event.type == "response.create":
                asked = read_members(_asks, event.text)
                limit = None if asked is None else asked.response.max_output_tokens
                output = _output_tokens(max_output_tokens if limit is None else limit)
                wanted.append(self._allowance.estimate(context, output, model))
        if wanted:
            self._allowance.reserve(self, wanted, unix)
        self._context = context
        return len(wanted)

    def cancel(self, count: int) -> None:
        """Release the newest reservations: their batch was not sent."""
        self._allowance.release(self, count, newest=True)

    def spend(self, charge: Charge, unix: float, *, response: bool = True) -> None:
        """Count the cost of a response and release its reservation. Pass `response=False` for a transcription, which has none."""
        tokens = charge.tokens
        if response:
            self._context = tokens
            if self.limited:
                self.release(1)
        self._spend(tokens, charge.assumed_cost, unix)

    def release(self, count: int) -> None:
        """Release the oldest reservations: upstream refused those responses."""
        self._allowance.release(self, count)

    def forfeit(self, count: int, unix: float) -> None:
        """Count the oldest estimates as spent: the cost of those responses will never be reported."""
        for amount in self._allowance.release(self, count):
            self._spend(amount.tokens, amount.cost, unix)

    def close(self) -> None:
        """Release all remaining reservations. Safe to call twice."""
        self._allowance.release(self, MAX_RESERVED)

    def dump(self) -> dict[str, int]:
        """Return what `load` goes on from: plain JSON, without reservations, whose responses end with their call."""
        return {"tokens": self._tokens, "cost": self._cost, "context": self._context}

    def load(self, dumped: Json) -> None:
        """Go on from what another node has counted."""
        self._tokens, self._cost = _whole(dumped.get("tokens")), _whole(dumped.get("cost"))
        self._context = _whole(dumped.get("context"))

    def _spend(self, tokens: int, cost: int, unix: float) -> None:
        self._tokens += tokens
        self._cost += cost
        self._allowance.spend(self.principal.name, tokens, cost, unix)


def _of_day(principal: Principal) -> Limit:
    return Limit(principal.tokens_per_day, principal.dollars_per_day)


def _of_session(principal: Principal) -> Limit:
    return Limit(principal.tokens_per_session, principal.dollars_per_session)


def _output_tokens(limit: object) -> int:
    """Return what `max_output_tokens` says; "inf" says nothing."""
    return _whole(limit) or OUTPUT_TOKENS


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _reserved_whole() -> OverloadError:
    detail = (
        "The rest of this key's budget is reserved for responses in progress; try again when they are done."
    )
    return OverloadError("rate-limited", detail, retry_after=RETRY_SECONDS)
