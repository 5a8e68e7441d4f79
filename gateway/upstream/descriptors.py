"""File descriptors that are used up: how it is recognised, and the error for callers. No I/O.

A call needs a socket for its packets and one for signalling. Without this, the libraries' errors would read as if OpenAI
could not be reached, or as if the machine had no network.
"""

import errno
from typing import Final

from gateway.errors import OverloadError

RETRY_SECONDS: Final = 5.0

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def exhausted(error: BaseException) -> bool:
    """Return whether an error says that the process, or the machine, has no descriptor or memory left for a socket."""
    return isinstance(error, OSError) and error.errno in _EXHAUSTED


def no_descriptor() -> OverloadError:
    """Return the error for a call that cannot have a socket."""
    detail = "The gateway has no file descriptor left for another call: its limit on open files is reached."
    return OverloadError("capacity", detail, retry_after=RETRY_SECONDS)
