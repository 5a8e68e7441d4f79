"""The memory budget: what all buffers of the process may hold together, in bytes. No I/O.

Every layer that keeps bytes for a caller opens a `Holding` and updates its size: logs, mirrors, idempotent answers,
request bodies, write buffers. The budget adds them up, for each principal and in total.

There are two kinds of growth. What a caller asks for is refused if it does not fit: `Holding.take`, or
`Budget.check` before the work that leads to it. What cannot be refused, such as an event from OpenAI, is charged all
the same (`Holding.grow`); it may lift the total above the bound. Then `excess` says by how much, so that the logs can
drop old events, and every `take` is refused until the total is below the bound again.

Charge the size that is held, not the size that came: a parsed JSON value takes several times its text.
"""

from typing import Final

from gateway.errors import OverloadError

MIB: Final = 1024 * 1024

DEFAULT_BYTES: Final = 2048 * MIB

PRINCIPAL_SHARE: Final = 0.75
"""The share of the budget that one principal may hold, so that one caller cannot lock out all others."""

UNKNOWN: Final = ""
"""The principal of bytes whose sender has not been authenticated yet, such as unfinished request heads."""

RETRY_SECONDS: Final = 5.0


class _Account:
    """Bytes and open holdings of one principal."""

    __slots__ = ("held", "holdings")

    def __init__(self) -> None:
        self.held = 0
        self.holdings = 0


class Budget:
    """The process's budget. Not thread-safe: all charges are made on the event loop's thread."""

    def __init__(self, total_bytes: int = DEFAULT_BYTES, principal_share: float = PRINCIPAL_SHARE) -> None:
        self.total_bytes = total_bytes
        self.principal_bytes = int(total_bytes * principal_share)
        self.held = 0
        """Bytes charged by all principals."""
        # Bounded by the number of holdings: an account is removed with its principal's last holding.
        self._accounts: dict[str, _Account] = {}

    def held_by(self, principal: str) -> int:
        """Return the bytes charged to one principal."""
        account = self._accounts.get(principal)
        return account.held if account is not None else 0

    def check(self, principal: str, size: int) -> None:
        """Raise `capacity` if `size` more bytes do not fit, for this principal or in total. Charges nothing."""
        if self.held + size > self.total_bytes:
            raise OverloadError("capacity", "The gateway's memory is full.", retry_after=RETRY_SECONDS)
        if self.held_by(principal) + size > self.principal_bytes:
            detail = f"This caller uses all of the {self.principal_bytes} bytes that one caller may use."
            raise OverloadError("capacity", detail, retry_after=RETRY_SECONDS)

    def open(self, principal: str) -> "Holding":
        """Open a holding for one owner of bytes, such as a session's log. Its owner must `release` it."""
        account = self._accounts.setdefault(principal, _Account())
        account.holdings += 1
        return Holding(self, principal, account)

    def _closed(self, principal: str, account: _Account) -> None:
        account.holdings -= 1
        if not account.holdings:
            del self._accounts[principal]


class Holding:
    """The bytes that one owner keeps for one principal. A context manager that releases them."""

    __slots__ = ("_account", "_budget", "_principal", "_released", "size")

    def __init__(self, budget: Budget, principal: str, account: _Account) -> None:
        self._budget = budget
        self._principal = principal
        self._account = account
        self._released = False
        self.size = 0
        """Bytes charged by this holding."""

    def take(self, size: int) -> None:
        """Charge `size` bytes, or raise `capacity` and charge nothing."""
        budget, account = self._budget, self._account
        if budget.held + size > budget.total_bytes or account.held + size > budget.principal_bytes:
            budget.check(self._principal, size)  # It says which bound does not hold.
        self.grow(size)

    def grow(self, size: int) -> None:
        """Charge `size` bytes whether they fit or not; negative to return bytes. Does nothing after `release`."""
        if self._released:
            return
        self.size += size
        self._account.held += size
        self._budget.held += size

    def resize(self, size: int) -> None:
        """Set what is held to `size` bytes, whether they fit or not."""
        self.grow(size - self.size)

    def release(self) -> None:
        """Return all bytes and end the holding. Safe to call twice."""
        if self._released:
            return
        self.grow(-self.size)
        self._released = True
        self._budget._closed(self._principal, self._account)  # noqa: SLF001  # the two are one idea in one file

    def __enter__(self) -> "Holding":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
