"""What chaos does to a gateway: to its far end, the path to it, the reader of its log, and its descriptors.

Faults overlap. Those that cut calls or prevent new ones come in *stretches*: a stretch lasts at most
`STRETCH_SECONDS` and is followed by a calm of `CALM_SECONDS`. Otherwise faults that follow each other by chance
would outlast the time for a recovery, after which a gateway rightly ends a session. After the end of a stretch an
attempt to connect may still run for 15 s, and the next one waits for up to 8 s and then takes as long as fifty
simultaneous calls take on a bad path. Together this stays below the 60 s of a recovery.
"""

import asyncio
import fcntl
import json
import os
import random
import re
import resource
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import TextIO

import aiohttp

from tests.programs import START_SECONDS, Program
from tests.upstream.badpath import Path

STRETCH_SECONDS = 20.0
CALM_SECONDS = 35.0
IDLE_CONNECTIONS = 2000
STARVED_SECONDS = 6.0
LOOK_SECONDS = 0.2
MOST_DEFECT_LINES = 200
_DEFECT = re.compile(r"Traceback|never retrieved|relay_failed|never awaited")
_FOLLOWS = re.compile(r"\s|Traceback|[\w.]+(Error|Exception|Timeout)\b|future:")


class Log:
    """The reader of the gateway's log. It can stop reading, which fills the pipe, or close it, which breaks it."""

    def __init__(self, folder: File, copy: TextIO | None) -> None:
        """`copy`: a file that every line is written to."""
        self.sink = folder / "log"
        self.addresses: list[str] = []
        self.defects: list[str] = []
        self.told_dropped = 0
        """Lines that the gateway said it has dropped."""
        self.refused = 0
        """Log lines about connections refused for want of descriptors."""
        self._copy = copy
        self._rest = b""
        self._in_defect = False
        os.mkfifo(self.sink)
        self.open()

    def open(self) -> None:
        """Begin to read."""
        self._end = os.open(self.sink, os.O_RDONLY | os.O_NONBLOCK)
        # One page: it is full within a second of the reader's stop.
        fcntl.fcntl(self._end, fcntl.F_SETPIPE_SZ, 4096)
        self.go_on()

    def close(self) -> None:
        """Close the pipe: the writer gets EPIPE."""
        self.stop()
        os.close(self._end)

    def stop(self) -> None:
        """Stop reading, with the pipe left open."""
        asyncio.get_running_loop().remove_reader(self._end)

    def go_on(self) -> None:
        """Read again."""
        asyncio.get_running_loop().add_reader(self._end, self._read)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            *lines, self._rest = (self._rest + os.read(self._end, 65536)).split(b"\n")
            for line in lines:
                self._take(line.decode("utf-8", "replace"))

    def _take(self, line: str) -> None:
        if self._copy is not None:
            self._copy.write(line + "\n")
        self.addresses += re.findall(r"listening on (http://[\w.:]+)", line)
        self.told_dropped += sum(map(int, re.findall(r"log_lines_dropped +count=(\d+)", line)))
        self.refused += "connections_refused" in line and "descriptors" in line
        self._in_defect = bool(_DEFECT.search(line)) or (self._in_defect and bool(_FOLLOWS.match(line)))
        if self._in_defect and len(self.defects) < MOST_DEFECT_LINES:
            self.defects.append(line)

    async def listening(self) -> tuple[str, str]:
        """Wait for the two listeners; return the URLs of the client and the admin listener."""
        async with asyncio.timeout(START_SECONDS):
            while len(self.addresses) < 2:
                await asyncio.sleep(0.05)
        return self.addresses[0], self.addresses[1]


class Stretches:
    """Lets faults overlap, and limits how long they last without a pause."""

    def __init__(self) -> None:
        self._active = 0
        self._began = 0.0
        self._ended = float("-inf")

    @asynccontextmanager
    async def fault(self, seconds: float) -> AsyncIterator[None]:
        """Wait until a fault of at most this many seconds may begin, and count it while it lasts."""
        while not self._fits(seconds):
            await asyncio.sleep(LOOK_SECONDS)
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            self._ended = time.monotonic()

    def _fits(self, seconds: float) -> bool:
        now = time.monotonic()
        if not self._active and now - self._ended >= CALM_SECONDS:
            self._began = now
            return True
        return now + seconds - self._began <= STRETCH_SECONDS


