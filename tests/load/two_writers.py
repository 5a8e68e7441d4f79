"""The emulator, sending as two writers on one channel would: `python -m tests.load.two_writers --port 0`.

Of each two messages that are sent together, the one with the later stream sequence number gets the earlier TSN. A
receiver that waits for TSNs in order never delivers them (RFC 9260 6.6). Prints the number of crossed pairs so far
after each 100.
"""

# ruff: noqa: T201  # the caller reads its output

import sys

from aiortc.utils import uint16_add

from gateway.cli import main
from gateway.emulator.transport.association import _MAX_QUEUED_CHUNKS, _TEXT, Association

_flush = Association._data_channel_flush
REPORT_EVERY = 100


class Crossed:
    """The number of crossed pairs."""

    pairs = 0


async def crossing(self: Association) -> None:
    """Send the waiting messages in crossed pairs, then flush."""
    queue = self._data_channel_queue
    if self._association_state == self.State.ESTABLISHED:
        self._corked = True
        try:
            while len(queue) > 1 and len(self._outbound_queue) < _MAX_QUEUED_CHUNKS:
                (channel, first, one), (other, second, two) = queue[0], queue[1]
                if first != _TEXT or second != _TEXT or channel is not other:
                    break
                queue.popleft()
                queue.popleft()
                stream = channel.id or 0
                base = self._outbound_stream_seq.get(stream, 0)
                for number, data in ((uint16_add(base, 1), two), (base, one)):
                    self._outbound_stream_seq[stream] = number
                    await self._send(stream, _TEXT, data)
                    channel._addBufferedAmount(-len(data))
                self._outbound_stream_seq[stream] = uint16_add(base, 2)
                Crossed.pairs += 1
                if Crossed.pairs % REPORT_EVERY == 0:
                    print(f"crossed {Crossed.pairs}", flush=True)
        finally:
            self._corked = False
    await _flush(self)


if __name__ == "__main__":
    Association._data_channel_flush = crossing  # type: ignore[method-assign]  # the fault
    sys.argv[1:1] = ["emulate"]
    main()
