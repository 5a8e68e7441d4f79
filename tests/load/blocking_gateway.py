"""A gateway whose loop is blocked for `BLOCK_SECONDS` when it gets SIGUSR2.

Unlike SIGSTOP this leaves the process's other threads running, as a long computation in the loop would.
"""

import os
import runpy
import signal
import time


def block(*_: object) -> None:
    """Block the main thread."""
    time.sleep(float(os.environ["BLOCK_SECONDS"]))


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, block)
    runpy.run_module("gateway", run_name="__main__", alter_sys=True)
