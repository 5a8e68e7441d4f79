"""Parses an event stream (WHATWG HTML 9.2.6) into blocks. No I/O."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Block:
    """One block of an event stream."""

    id: str | None = None
    name: str = "message"
    data: str | None = None
    retry: int | None = None


class BlockParser:
    """Parses bytes into blocks. Chunks may be split at any byte."""

    def __init__(self) -> None:
        self._rest = b""
        self._block = Block()
        self._data: list[str] = []
        self._started = False

    def feed(self, chunk: bytes) -> Iterator[Block]:
        """Parse a chunk and yield the blocks that it completes."""
        held = self._rest + chunk
        # A CR at the end may be half of a CRLF, so it is kept until the next chunk.
        held, self._rest = (held[:-1], b"\r") if held.endswith(b"\r") else (held, b"")
        lines = held.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + self._rest
        for line in lines:
            if not self._started:
                line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is not part of the line
                self._started = True
            if line:
                self._take(line.decode("utf-8", "replace"))
            else:
                self._block.data = "\n".join(self._data) if self._data else None
                yield self._block
                self._block, self._data = Block(), []

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._block.id = value
        elif name == "event":
            self._block.name = value
        elif name == "retry" and value.isdigit():
            self._block.retry = int(value)
