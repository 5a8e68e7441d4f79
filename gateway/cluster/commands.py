"""The commands that are sent over a connection for appends."""

from collections.abc import Iterable, Sequence

from gateway.cluster import scripts
from gateway.cluster.appends import Item
from gateway.cluster.keys import EntryId
from gateway.cluster.resp import command


def append(key: bytes, fence: int, keep_from: EntryId | None, items: Iterable[Item]) -> bytes:
    """Append records under a fence, and let the entries before `keep_from` be trimmed."""
    parts = [b"XADD", key, b"NOMKSTREAM"]
    if keep_from is not None:
        parts += (b"MINID", b"~", str(keep_from).encode())
    parts.append(b"%d-*" % fence)
    for item in items:
        parts += (item.kind, item.body)
    return command(parts)


def check(keys: Sequence[str]) -> bytes:
    """Ask for the owner, the fence and the last entry of the session with these keys."""
    return command((b"EVAL", scripts.CHECK.encode(), b"3", *(key.encode() for key in keys)))


def wait(replicas: int, milliseconds: int) -> bytes:
    """Wait until so many replicas have what was written before."""
    return command((b"WAIT", b"%d" % replicas, b"%d" % milliseconds))
