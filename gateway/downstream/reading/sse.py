"""The event stream format: blocks of bytes, and what a reader sends back. No I/O.

WHATWG HTML 9.2.6: a stream is lines that end in LF, CR or CRLF; a block is lines up to an empty one; several `data:`
lines are joined by LF. Fields are written in the order `retry`, `id`, `event`, `data`, each once but for `data`.

JSON has line ends as white space only (RFC 8259 2), and a parser of event streams cannot tell the three kinds apart
once the lines are cut, so each becomes an LF between two `data:` lines here, and a space where the JSON is sliced out
of its block again for other renderings. All else passes byte for byte.

Knows nothing of logs, sockets or what the events mean.
"""

import re
from typing import Final

MEDIA_TYPE: Final = "text/event-stream"

NEVER_RETRY_MS: Final = 2**31 - 1
"""24 days: a browser has no way to be told never, and Chromium reads `retry` as a signed number of 32 bits."""

COMMENT: Final = b":\n\n"
"""Three bytes that say nothing, for which a reader's parser does nothing, but its and every proxy's clock starts anew."""

_LINE_END: Final = re.compile("\r\n|\r|\n")
_NEXT_LINE: Final = b"\ndata: "
_END: Final = b"\n\n"


def frame(id: str, name: str | None, text: str) -> tuple[bytes, int]:
    """Frame an event of the log: its block, and where the JSON begins in it. `name` None is the default, `message`."""
    head = f"id: {id}\ndata: " if name is None else f"id: {id}\nevent: {name}\ndata: "
    if "\n" in text or "\r" in text:
        text = _LINE_END.sub("\ndata: ", text)
    return f"{head}{text}\n\n".encode(), len(head)  # ids and names are ASCII: characters are bytes


def unframe(block: bytes, start: int) -> bytes:
    """Give the JSON back out of its block, on one line."""
    return block[start:-2].replace(_NEXT_LINE, b" ")


def notice(name: str, text: str, *, id: str | None = None, retry: int | None = None) -> bytes:
    """Frame an event that stands on one stream only. `id` moves the reader's cursor, `retry` is in milliseconds."""
    fields = [] if retry is None else [f"retry: {retry}"]
    if id is not None:
        fields.append(f"id: {id}")
    fields.append(f"event: {name}")
    fields.extend(f"data: {line}" for line in _LINE_END.split(text))
    return "\n".join(fields).encode() + _END


def padding(size: int) -> bytes:
    """Give a comment of `size` bytes or a few more, to fill what a proxy holds back; none for 0."""
    return b":" + b" " * max(size - 2, 0) + b"\n" if size else b""


def last_event_id(header: str | None, *queries: str | None) -> str | None:
    """Give the cursor a reader sends: the `Last-Event-ID` header, which an `EventSource` sets by itself when it comes
    back and which is therefore newer than anything in the URL, else the first of the query parameters there is.

    An empty one counts as none: it is what a stream without ids leaves behind (WHATWG HTML 9.2.2).
    """
    return next((value for value in (header, *queries) if value), None)
