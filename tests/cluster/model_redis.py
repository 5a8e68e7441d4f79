"""A model of one session's keys in Redis, as plain values: streams with ascending ids, scripts, and a failover that
loses writes."""

from dataclasses import dataclass, field, replace

from gateway.cluster.appends import Append, Item
from gateway.cluster.keys import EntryId


class Fenced(Exception):
    """The id of an append is equal to or smaller than the last one."""


@dataclass(frozen=True)
class Border:
    """The first entry of a fence: the owner, and the sequence from which a repair voids earlier entries (None: it
    voids nothing)."""

    node: str
    start: int | None


@dataclass
class ModelRedis:
    """One session. `fence` is None where it does not exist."""

    fence: int | None = None
    node: str = ""
    last: EntryId = EntryId(0, 0)
    entries: list[tuple[EntryId, Border | tuple[Item, ...]]] = field(default_factory=list)

    def copy(self) -> "ModelRedis":
        return replace(self, entries=list(self.entries))

    def create(self, node: str) -> None:
        assert self.fence is None
        self.fence, self.node = 1, node
        self._add(EntryId(1, 0), Border(node, None))

    def xadd(self, append: Append) -> EntryId | None:
        """XADD NOMKSTREAM MINID ~ … <fence>-*."""
        if self.fence is None:
            return None
        if append.fence < self.last.fence:
            raise Fenced
        number = self.last.number + 1 if append.fence == self.last.fence else 0
        entry = EntryId(append.fence, number)
        self._add(entry, tuple(append.items))
        return entry

    def claim(self, node: str, expected: str, above: int) -> int | None:
        """Run the claim's script; return None if the claim is refused."""
        if self.fence is None or (self.node != expected and above <= self.fence):
            return None
        return self._own(node, max(self.fence, above) + 1, None)

    def repair(self, node: str, fence: int, start: int, yields_at: int) -> int | None:
        """Run the repair's script; return None if the repair is refused."""
        if self.fence is not None and self.node != node and self.fence >= yields_at:
            return None
        if self.fence is None:
            self.entries, self.last = [], EntryId(0, 0)
        return self._own(node, max(self.fence or 0, fence) + 1, start)

    def log(self) -> dict[int, bytes]:
        """Fold the log into sequence to text, without entries that borders void."""
        kept: dict[int, bytes] = {}
        for _, what in self.entries:
            if isinstance(what, Border):
                if what.start is not None:
                    kept = {sequence: text for sequence, text in kept.items() if sequence <= what.start}
            else:
                kept.update({item.sequence: item.body for item in what if item.sequence})
        return kept

    def _own(self, node: str, fence: int, start: int | None) -> int:
        self.fence, self.node = fence, node
        self._add(EntryId(fence, 0), Border(node, start))
        return fence

    def _add(self, entry: EntryId, what: Border | tuple[Item, ...]) -> None:
        self.entries.append((entry, what))
        self.last = entry