@dataclass(slots=True)
class Faults:
    """The processes and the path between them, and the faults that can be applied to them."""

    folder: File
    path: Path
    log: Log
    far_end: Program
    done: Counter[str] = field(default_factory=Counter)
    started: int = 1
    crossed: int = 0
    refused: int = 0
    """Connections that got 503 `capacity` while no descriptor was free."""
    slowest_live: float = 0.0
    """Seconds until the operator's listener answered at such a time."""
    timeline: list[str] = field(default_factory=list)
    _stretches: Stretches = field(default_factory=Stretches)
    _far_end_free: asyncio.Lock = field(default_factory=asyncio.Lock)
    _began: float = field(default_factory=time.monotonic)

    def note_crossed(self) -> None:
        """Add up the crossed pairs that the current far end reported."""
        self.crossed += int((re.findall(r"crossed (\d+)", self.far_end.output) or ["0"])[-1])

    def close(self) -> None:
        """End the current far end."""
        self.far_end.stop()

    async def torment(self, pid: int, url: str, admin: str, until: float) -> None:
        """Apply all faults, each at its own rhythm, until the given time."""
        deeds = {
            "far end killed": (self._kill, 20.0),
            "far end stopped": (self._stop, 30.0),
            "path down": (self._outage, 25.0),
            "log reader stopped": (self._stop_log, 15.0),
            "log reader gone": (self._break_log, 20.0),
            "idle connections": (lambda: self._idle(url), 15.0),
            "no descriptors": (lambda: self._starve(pid, url, admin), 25.0),
        }
        log_free = asyncio.Lock()

        async def repeat(name: str) -> None:
            deed, pause = deeds[name]
            while True:
                await asyncio.sleep(random.uniform(0.5, 1.5) * pause)
                if time.monotonic() > until:
                    return
                if name.startswith("log"):
                    async with log_free:
                        await deed()
                else:
                    await deed()
                self.done[name] += 1

        await asyncio.gather(*(repeat(name) for name in deeds))

    def _note(self, what: str) -> None:
        self.timeline.append(f"{time.monotonic() - self._began:7.1f} {what}")

    async def _kill(self) -> None:
        """End the far end by SIGKILL; another one follows at its address."""
        away = random.uniform(0, 5)
        async with self._far_end_free, self._stretches.fault(away + 4):
            self._note("far end killed")
            port = self.far_end.said(r"emulator listening on http://[\w.]+:(\d+)")
            self.far_end.kill()
            self.note_crossed()
            await asyncio.sleep(away)
            self.started += 1
            self.far_end = far_end(self.folder, self.started, port)
            await asyncio.to_thread(self.far_end.said, r"emulator listening on (\S+)\n")
            self._note("far end back")

    async def _stop(self) -> None:
        """Stop the far end by SIGSTOP, mostly for less than consent's 15 s."""
        seconds = random.choice([2, 5, 15])
        async with self._far_end_free, self._stretches.fault(seconds):
            self._note(f"far end stopped for {seconds}")
            pid = self.far_end.process.pid
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)
            finally:
                os.kill(pid, signal.SIGCONT)

    async def _outage(self) -> None:
        """Drop every packet."""
        seconds = random.choice([3, 8, 18])
        async with self._stretches.fault(seconds):
            self._note(f"path down for {seconds}")
            self.path.down = True
            try:
                await asyncio.sleep(seconds)
            finally:
                self.path.down = False

    async def _stop_log(self) -> None:
        """Stop reading the gateway's log."""
        self.log.stop()
        try:
            await asyncio.sleep(15)
        finally:
            self.log.go_on()

    async def _break_log(self) -> None:
        """Close the reading end of the gateway's log."""
        self.log.close()
        try:
            await asyncio.sleep(5)
        finally:
            self.log.open()

    async def _idle(self, url: str) -> None:
        """Open connections that send nothing, far more than the gateway accepts, and hold them."""
        host, port = url.removeprefix("http://").split(":")
        writers: list[asyncio.StreamWriter] = []
        try:
            with suppress(OSError, TimeoutError):
                while len(writers) < IDLE_CONNECTIONS:
                    async with asyncio.timeout(1):
                        writers.append((await asyncio.open_connection(host, int(port)))[1])
            await asyncio.sleep(5)
        finally:
            for writer in writers:
                writer.close()

    async def _starve(self, pid: int, url: str, admin: str) -> None:
        """Leave the gateway no descriptor: whatever it opens fails with EMFILE."""
        async with self._stretches.fault(STARVED_SECONDS):
            self._note("no descriptors")
            limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
            free = next(number for number in range(len(used) + 1) if number not in used)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, limits[1]))
            try:
                ends = time.monotonic() + STARVED_SECONDS
                while time.monotonic() < ends:
                    await self._ask(url, admin)
                    await asyncio.sleep(0.1)
            finally:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)

    async def _ask(self, url: str, admin: str) -> None:
        """Check whether a new connection is refused with 503, and how long a probe takes."""
        began = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            for base in (url, admin):
                with suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                    async with http.get(f"{base}/livez") as answer:
                        body = await answer.read()
                    if answer.status == 503:
                        assert json.loads(body)["code"] == "capacity"
                        self.refused += 1
        self.slowest_live = max(self.slowest_live, time.monotonic() - began)


def far_end(folder: File, started: int, port: str) -> Program:
    """Start a far end."""
    flags = ("--port", port, "--tokens-per-second", "100", "--fault", "burst=4")
    return Program(folder / f"far-end-{started}", "tests.load.two_writers", *flags)
