"""gateway/telemetry/sink.py: logging never blocks the caller, even if the log cannot be written."""

import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest

from gateway.telemetry.sink import BATCH_BYTES, MAX_BYTES, Sink

LINE = "x" * 99 + "\n"
SECONDS = 10.0


@pytest.fixture
def make() -> Iterator[Callable[[TextIO], Sink[str]]]:
    """Return a function that makes sinks, whose threads end with the test."""
    made: list[Sink[str]] = []

    def build(stream: TextIO) -> Sink[str]:
        made.append(Sink(stream, lambda line: line, lambda count: f"{count} lost\n"))
        return made[-1]

    yield build
    for sink in made:
        sink.close(0.5)


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """Return a pipe: the end to read from, and a stream that writes to it."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        yield reading, stream
        with suppress(OSError):  # A test may have closed it.
            os.close(reading)


class Failing(io.StringIO):
    """A stream whose writes fail as long as it is set to."""

    failing = True

    def write(self, text: str, /) -> int:
        if self.failing:
            raise OSError(28, "No space left on device")
        return super().write(text)


def drain(reading: int, until: str) -> str:
    """Read until the text arrives."""
    text, deadline = "", time.monotonic() + SECONDS
    while until not in text:
        assert time.monotonic() < deadline, text[-200:]
        text += os.read(reading, 1 << 20).decode()
    return text


def test_lines_are_written_in_their_order(make: Callable[[TextIO], Sink[str]]) -> None:
    """More lines than a batch holds are written in order."""
    stream = io.StringIO()
    sink = make(stream)
    lines = [f"{number}\n" for number in range(BATCH_BYTES // 4)]
    for line in lines:
        sink.put(line, len(line))

    assert sink.flush(SECONDS)
    assert stream.getvalue() == "".join(lines)


def test_a_reader_that_has_stopped_holds_nobody(
    make: Callable[[TextIO], Sink[str]], pipe: tuple[int, TextIO]
) -> None:
    """Every line is queued or dropped at once; when the reader continues, a line has the number of dropped ones."""
    reading, stream = pipe
    sink = make(stream)
    began = time.monotonic()
    for _ in range(50_000):
        sink.put(LINE, 1024)
    took = time.monotonic() - began
    dropped = sink.dropped
    assert not sink.flush(0.05)
    sink.put("last\n", 0)
    told = [int(count) for count in re.findall(r"^(\d+) lost$", drain(reading, "last\n"), re.MULTILINE)]

    assert took < 5
    assert 50_000 - 2 * MAX_BYTES // 1024 < dropped < 50_000
    assert sum(told) == dropped


def test_a_reader_that_has_left_raises_nothing(
    make: Callable[[TextIO], Sink[str]], pipe: tuple[int, TextIO]
) -> None:
    """After the reader has left, as with `head -2`, lines that cannot be written are counted."""
    reading, stream = pipe
    sink = make(stream)
    os.close(reading)
    for _ in range(3):
        sink.put(LINE, 100)

    assert sink.flush(SECONDS)
    assert sink.dropped == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_raises_nothing(make: Callable[[TextIO], Sink[str]]) -> None:
    """Nothing is raised, and the stream's own buffer does not try again at the end."""
    with Path("/dev/full").open("w") as stream:
        sink = make(stream)
        sink.put(LINE, 100)

        assert sink.flush(SECONDS)
        assert sink.dropped == 1


def test_lost_lines_are_told_when_the_log_can_be_written_again(make: Callable[[TextIO], Sink[str]]) -> None:
    """The number of lost lines is reported once, before the first line that can be written again."""
    stream = Failing()
    sink = make(stream)
    for _ in range(2):
        sink.put("lost\n", 5)
        sink.flush(SECONDS)
    stream.failing = False
    for line in ("a\n", "b\n"):
        sink.put(line, 2)
        sink.flush(SECONDS)

    assert stream.getvalue() == "2 lost\na\nb\n"


def test_a_line_that_was_cut_is_ended_before_the_next(
    make: Callable[[TextIO], Sink[str]], monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, TextIO]
) -> None:
    """A disk that fills up in the middle of a line leaves half of it, so a line end is written first."""
    reading, stream = pipe
    write, calls = os.write, iter((3, OSError(28, "No space left on device")))

    def short(descriptor: int, data: memoryview) -> int:
        outcome = next(calls, len(data))
        if isinstance(outcome, int):
            return write(descriptor, data[:outcome])
        raise outcome

    sink = make(stream)
    monkeypatch.setattr("gateway.telemetry.sink.os.write", short)
    sink.put("abcdef\n", 7)
    sink.flush(SECONDS)
    sink.put("next\n", 5)

    assert drain(reading, "next\n") == "abc\n1 lost\nnext\n"


def test_a_descriptor_that_does_not_block_is_waited_for(
    make: Callable[[TextIO], Sink[str]], pipe: tuple[int, TextIO]
) -> None:
    """A parent may have made stderr non-blocking, so the sink waits when the pipe is full."""
    reading, stream = pipe
    os.set_blocking(stream.fileno(), False)
    sink = make(stream)
    for number in range(2000):
        sink.put(f"{number} {LINE}", 100)

    assert drain(reading, "\n1999 ").count("x\n") >= 1999
    assert sink.dropped == 0


def test_a_line_that_cannot_be_rendered_ends_no_others() -> None:
    """A line that cannot be rendered is reported with the type of its error, without its content."""
    stream = io.StringIO()

    def render(line: str) -> str:
        if line == "bad":
            raise KeyError("secret")
        return line

    sink = Sink(stream, render, str)
    sink.put("bad", 3)
    sink.put("good\n", 5)
    sink.close(SECONDS)

    assert stream.getvalue() == "log line not rendered: KeyError\ngood\n"


def test_a_closed_sink_leaves_no_thread() -> None:
    """Closing writes the queued lines and ends the thread."""
    stream = io.StringIO()
    before = threading.active_count()
    sink = Sink(stream, str, str)
    sink.put("last\n", 5)
    sink.close(SECONDS)
    deadline = time.monotonic() + SECONDS
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    assert stream.getvalue() == "last\n"
