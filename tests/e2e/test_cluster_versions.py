"""An upgrade and a rollback: nodes of a next version of the gateway beside nodes of this one, on one Redis."""

import asyncio
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import gateway
from tests.cluster.redis_server import RedisServer
from tests.e2e.caller import Caller
from tests.e2e.nodes import Follower, Node, Nodes, ask
from tests.farend import FarEnd
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.needs("redis-server"), pytest.mark.timeout(120)]

NEXT: Mapping[str, Mapping[str, str]] = {
    "relay/events/records.py": {
        "VERSION: Final = 1\n": "VERSION: Final = 2\n",
        "READS: Final = (1,)\n": "READS: Final = (1, 2)\n",
        '    """When, in Unix seconds."""\n\n\nclass Handed(': (
            '    """When, in Unix seconds."""\n    mood: str = "next"\n\n\n'
            "class Noted(NamedTuple):\n    text: str\n\n\nclass Handed("
        ),
        "    | Sealed\n)": "    | Sealed\n    | Noted\n)",
        '    "z": Sealed,\n': '    "z": Sealed,\n    "n": Noted,\n',
        "SINCE: Final[Mapping[type[Record], int]] = {}": "SINCE = {Noted: 2}",
    },
    "relay/state/facts.py": {
        '"""Its calls use the caller\'s own credential, which is kept only in memory."""\n': (
            '"""Its calls use the caller\'s own credential."""\n    mood: str = "next"\n'
        ),
    },
    "relay/state/fold.py": {
        "    Acknowledged,\n": "    Acknowledged,\n    Noted,\n",
        "        self.closed: str | None = None\n": (
            "        self.closed: str | None = None\n        self.notes = []\n"
        ),
        "            case Sealed():\n": (
            "            case Noted():\n                self.notes.append(record.text)\n            case Sealed():\n"
        ),
        '            "closed": self.closed,\n': (
            '            "closed": self.closed,\n            "notes": self.notes,\n'
        ),
        '        state.closed = found["closed"]\n': (
            '        state.closed = found["closed"]\n        state.notes = found.get("notes", [])\n'
        ),
    },
    "relay/session.py": {
        "import VERSION, LineState,": "import VERSION, LineState, Noted,",
        "        self._require_live()\n        check_locked": (
            '        self._require_live()\n        self.note(Noted("asked"))\n        check_locked'
        ),
        '            "accepted": self.state.accepted,\n': (
            '            "accepted": self.state.accepted,\n            "notes": self.state.notes,\n'
        ),
    },
}
"""A next version: a member more in a record, in the opening and in the snapshot, and a new kind of record."""


class Cluster:
    """Nodes of both versions."""

    def __init__(self, home: Path, far_end: FarEnd, redis: RedisServer) -> None:
        self.nodes = Nodes(home, far_end, redis.url)
        self.redis = redis
        self._next = home / "next"
        here = Path(gateway.__file__).parent
        shutil.copytree(here, self._next / "gateway", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(here.parent / "config", self._next / "config")
        for name, changes in NEXT.items():
            file = self._next / "gateway" / name
            text = file.read_text("utf-8")
            for old, new in changes.items():
                assert text.count(old) == 1, (name, old)
                text = text.replace(old, new)
            file.write_text(text, "utf-8")

    def old(self) -> Node:
        """Start a node of this version, without waiting until it listens."""
        return self.nodes.begin()

    def new(self) -> Node:
        """Start a node of the next version, without waiting until it listens."""
        # Without the current folder, which has this version's package.
        return self.nodes.begin(PYTHONPATH=self._next, PYTHONSAFEPATH=1)

    def version(self, session_id: str) -> str:
        """Return the version in which a session is written."""
        return self.redis.cli("HGET", f"rg:{{{session_id}}}:m", "v")

    def notes(self, session_id: str) -> int:
        """Return how many records of the new kind are in a session's journal."""
        return self.redis.cli("XRANGE", f"rg:{{{session_id}}}:j", "-", "+").count('n["asked"]')


@pytest.fixture
def cluster(tmp_path: Path, far_end: FarEnd) -> Iterator[Cluster]:
    """Run a Redis, and make a copy of the package with the next version."""
    redis = RedisServer().start()
    made = Cluster(tmp_path, far_end, redis)
    yield made
    made.nodes.close()
    redis.close()


async def opened(node: Node) -> str:
    """Open a session that has something to remember."""
    async with Caller(node.url) as caller:
        session_id = str((await caller.open())["id"])
    await ask(node.url, session_id, "My name is Ada.")
    return session_id


async def test_nodes_of_two_versions_take_over_each_others_sessions(cluster: Cluster) -> None:
    """Sessions of both versions are handed over and taken over in both directions, and each continues where it was."""
    urls: list[str] = []
    sessions: list[Follower] = []

    async with AsyncExitStack() as stack:

        async def open_on(node: Node) -> str:
            session_id = await opened(node)
            sessions.append(await stack.enter_async_context(Follower(session_id, urls)))
            return session_id

        async def all_continue_on(node: Node) -> None:
            asked = (ask(node.url, one.session_id, "What is my name?") for one in sessions)
            assert all("Ada" in answer for answer in await asyncio.gather(*asked))
            assert not any(one.gaps for one in sessions)

        # An upgrade: the next version writes what the present one reads, and takes its sessions by hand-over.
        first, second = (node.ready() for node in (cluster.old(), cluster.new()))
        urls += [first.url, second.url]
        await open_on(first)
        early = await open_on(second)
        assert (cluster.version(early), cluster.notes(early)) == ("1", 0)
        urls.remove(first.url)
        first.terminate()
        await first.ended()
        await all_continue_on(second)
        await until(lambda: cluster.redis.cli("HLEN", "rg:{nodes}") == "1")
        late = await open_on(second)
        assert (cluster.version(late), cluster.notes(late)) == ("2", 1)

        # A rollback by a crash: what was written in the newer version is written again before.
        third = cluster.old().ready()
        urls.append(third.url)
        await until(lambda: cluster.version(late) == "1")
        urls.remove(second.url)
        second.program.kill()
        await all_continue_on(third)
        await open_on(third)

        # An upgrade by a crash.
        fourth = cluster.new().ready()
        urls.append(fourth.url)
        urls.remove(third.url)
        third.program.kill()
        await all_continue_on(fourth)
        await until(lambda: cluster.redis.cli("HLEN", "rg:{nodes}") == "1")
        last = await open_on(fourth)
        assert (cluster.version(last), cluster.notes(last)) == ("2", 1)

        # A rollback by hand-over, at once.
        fifth = cluster.old().ready()
        urls.append(fifth.url)
        urls.remove(fourth.url)
        fourth.terminate()
        await fourth.ended()
        await all_continue_on(fifth)

        for follower in sessions:
            await follower.until("gateway.recovered")
            assert "gateway.closed" not in follower.types()
    assert "unreadable" not in cluster.nodes.said()
    assert len(sessions) == 5
