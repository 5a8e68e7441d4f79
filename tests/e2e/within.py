"""Runs a module inside a network namespace: `python -m tests.e2e.within B gateway emulate --port 0`."""

import os
import runpy
import sys
from pathlib import Path

CLONE_NEWNET = 0x40000000


def enter(namespace: str) -> None:
    """Move this process into a namespace made by `ip netns add`."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with (Path("/run/netns") / namespace).open() as handle:
        if libc.setns(handle.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


if __name__ == "__main__":
    enter(sys.argv[1])
    os.environ.pop("PYTHONSTARTUP", None)
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
