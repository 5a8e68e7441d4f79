"""An attacker in a separate process, so that its own CPU time is not counted as the gateway's:
`python -m tests.e2e.attacker KIND URL KEY SESSION`. It runs until it is ended, and prints how many requests it made.
"""

# ruff: noqa: T201  # the test reads its output

import asyncio
import sys
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import aiohttp

AT_ONCE = 4
CONNECTIONS = 400
DRIP_SECONDS = 0.5

MEGABYTE = b'{"type":"x","a":' + b"[" * 60 + b",".join([b'{"b":1}'] * 100_000) + b"]" * 60 + b"}"
TINY = b"[" + b",".join([b'{"type":"x"}'] * 256) + b"]"


class Attack:
    """One kind of attack: its parameters, and how often each status was returned."""

    def __init__(self, url: str, key: str, session: str) -> None:
        self.url, self.key, self.session = url, key, session
        self.answers: dict[int, int] = {}

    async def ask(
        self, http: aiohttp.ClientSession, path: str, body: bytes | None = None, **headers: str
    ) -> None:
        """Send one POST and count its status; a connection that was cut counts as 0."""
        try:
            async with http.post(self.url + path, data=body, headers=headers) as answer:
                await answer.read()
                status = answer.status
        except aiohttp.ClientConnectionError:
            status = 0
        self.answers[status] = self.answers.get(status, 0) + 1

    async def repeat(self, path: str, body: bytes | None = None, **headers: str) -> None:
        """Send the same request repeatedly as soon as it is answered, several at a time."""
        given = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **headers}

        async def worker(http: aiohttp.ClientSession) -> None:
            while True:
                await self.ask(http, path, body, **given)

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            await asyncio.gather(*(worker(http) for _ in range(AT_ONCE)))

    async def openings(self) -> None:
        """Open sessions above the limit."""
        await self.repeat("/v1/sessions")

    async def guesses(self) -> None:
        """Send requests with invalid keys."""
        await self.repeat("/v1/sessions", Authorization="Bearer gw-guess")

    async def megabytes(self) -> None:
        """Send bodies that take long to read, a few at once."""
        await self.repeat(f"/v1/sessions/{self.session}/turns", MEGABYTE)

    async def tiny_events(self) -> None:
        """Send as many events per request as are allowed, in the attacker's own session."""
        await self.repeat(f"/v1/sessions/{self.session}/events", TINY)

    async def loris(self) -> None:
        """Send requests that never end, byte by byte, on many connections; reconnect each that is cut."""
        parts = urlsplit(self.url)

        async def one() -> None:
            while True:
                try:
                    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
                    writer.write(b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
                    while not writer.transport.is_closing():
                        await asyncio.sleep(DRIP_SECONDS)
                        writer.write(b"a")
                    writer.close()
                except OSError:
                    await asyncio.sleep(DRIP_SECONDS)
                self.answers[0] = self.answers.get(0, 0) + 1

        await asyncio.gather(*(one() for _ in range(CONNECTIONS)))


async def main() -> None:
    """Attack, and print the counts every second."""
    _, kind, url, key, session = sys.argv
    attack = Attack(url, key, session)
    kinds: dict[str, Callable[[], Awaitable[None]]] = {
        "openings": attack.openings,
        "guesses": attack.guesses,
        "megabytes": attack.megabytes,
        "tiny_events": attack.tiny_events,
        "loris": attack.loris,
    }
    task = asyncio.ensure_future(kinds[kind]())
    while not task.done():
        await asyncio.wait({task}, timeout=0.25)
        print(f"answers: {sum(attack.answers.values())} {attack.answers}", flush=True)
    task.result()


if __name__ == "__main__":
    asyncio.run(main())
