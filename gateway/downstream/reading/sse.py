"""The event stream format: blocks of bytes. No I/O.

WHATWG HTML 9.2.6: a stream is lines that end in LF, CR or CRLF; a block is lines up to an empty one; several `data:`
lines are joined by LF. Fields are written in the order `retry`, `id`, `event`, `data`, each once except `data`.

In JSON, line ends occur only as white space (RFC 8259 2), and an event stream parser does not preserve which of the three
kinds it found. So each becomes an LF between two `data:` lines, and a space if the JSON is taken out of its block for
other renderings. The line readers of Python, Java and others also split at U+0085, U+2028 and U+2029, which JSON allows
inside strings. These are written as escapes, which are equivalent for every JSON parser. All other bytes are unchanged.

Knows nothing of logs, sockets or the meaning of events.
"""

import re
from typing import Final

MEDIA_TYPE: Final = "text/event-stream"

NEVER_RETRY_MS: Final = 2**31 - 1
"""24 days, the largest signed 32-bit number, which is Chromium's limit of `retry`. No value means "never"."""

COMMENT: Final = b":\n\n"
"""An empty comment. A parser ignores it; it resets the idle timeouts of the client and of every proxy."""

_LINE_END: Final = re.compile("\r\n|\r|\n")
_NEXT_LINE: Final = b"\ndata: "
_END: Final = b"\n\n"


def frame(id: str, name: str | None, text: str) -> tuple[bytes, int]:
    """Return the block of an event of the log, and the offset of its JSON. `name` None is the default, `message`."""
    head = f"id: {id}\ndata: " if name is None else f"id: {id}\nevent: {name}\ndata: "
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\n" in text:
        # By an expression it took 25 ms for 256 KiB of line ends.
        text = text.replace("\n", "\ndata: ")
    if not text.isascii():
        text = _escape_separators(text)
    return f"{head}{text}\n\n".encode(), len(head)  # ids and names are ASCII, so one character is one byte


def unframe(block: bytes, start: int) -> bytes:
    """Return the JSON of a block, on one line."""
    return block[start:-2].replace(_NEXT_LINE, b" ")


def unframed_size(block: bytes, start: int) -> int:
    """Return the size of the JSON of a block, without building it."""
    return len(block) - start - len(_END) - block.count(_NEXT_LINE, start) * (len(_NEXT_LINE) - 1)


def notice(name: str, text: str, *, id: str | None = None, retry: int | None = None) -> bytes:
    """Return the block of an event that is sent on one stream only. `id` sets the reader's cursor, `retry` is in ms."""
    fields = [] if retry is None else [f"retry: {retry}"]
    if id is not None:
        fields.append(f"id: {id}")
    fields.append(f"event: {name}")
    fields.extend(f"data: {line}" for line in _LINE_END.split(_escape_separators(text)))
    return "\n".join(fields).encode() + _END


def padding(size: int) -> bytes:
    """Return a comment of at least `size` bytes, to fill the buffer of a proxy; nothing for 0."""
    return b":" + b" " * max(size - 2, 0) + b"\n" if size else b""


def _escape_separators(text: str) -> str:
    """Escape the characters other than LF and CR at which line readers split. Only strings can contain them, and a
    backslash before one would not be JSON, so a replacement is always a whole character of a string."""
    return text.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
