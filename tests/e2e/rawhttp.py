"""HTTP as bytes, for requests that no client library would send, and answers read as strictly as a proxy reads them."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SECONDS = 30.0
# The answer to a complete request comes within milliseconds; after so long a silence the server waits for more.
SILENCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """One answer. Header names are lower case; each appears as often as it was sent."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the value of a header, which may be sent only once."""
        found = [value for known, value in self.headers if known == name]
        assert len(found) <= 1, (name, found)
        return found[0] if found else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """Return the problem's code, or None for the bare 400 to bytes that are not HTTP."""
        if self.header("content-type") != "application/problem+json":
            assert (self.status, self.body) == (400, b""), (self.status, self.headers, self.body)
            return None
        return str(self.json["code"])


def authority(url: str) -> str:
    """Return the value of the Host header."""
    return urlsplit(url).netloc


async def send(url: str, request: bytes, silence: float | None = SILENCE_SECONDS) -> list[RawAnswer]:
    """Send bytes and return every answer until the server ends the connection or waits for the rest of a request.
    With None it must end the connection."""
    parts = urlsplit(url)
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            writer.write(request)
            said = await _all(reader, silence)
        finally:
            writer.close()
    return _answers(said)


async def ask(
    url: str, method: str, target: str | bytes, *headers: bytes | str, body: bytes = b""
) -> RawAnswer:
    """Send one well-framed request with this target and these header lines unchanged, and return its answer."""
    head = [method.encode() + b" " + _bytes(target) + b" HTTP/1.1", b"Host: " + authority(url).encode()]
    head += [*map(_bytes, headers), b"Content-Length: %d" % len(body), b"Connection: close"]
    (answer,) = await send(url, b"\r\n".join(head) + b"\r\n\r\n" + body, None)
    return answer


async def _all(reader: asyncio.StreamReader, silence: float | None) -> bytes:
    said = b""
    try:
        while chunk := await asyncio.wait_for(reader.read(65536), silence):
            said += chunk
    except ConnectionResetError:
        # A server that refuses an unread body may reset the connection after its answer, which discards the answer.
        said += reader._buffer  # type: ignore[attr-defined]  # it has no public name
    except TimeoutError:
        if silence is None:
            raise
    return said


def _bytes(word: bytes | str) -> bytes:
    return word.encode() if isinstance(word, str) else word


def _answers(said: bytes) -> list[RawAnswer]:
    answers = []
    while said:
        head, separator, said = said.partition(b"\r\n\r\n")
        assert separator, head
        first, *lines = head.split(b"\r\n")
        version, status, *_ = first.split(b" ")
        assert version.startswith(b"HTTP/"), first
        headers = []
        for line in lines:
            name, colon, value = line.partition(b":")
            assert colon, line
            assert not set(line) & set(b"\r\n\0"), line
            headers.append((name.decode("ascii").lower(), value.strip().decode("latin-1")))
        sizes = [int(value) for name, value in headers if name == "content-length"]
        size = sizes[0] if sizes else 0 if int(status) in (100, 204, 304) else len(said)
        answers.append(RawAnswer(int(status), tuple(headers), said[:size]))
        said = said[size:]
    return answers
