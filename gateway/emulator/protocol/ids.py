"""Identifiers in the form that the service uses.

Every id is a prefix and characters of `[0-9A-Za-z]`, taken from a block of random bytes
that is refilled when used up. A response of a thousand tokens needs a thousand event IDs, and calling the random
generator character by character was the most expensive step of making a delta.
"""

import base64
import os

_BLOCK = 12 * 1024
# '+' and '/' are not id characters; the slight bias towards two letters does not matter.
_ALPHANUMERIC = bytes.maketrans(b"+/", b"Qz")


class IdSource:
    """Draw ids; one source serves a whole process."""

    __slots__ = ("_at", "_block")

    def __init__(self) -> None:
        self._block = ""
        self._at = 0

    def draw(self, length: int) -> str:
        """Return `length` random alphanumeric characters."""
        end = self._at + length
        if end > len(self._block):
            block = base64.b64encode(os.urandom(_BLOCK))
            self._block = block.translate(_ALPHANUMERIC).decode("ascii")
            self._at, end = 0, length
        drawn = self._block[self._at : end]
        self._at = end
        return drawn

    def event(self) -> str:
        return "event_" + self.draw(21)

    def item(self) -> str:
        return "item_" + self.draw(21)

    def response(self) -> str:
        return "resp_" + self.draw(21)

    def conversation(self) -> str:
        return "conv_" + self.draw(21)

    def function_call(self) -> str:
        return "call_" + self.draw(16)

    def call(self) -> str:
        """Name a WebRTC call; its session is `sess_` plus the same tail (`session_of`)."""
        return "rtc_u1_" + self.draw(21)

    def secret(self) -> str:
        return "ek_" + self.draw(32)

    def audio_buffer_event(self) -> str:
        """`output_audio_buffer.*` come from the media side, whose event ids are 16 hexadecimal digits."""
        return "event_" + os.urandom(8).hex()


def session_of(call_id: str) -> str:
    """Name the session of a WebRTC call, as recorded: `rtc_u1_X` has `sess_u1_X`."""
    return "sess_" + call_id.removeprefix("rtc_")
