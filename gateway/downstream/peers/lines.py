"""Connections to other nodes, kept open between requests.

After a node was lost, a thousand requests may wait for its sessions. After one of them could not connect, the
others do not try for a moment.
"""

import random
import ssl
import time
from dataclasses import dataclass
from typing import Final

from gateway.downstream.peers.splice import (
    BrokenError,
    Head,
    Line,
    Outgoing,
    SilentError,
    UnreachableError,
    ask,
    connect,
)

KEPT_LINES: Final = 32
"""Maximum number of idle connections to one node."""
IDLE_SECONDS: Final = 30.0
"""Shorter than a listener keeps an idle connection."""
UNREACHABLE_SECONDS: Final = 1.0
"""For so long no request connects to a node that could not be reached."""
SPREAD_SECONDS: Final = 0.25
"""After that the requests that wait try again within so long, so that the first to fail stops the others."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The head of a response, and the connection that its body comes over."""

    url: str
    line: Line
    head: Head
    seconds: float
    """How long its node may be silent."""


class Lines:
    """All connections of one node."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._kept: dict[str, list[tuple[float, Line]]] = {}
        self._busy: dict[str, set[Line]] = {}
        self._unreachable: dict[str, tuple[float, str]] = {}
        """For each node that could not be reached, when to connect to it again, and the reason."""

    def lost(self, url: str) -> None:
        """Close the connections to a node that is lost. It may only be paused, and then it would not close them itself."""
        for line in list(self._busy.get(url, ())):
            line.give_up()

    def close(self) -> None:
        """Close the idle connections."""
        for lines in self._kept.values():
            for _, line in lines:
                line.close()
        self._kept.clear()

    async def send(self, url: str, outgoing: Outgoing) -> Reply:
        """Send over an idle connection or, if that has broken, a new one. A request may arrive twice without harm: it
        carries an id that the owner stores with the effect. Raises UnreachableError or BrokenError."""
        while (line := self._take(url)) is not None:
            try:
                return Reply(url, line, await ask(line, outgoing), outgoing.seconds)
            except SilentError:
                raise  # It would not answer on another connection either.
            except BrokenError:
                continue
        line = await self._connect(url)
        busy = self._busy.setdefault(url, set())
        busy.add(line)
        line.on_end = lambda: busy.discard(line)
        return Reply(url, line, await ask(line, outgoing), outgoing.seconds)

    async def _connect(self, url: str) -> Line:
        due, reason = self._unreachable.get(url, (0.0, ""))
        if time.monotonic() < due:
            raise UnreachableError(reason)
        try:
            return await connect(url, self._tls)
        except UnreachableError as error:
            now = time.monotonic()
            self._unreachable = {one: found for one, found in self._unreachable.items() if found[0] > now}
            self._unreachable[url] = now + UNREACHABLE_SECONDS, str(error)
            raise

    def pause(self, url: str) -> float:
        """Return after how many seconds a request that met an error may be sent to this node again."""
        left = self._unreachable.get(url, (0.0, ""))[0] - time.monotonic()
        return (left if left > 0 else UNREACHABLE_SECONDS) + random.uniform(0, SPREAD_SECONDS)  # noqa: S311  # no secret

    def keep(self, reply: Reply) -> None:
        """Keep the connection of a response that was read whole, if it can be used again."""
        lines = self._kept.setdefault(reply.url, [])
        if reply.head.keeps and reply.line.fresh and len(lines) < KEPT_LINES:
            lines.append((time.monotonic(), reply.line))
        else:
            reply.line.close()

    def _take(self, url: str) -> Line | None:
        lines = self._kept.get(url)
        while lines:
            since, line = lines.pop()
            if line.fresh and time.monotonic() - since < IDLE_SECONDS:
                return line
            line.close()
        return None
