"""What a process holds, which must not grow: tasks, threads, descriptors and peer connections."""

import asyncio
import gc
import os
import threading
import time
from dataclasses import dataclass

from gateway.upstream.connection import Connection


@dataclass(frozen=True, slots=True)
class Holdings:
    """The resources of a process that must not grow."""

    tasks: int
    threads: int
    descriptors: int
    peer_connections: int

    @classmethod
    def now(cls) -> "Holdings":
        """Collect garbage, then count."""
        gc.collect()
        return cls(
            tasks=len(asyncio.all_tasks()),
            threads=threading.active_count(),
            descriptors=len(os.listdir("/proc/self/fd")),
            peer_connections=sum(issubclass(type(one), Connection) for one in gc.get_objects()),
        )


async def settled() -> Holdings:
    """Return the resources of the process once those of earlier tests are released."""
    held = Holdings.now()
    for _ in range(100):
        await asyncio.sleep(0.02)
        now = Holdings.now()
        if now == held:
            return now
        held = now
    raise AssertionError("the process does not come to rest")


async def back_to(before: Holdings, seconds: float = 30.0) -> None:
    """Wait until the process holds no more than before; fail after `seconds` and name the excess."""
    deadline = time.monotonic() + seconds
    while not _within(now := Holdings.now(), before):
        tasks = sorted(str(task.get_coro()) for task in asyncio.all_tasks())
        assert time.monotonic() < deadline, f"held before: {before}, now: {now}; tasks: {tasks}"
        await asyncio.sleep(0.05)


def _within(now: Holdings, before: Holdings) -> bool:
    return (
        now.tasks <= before.tasks
        and now.threads <= before.threads
        and now.descriptors <= before.descriptors
        and now.peer_connections <= before.peer_connections
    )
