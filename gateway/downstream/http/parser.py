"""Extends aiohttp's request parser: errors get a proper response, and the size of an unfinished head is known.

aiohttp answers every parse error with a bare 400. In most of these requests the first line is readable: the URL is not valid,
it or a header is too long, a header occurs twice, the method is unknown, or Host is missing. Such a request is handled with a
`refusal`, so it gets a request id, a log line and a problem object like any other. A bare 400 remains for bytes that are not HTTP, and for messages whose
end is ambiguous (RFC 9112 6.3), since the bytes that follow could be another client's request.

The parser also reports how many bytes of an unfinished head it holds, so that their size and time can be limited.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from aiohttp import StreamReader, hdrs
from aiohttp.http import HttpVersion, HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import (
    BadHttpMethod,
    BadStatusLine,
    HttpProcessingError,
    InvalidURLError,
    LineTooLong,
)
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web import RequestPayloadError
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from gateway.errors import CallerError, Flaw, GatewayError

Messages = Sequence[tuple[RawRequestMessage, StreamReader]]

_HEAD_END: Final = b"\r\n\r\n"
_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) (\S+) HTTP/(\d\.\d)\Z")
_SAFE_PATH: Final = re.compile(r"/[A-Za-z0-9/._~%-]{0,255}\Z")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*([!-~][ -~]{0,255})?[ \t]*\Z")
_DOUBLED: Final = re.compile(r"Duplicate '([A-Za-z-]{1,64})' header")
_FRAMING: Final = frozenset({hdrs.CONTENT_LENGTH, hdrs.TRANSFER_ENCODING})
"""Headers that say where a message ends."""
_BODY: Final = re.compile(
    rb"\r\n(?:Content-Length:[ \t]*([0-9]{1,18})[ \t]*\r|Transfer-Encoding:)", re.IGNORECASE
)
_MAX_SPLIT: Final = 16
"""Messages that are parsed one by one; the rest of the received data is parsed at once."""
_LINE_MARGIN: Final = 64
"""Size of the rest of the first line, without the target: method, spaces and version."""
_MAX_HEADERS_SHOWN: Final = 64


class RequestParser:
    """Wraps aiohttp's parser of one connection."""

    __slots__ = (
        "_head",
        "_inner",
        "_length",
        "_max_head_bytes",
        "_max_line_bytes",
        "_payload",
        "_refused",
        "_says_close",
        "broken",
        "direct",
        "unfinished",
    )

    def __init__(
        self, inner: Any, *, max_line_bytes: int, max_head_bytes: int
    ) -> None:  # Any: the C parser and the Python parser have no common type
        self._inner = inner
        self._max_line_bytes = max_line_bytes
        self._max_head_bytes = max_head_bytes
        self._payload: StreamReader = EMPTY_PAYLOAD
        self._head = b""
        self._length: int | None = None
        self._says_close = False
        self._refused: tuple[RawRequestMessage, GatewayError] | None = None
        self.unfinished = 0
        """Bytes received of an incomplete head."""
        self.broken = False
        """Nothing more can be parsed on this connection."""
        self.direct: Callable[[RawRequestMessage, StreamReader], bool] | None = None
        """Answers a request that arrived complete and alone, and returns whether it did. aiohttp does not see it then."""

    @property
    def reads_body(self) -> bool:
        """Whether the body of the last request has not arrived completely."""
        return not self._payload.is_eof()

    @property
    def says_close(self) -> bool:
        """Whether the last request asked to close the connection after it."""
        return self._says_close

    def refusal(self, message: RawRequestMessage) -> GatewayError | None:
        """Return the error that must answer a message, if any."""
        return self._refused[1] if self._refused is not None and self._refused[0] is message else None

    def feed_data(self, data: bytes) -> tuple[Messages, bool, bytes]:
        """Parse received data. Raises HttpProcessingError if the response is a bare 400."""
        if self.broken:
            return (), False, b""
        if self.unfinished or self.reads_body or _end(data, 0) == len(data):
            messages, upgraded, tail = self._feed(data)
            if len(messages) == 1 and not upgraded and self._answered(*messages[0]):
                self._inner.message_consumed()
                return (), False, b""
            return messages, upgraded, tail
        return self._feed_each(data)

    def _feed_each(self, data: bytes) -> tuple[Messages, bool, bytes]:
        """Parse data that begins with a message and goes on after it, message by message. At an error aiohttp's parser would
        forget the messages before it, and after a request to upgrade what follows."""
        messages: list[tuple[RawRequestMessage, StreamReader]] = []
        at = 0
        while at < len(data) and not self.broken:
            end = _end(data, at) if len(messages) < _MAX_SPLIT else len(data)
            try:
                found, upgraded, tail = self._feed(data[at:end])
            except HttpProcessingError:
                if not messages:
                    raise
                break  # The connection ends after the responses to the messages before.
            messages += found
            at = end
            if upgraded:
                return messages, True, tail + data[at:]
            if found and found[-1][0].should_close and at < len(data):
                self.broken = True  # RFC 9112 9.6: what follows is ignored.
            while data[at : at + 1] in (b"\r", b"\n"):
                at += 1
        return messages, False, b""

    def _feed(self, data: bytes) -> tuple[Messages, bool, bytes]:
        in_body, read_before = self.reads_body, self._payload.total_bytes
        try:
            messages, upgraded, tail = self._inner.feed_data(data)
        except HttpProcessingError as error:
            self.broken = True
            self.unfinished = 0
            if self.reads_body:
                # Else its handler would wait for the rest until the time is up. The end comes first: aiohttp, which reads
                # on after an early response, would log the exception as a bug.
                self._payload.feed_eof()
                self._payload.set_exception(RequestPayloadError(error.message))
                return (), False, b""
            return self._refuse_broken(b"" if in_body else self._head + data, error), False, b""
        if messages:
            messages = self._checked(messages, len(data))
        self._measure(data, messages, in_body, read_before)
        if self.unfinished > self._max_head_bytes:
            self.broken = True
            return [*messages, *self._refuse(self._head, self._head_too_large())], upgraded, b""
        return messages, upgraded, tail

    def _answered(self, message: RawRequestMessage, payload: StreamReader) -> bool:
        """Answer a request directly if it is complete, and return whether that was done."""
        if self.direct is None or self.broken or not payload.is_eof():
            return False
        return self.direct(message, payload)

    def message_consumed(self) -> None:
        self._inner.message_consumed()

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def set_upgraded(self, value: bool) -> None:
        self._inner.set_upgraded(value)

    # --- unfinished heads ---------------------------------------------------------------------------------------------

    def _measure(self, data: bytes, messages: Messages, in_body: bool, read_before: int) -> None:
        """Count the bytes after the last complete message: they begin the next head."""
        if messages:
            message, self._payload = messages[-1]
            self._says_close = message.should_close
            length = message.headers.get(hdrs.CONTENT_LENGTH)
            self._length = None if length is None else int(length)
            # The message begins in this data, so no part of its body came before.
            read_before = 0
        if self.reads_body or self.broken:
            self.unfinished = 0
        elif not messages and not in_body:
            self.unfinished += len(data)
            if len(self._head) <= self._max_line_bytes + _LINE_MARGIN:
                self._head += data
        else:
            rest = self._rest(data, read_before, begins=bool(messages)).lstrip(b"\r\n")
            self.unfinished, self._head = len(rest), rest
        if not self.unfinished:
            self._head = b""

    def _rest(self, data: bytes, read_before: int, *, begins: bool) -> bytes:
        """Return the bytes after the last message that ends in `data`; `begins` if it also begins there."""
        length = self._length
        if not length:  # A head without a body, or a chunked body: both end with an empty line.
            return _after_empty_line(data)
        if not begins:
            return data[length - read_before :]
        # The body may contain empty lines too. The last one that leaves room for the body ends the head.
        at = data.rfind(_HEAD_END, 0, len(data) - length)
        return data[at + len(_HEAD_END) + length :] if at >= 0 else b""

    # --- refusals -----------------------------------------------------------------------------------------------------

    def _checked(self, messages: Messages, size: int) -> Messages:
        """Refuse requests that aiohttp accepts and this server does not."""
        for index, (message, _) in enumerate(messages):
            refusal = self._objection(message, size)
            if refusal is not None:
                self.broken = True
                # Answer in HTTP/1.1; the client would not understand a response that names another version.
                refused = message._replace(should_close=True, version=_spoken(message.version))
                self._refused = refused, refusal
                return [*messages[:index], (refused, EMPTY_PAYLOAD)]
        return messages

    def _objection(self, message: RawRequestMessage, size: int) -> GatewayError | None:
        if message.version not in (HttpVersion11, HttpVersion10):
            return _wrong_version(f"{message.version.major}.{message.version.minor}")
        if message.chunked and message.headers.get(hdrs.TRANSFER_ENCODING, "").strip().lower() != "chunked":
            coding = message.headers[hdrs.TRANSFER_ENCODING]
            return CallerError(
                "not-implemented", f"Transfer-Encoding '{coding}' is not supported; only 'chunked' is."
            )
        if self.unfinished + size > self._max_head_bytes:
            head = sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
            if head > self._max_head_bytes:
                return self._head_too_large()
        return None

    def _refuse_broken(self, head: bytes, error: HttpProcessingError) -> Messages:
        line, ended, _ = head.partition(b"\r\n")
        found = _REQUEST_LINE.match(line)
        if isinstance(error, LineTooLong):
            if not ended or len(line) > self._max_line_bytes:
                detail = f"The URL is longer than {self._max_line_bytes} bytes."
                return self._refuse(
                    head, CallerError("uri-too-long", detail, members={"limit": self._max_line_bytes})
                )
            limit = error.args[1]
            detail = f"A header is longer than {limit} bytes, the limit of server.max_header_bytes."
            return self._refuse(head, CallerError("header-too-large", detail, members={"limit": limit}))
        if found is None:
            raise error
        if isinstance(error, InvalidURLError):
            return self._refuse(head, _invalid_target())
        said = error.message
        if said.startswith("Too many headers"):
            return self._refuse(head, CallerError("header-too-large", "The request has too many headers."))
        if (doubled := _DOUBLED.match(said)) is not None and doubled[1] not in _FRAMING:
            return self._refuse(head, _doubled(doubled[1]))
        if said.startswith("Missing 'Host'"):
            return self._refuse(head, _missing_host())
        if isinstance(error, BadHttpMethod):
            return self._refuse(head, None)  # The router answers a method that it does not know.
        if isinstance(error, BadStatusLine) or found[3] not in (b"1.0", b"1.1"):
            return self._refuse(head, _wrong_version(found[3].decode()))
        raise error

    def _refuse(self, head: bytes, refusal: GatewayError | None) -> Messages:
        """Build the message of a request that could not be parsed, from the readable part of its head."""
        line, *lines = head.split(b"\r\n")
        method, _, rest = line.partition(b" ")
        target = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        path = target if _SAFE_PATH.match(target) else "/"
        headers = CIMultiDict[str]()
        for found in map(_HEADER.match, lines[:_MAX_HEADERS_SHOWN]):
            if found is not None:
                headers.add(found[1].decode(), (found[2] or b"").decode().rstrip())
        message = RawRequestMessage(
            method[:32].decode("latin-1"),
            path,
            HttpVersion11,
            CIMultiDictProxy(headers),
            (),
            True,  # should close
            None,
            False,
            False,
            URL(path, encoded=True),
        )
        if refusal is not None:
            self._refused = message, refusal
        return [(message, EMPTY_PAYLOAD)]

    def _head_too_large(self) -> CallerError:
        detail = f"The headers are larger than {self._max_head_bytes} bytes together."
        return CallerError("header-too-large", detail, members={"limit": self._max_head_bytes})


