"""New snapshots of sessions that pause.

A node that takes a session over loads its last snapshot and applies the records behind it, which takes five times as long as
loading their result. After the loss of a node a thousand sessions wait for that. So the owner takes a snapshot of a session
when its journal has grown and then nothing more is added for a moment, such as between two turns of a conversation.

One is taken after the other, with pauses, so that they never take more than a few percent of a core.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.cluster.journal import RedisJournal

LOOK_SECONDS: Final = 1.0
"""A session pauses if nothing was added between two looks."""
PAUSE_SECONDS: Final = 0.004
"""After each snapshot, which takes 0.2 to 0.3 ms unless the conversation is long."""


class Snapshots:
    """Takes the snapshots of one node's sessions."""

    def __init__(self, take: Callable[[RedisJournal], Awaitable[None]]) -> None:
        """`take` takes a snapshot and stores it, or calls `grown` if Redis does not answer."""
        self._take = take
        self._grown: dict[RedisJournal, int] = {}
        """Journals worth a snapshot, and how many records had been added at the last look."""

    def grown(self, journal: RedisJournal) -> None:
        """Take a snapshot of this session when it pauses."""
        self._grown[journal] = journal.appends.added

    def forget(self, journal: RedisJournal) -> None:
        """Take none: the session left this node, or there is one already."""
        self._grown.pop(journal, None)

    async def keep_taking(self) -> None:
        """Take snapshots until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for journal in list(self._grown):
                await self._look_at(journal)

    async def _look_at(self, journal: RedisJournal) -> None:
        before, added = self._grown.get(journal), journal.appends.added
        if before is None:
            return  # It was forgotten since the round began.
        if added != before or not journal.at_rest:
            self._grown[journal] = added
        else:
            self.forget(journal)
            await self._take(journal)
            await asyncio.sleep(PAUSE_SECONDS)
