"""Counts the functions and files that an event passes, by tracing one `POST` and one delta: `python -m
tests.load.hops`.

Not collected by pytest. It prints two counts for each direction: the chain, which is the calls that are open at the
same time (each function passes the event to the next one), and all functions that were entered, checks included. The
middleware around every request is left out.
"""

# ruff: noqa: T201  # a command prints its result

import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp

from gateway.app import Gateway
from tests.e2e.caller import configured, say
from tests.farend import FarEnd

ROOT = Path(__file__).resolve().parents[2]
MIDDLEWARE = "gateway/downstream/middleware.py"

Hop = tuple[str, str]
"""File and function."""


def hop(frame: FrameType) -> Hop | None:
    """Return the gateway's function that a frame runs, or None for other code."""
    code = frame.f_code
    if not code.co_filename.startswith(f"{ROOT}/gateway/") or code.co_name.startswith("<"):
        return None
    name = code.co_filename[len(str(ROOT)) + 1 :]
    return None if name == MIDDLEWARE else (name, code.co_qualname)


def chain(frame: FrameType | None) -> list[Hop]:
    """Return the open calls, outermost first."""
    found: list[Hop] = []
    while frame is not None:
        if (one := hop(frame)) is not None:
            found.append(one)
        frame = frame.f_back
    return found[::-1]


class Trace:
    """Records from the function `first` until code outside the gateway for which `last` is true is entered."""

    def __init__(self, first: str, last: Callable[[str, str], bool]) -> None:
        self._first, self._last = first, last
        self.entered: list[Hop] = []
        self.chains: list[list[Hop]] = []
        """At each call of `last`."""
        self._begun = False

    def __call__(
        self, frame: FrameType, event: str, _argument: Any
    ) -> None:  # Any: as sys.setprofile passes it
        if event != "call" or self.chains:
            return
        code = frame.f_code
        one = hop(frame)
        self._begun = self._begun or (one is not None and one[1] == self._first)
        if not self._begun:
            return
        if one is not None and one not in self.entered:
            self.entered.append(one)
        if self._last(code.co_filename, code.co_name):
            self.chains.append(chain(frame))

    def report(self, title: str) -> None:
        """Print the counts and the chain."""
        (open_calls,) = self.chains
        print(f"{title}: a chain of {_counts(open_calls)}; entered {_counts(self.entered)}")
        for file, function in open_calls:
            print(f"    {function}  {file}")


def _counts(hops: list[Hop]) -> str:
    return f"{len(hops)} functions in {len({file for file, _ in hops})} files"


UP = Trace("post_events", lambda file, name: name == "send" and file.endswith("rtcdatachannel.py"))
LOGGED = Trace(
    "WebRTCUpstream._received_texts", lambda file, name: name == "append_all" and file.endswith("eventlog.py")
)
WRITTEN = Trace("Cursor._take", lambda file, name: name == "write" and file.endswith("selector_events.py"))


async def main() -> None:
    """Trace one POST, then one delta to the log, then one delta to the socket."""
    far_end = FarEnd(Path(tempfile.mkdtemp()) / "log", "--tokens-per-second", "20")
    far_end.ready()
    gateway = Gateway(configured(far_end.base_url))
    await gateway.start()
    try:
        async with aiohttp.ClientSession(gateway.url) as http:
            async with http.post("/v1/sessions") as answer:
                path = (await answer.json())["events_url"]
            async with http.get(f"{path}?after=now") as stream:
                sys.setprofile(UP)
                async with http.post(path, json=say("Count to 30.")) as answer:
                    await answer.read()
                for trace in (LOGGED, WRITTEN):
                    await stream.content.readuntil(b"output_text.delta")
                    sys.setprofile(trace)
                    await stream.content.readuntil(b"output_text.delta")
                    await stream.content.readuntil(b"output_text.delta")
                    sys.setprofile(None)
    finally:
        await gateway.close()
        far_end.program.stop()
    UP.report("up, from the handler to channel.send")
    LOGGED.report("down, from the data channel message to the log")
    WRITTEN.report("down, from the log to the socket")


if __name__ == "__main__":
    asyncio.run(main())