def _end(data: bytes, begin: int) -> int:
    """Return where the message that begins there ends, or the end of the data if that is unknown or comes first."""
    at = data.find(_HEAD_END, begin) + len(_HEAD_END)
    if at < len(_HEAD_END) or at == len(data):
        return len(data)
    body = _BODY.search(data, begin, at - 2)
    if body is None:
        return at
    return min(at + int(body[1]), len(data)) if body[1] is not None else len(data)


def _after_empty_line(data: bytes) -> bytes:
    at = data.rfind(_HEAD_END)
    if at >= 0:
        return data[at + len(_HEAD_END) :]
    # The line endings were split between two reads.
    return next((data[len(end) :] for end in (b"\n\r\n", b"\r\n", b"\n") if data.startswith(end)), b"")


def _spoken(version: HttpVersion) -> HttpVersion:
    """Return the version to answer in: HTTP/1.0 for a client that uses it, else HTTP/1.1 (RFC 9110 2.5)."""
    return version if version == HttpVersion10 else HttpVersion11


def _wrong_version(version: str) -> CallerError:
    return CallerError("http-version-not-supported", f"HTTP/{version} is not supported; use HTTP/1.1.")


def _doubled(name: str) -> CallerError:
    flaw = Flaw("occurs more than once", pointer=f"/{name}")
    return CallerError("invalid-parameter", f"A request may have only one {name} header.", flaws=(flaw,))


def _invalid_target() -> CallerError:
    detail = "The URL of the request is not valid. Characters other than ASCII must be percent-encoded."
    return CallerError("invalid-parameter", detail)


def _missing_host() -> CallerError:
    flaw = Flaw("is missing", pointer="/Host")
    return CallerError("invalid-parameter", "An HTTP/1.1 request needs a Host header.", flaws=(flaw,))
