"""The keys that make a request idempotent. No I/O."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Promise:
    """Keys that are stored with the effect of a request.

    `key` is the Idempotency-Key in its scope, `fingerprint` what a repeat must equal. `request_id` is that of a request
    that another node passed on, and may pass on again.
    """

    key: str | None = None
    fingerprint: str | None = None
    request_id: str | None = None


NO_PROMISE: Final = Promise()
