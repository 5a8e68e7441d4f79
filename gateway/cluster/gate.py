"""Spreads the calls of sessions that were taken over together (`relay.services.Gate`).

A node that takes a thousand sessions over must neither starve its own sessions nor exceed OpenAI's rate limit. So dialling
is limited in concurrency and rate, urgent sessions first, and the rate is halved after OpenAI refused a call for it. Nothing is
dialled while sessions are still to be made readable, since a set-up costs as much time as ten sessions.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Final

from gateway.errors import GatewayError

AT_ONCE: Final = 16
PER_SECOND: Final = 20.0
IDLE_SHARE: Final = 0.5
"""Share of the rate for sessions that no client uses: 2,000 set-ups are 12 to 20 s of CPU."""
SLOWEST_PER_SECOND: Final = 1.0
GROWTH_PER_DIAL: Final = 0.05
"""How fast the rate recovers after a refusal, as a share of the full rate."""

HOLD_SECONDS: Final = 3.0
"""The longest that urgent sessions wait for others to be made readable."""

_PATIENCE_SECONDS: Final = 0.25
"""How often it is checked whether the sessions that wait are still held."""


class DialGate:
    """One for each node."""

    def __init__(self, at_once: int = AT_ONCE, per_second: float = PER_SECOND) -> None:
        self._at_once = at_once
        self._full_rate = self._rate = per_second
        self._dialling = 0
        self._next_at = 0.0
        # In the order in which they came. One timer admits them: with a thousand that wait, a timer for each takes a core.
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}
        self._timer: asyncio.Handle | None = None
        self._due = 0.0
        """When the timer fires; uvloop's handles do not tell."""
        self._holding = 0
        self._held_since = 0.0

    @property
    def per_second(self) -> float:
        """The current rate."""
        return self._rate

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let dials wait: sessions that are still to be made readable come first."""
        if not self._holding:
            self._held_since = asyncio.get_running_loop().time()
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1
            self._admit_after(0.0)

    @property
    def held(self) -> bool:
        """Sessions are being made readable."""
        return self._holding > 0

    def dial(self, urgent: Callable[[], bool]) -> AbstractAsyncContextManager[None]:
        """Wait for permission to dial, hold it for as long as the dial takes, and release it."""
        return self._dial(urgent)

    @asynccontextmanager
    async def _dial(self, urgent: Callable[[], bool]) -> AsyncIterator[None]:
        await self._enter(urgent)
        try:
            yield
        except GatewayError as error:
            if error.code == "upstream-rate-limited":
                self._rate = max(SLOWEST_PER_SECOND, self._rate / 2)
            raise
        else:
            self._rate = min(self._full_rate, self._rate + self._full_rate * GROWTH_PER_DIAL)
        finally:
            self._leave()

    async def _enter(self, urgent: Callable[[], bool]) -> None:
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[admitted] = urgent
        self._admit_after(0.0)
        try:
            await admitted
        except asyncio.CancelledError:
            if self._waiting.pop(admitted, None) is None:
                self._leave()  # It was admitted in the same turn of the loop.
            raise

    def _leave(self) -> None:
        self._dialling -= 1
        self._admit_after(0.0)

    def _admit_after(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._timer, self._due = loop.call_later(seconds, self._admit), due

    def _admit(self) -> None:
        """Admit the next one if it may dial now, and set the timer for the one after it."""
        self._timer = None
        if not self._waiting or self._dialling >= self._at_once:
            return  # The next that comes or leaves sets the timer.
        now = asyncio.get_running_loop().time()
        if now < self._next_at:
            self._admit_after(self._next_at - now)
            return
        first = self._first(now)
        if first is None:
            self._admit_after(_PATIENCE_SECONDS)
            return
        share = 1.0 if self._waiting.pop(first)() else IDLE_SHARE
        self._next_at = now + 1 / (self._rate * share)
        self._dialling += 1
        if (
            not first.done()
        ):  # else its waiter was cancelled in this turn of the loop, and leaves when it runs
            first.set_result(None)
        self._admit_after(1 / (self._rate * share))

    def _first(self, now: float) -> asyncio.Future[None] | None:
        """Return the first urgent one, or else the first; None while they are held."""
        if self._holding and now < self._held_since + HOLD_SECONDS:
            return None
        first = next((one for one, urgent in self._waiting.items() if urgent()), None)
        if first is None and not self._holding:
            return next(iter(self._waiting))
        return first
