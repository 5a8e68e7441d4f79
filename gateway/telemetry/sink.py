"""Where log lines go: a bounded queue, and a thread that renders and writes them.

Logging must never wait for the reader of the log: a pipe that nobody reads would block the event loop, and with it every
session and every signal. So a line is queued and written later. When the queue is full or writing fails, lines are dropped
and counted. A line with their number precedes the next line that can be written.
"""

import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final, Generic, Protocol, TypeVar

MAX_BYTES: Final = 8 * 1024 * 1024
"""Limit of the estimated size of queued lines: about 10,000 lines, a few seconds of a busy gateway."""

BATCH_BYTES: Final = 64 * 1024
"""The capacity of a pipe, written with one call."""

GATHER_SECONDS: Final = 0.05
"""Long enough that the lines of requests that came together are rendered when their responses have left."""

_WAIT_SECONDS: Final = 1.0

T = TypeVar("T")


class Writable(Protocol):
    """A text stream."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> None: ...


class Sink(Generic[T]):
    """Takes lines from any thread. `render` returns a line's text; `tell_lost` returns the line about lost ones."""

    def __init__(self, stream: Writable, render: Callable[[T], str], tell_lost: Callable[[int], str]) -> None:
        self._render = render
        self._tell_lost = tell_lost
        self._write = _writer(stream)
        self._queue: SimpleQueue[tuple[T, int] | threading.Event] = SimpleQueue()
        # Reentrant: a collection within `put` may run a finalizer that logs.
        self._lock = threading.RLock()
        self._held = 0
        self._dropped = 0
        self._told = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="log-sink", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that were never written."""
        return self._dropped

    def put(self, line: T, size: int) -> None:
        """Queue a line of about `size` bytes. Never waits and never raises."""
        with self._lock:
            if self._held + size > MAX_BYTES:
                self._dropped += 1
                return
            self._held += size
        self._queue.put((line, size))

    def flush(self, seconds: float) -> bool:
        """Wait until all lines queued so far are written or dropped. Return False if that took longer than `seconds`."""
        done = threading.Event()
        self._queue.put(done)
        return done.wait(seconds)

    def close(self, seconds: float) -> None:
        """Write queued lines for up to `seconds`, and end the thread."""
        self._closing = True
        self.flush(seconds)

    def _run(self) -> None:
        while True:
            batch, flushed = self._next()
            if batch:
                self._write_batch(batch)
                if flushed is None and self._queue.empty():
                    # Let lines gather: waking this thread for each would take the interpreter lock from the event loop.
                    time.sleep(GATHER_SECONDS)
            if flushed is not None:
                flushed.set()
                if self._closing:
                    return

    def _next(self) -> tuple[list[str], threading.Event | None]:
        """Wait for a line, and take the other queued ones: up to a batch, or up to a call of `flush`."""
        batch: list[str] = []
        size = 0
        item = self._queue.get()
        while not isinstance(item, threading.Event):
            line, held = item
            with self._lock:
                self._held -= held
            text = self._rendered(line)
            batch.append(text)
            size += len(text)
            if size >= BATCH_BYTES:
                return batch, None
            try:
                item = self._queue.get_nowait()
            except Empty:
                return batch, None
        return batch, item

    def _rendered(self, line: T) -> str:
        try:
            return self._render(line)
        except Exception as error:  # noqa: BLE001  # a line that cannot be rendered must not end the thread
            return f"log line not rendered: {type(error).__name__}\n"

    def _write_batch(self, batch: list[str]) -> None:
        lost = self._dropped - self._told
        lines = [self._tell_lost(lost), *batch] if lost else batch
        try:
            self._write("".join(lines))
        except (OSError, ValueError):  # ValueError: the stream is closed
            with self._lock:
                self._dropped += len(batch)
        else:
            self._told += lost


def _writer(stream: Writable) -> Callable[[str], None]:
    """Return a function that writes text, bypassing the stream's buffer if it has a file descriptor.

    A buffer keeps what it could not write, and would fail again at the next line and at the end of the process.
    """
    try:
        descriptor = stream.fileno()  # type: ignore[attr-defined]  # raises if there is none
    except (AttributeError, OSError):

        def write_text(text: str) -> None:
            stream.write(text)
            stream.flush()

        return write_text
    torn = False

    def write(text: str) -> None:
        nonlocal torn
        rest = memoryview((("\n" if torn else "") + text).encode("utf-8", "replace"))
        begun = False
        try:
            while rest:
                try:
                    rest = rest[os.write(descriptor, rest) :]
                    begun = True
                except BlockingIOError:
                    with suppress(OSError):
                        select.select([], [descriptor], [], _WAIT_SECONDS)
        except OSError:
            # End a partly written line before the next one is written.
            torn = torn or begun
            raise
        torn = False

    return write
