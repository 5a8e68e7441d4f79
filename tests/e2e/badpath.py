"""A slow and lossy path between two network namespaces: `python -m tests.e2e.badpath A B 0.1 0.05`.

For kernels without netem. It holds the ends of two TUN devices, one in each namespace, and carries packets between
them. Each is delayed by the first number in seconds and dropped at the rate of the second. The devices are named
`v`, like the test's veth pair.
"""

# ruff: noqa: T201  # the caller reads its output

import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import sys
import time
from contextlib import suppress

from tests.e2e.within import enter

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
LARGEST_PACKET = 65536
MOST_WAITING = 10_000


def device(namespace: str) -> int:
    """Make a TUN device in a namespace and return its other end."""
    enter(namespace)
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", b"v", IFF_TUN | IFF_NO_PI))
    return end


def carry(ends: tuple[int, int], delay: float, loss: float) -> None:
    """Carry packets until ended. Packets beyond the queue's limit are dropped, as by a router."""
    dice, count = random.Random(6), itertools.count()
    waiting: list[tuple[float, int, int, bytes]] = []
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for end in select.select(ends, (), (), timeout)[0]:
            packet = os.read(end, LARGEST_PACKET)
            if dice.random() >= loss and len(waiting) < MOST_WAITING:
                heapq.heappush(waiting, (time.monotonic() + delay, next(count), other[end], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, end, packet = heapq.heappop(waiting)
            # Refused until that end is up: the packet is lost, as on any path.
            with suppress(OSError):
                os.write(end, packet)


if __name__ == "__main__":
    both = device(sys.argv[1]), device(sys.argv[2])
    print("the path is open", flush=True)
    carry(both, float(sys.argv[3]), float(sys.argv[4]))
