"""Gives a measured process a core of its own, so that its delays are its own."""

import os
from pathlib import Path


def reserve(pid: int, *others: int) -> None:
    """Run all threads of `pid` on the first core, and this process and the `others` on the remaining ones.

    Does nothing where there is only one core.
    """
    first, *rest = sorted(os.sched_getaffinity(0))
    if not rest:
        return
    for process, cores in ((pid, {first}), *((other, set(rest)) for other in (os.getpid(), *others))):
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)
