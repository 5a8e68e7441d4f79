"""Ports for servers that cannot report which port they took, and addresses at which nothing listens.

They are below the range from which the kernel assigns ephemeral ports. A port of that range may be taken by another
test between the moment it is found free and the moment it is used.
"""

import random
import socket

# The kernel's own range begins at 32,768. A node of a Redis Cluster also takes the port 10,000 above its own.
FIRST, LAST = 10_240, 22_000


def free_port() -> int:
    """Return a free loopback port."""
    while True:
        port = random.randint(FIRST, LAST)
        with socket.socket() as probe:
            # As servers do it: a port in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
