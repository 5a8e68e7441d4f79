"""Large frames from upstream: read, and written for the session's state, in steps. No I/O.

What is done with an event takes a time in proportion to its size. A small one is read, appended to the log and applied to the
state at once. For one of more than `jsontext.LARGE_BYTES`, everything that does not depend on the session is done here before,
a few milliseconds in each step, so that other work runs in between.
"""

from collections.abc import Mapping

from gateway.relay.events.envelope import compact
from gateway.relay.events.frames import Read, read_in_steps
from gateway.relay.events.jsontext import Steps
from gateway.relay.events.longtext import written_in_steps


class LargeValue(dict[str, object]):
    """The value of a large event, with the text of one of its members."""

    written: tuple[str, bytes] = ("", b"")


def read_large(text: str, whole: frozenset[str], kept: Mapping[str, str]) -> Steps[Read | None]:
    """Read a frame as `frames.server_event` does. `kept`: which member of an event of a type is kept as text."""
    read = yield from read_in_steps(text, whole)
    if read is None:
        return None
    type_, value = read
    name = kept.get(type_, "")
    part = value.get(name)
    if not isinstance(part, dict):
        return read
    yield
    large = LargeValue(value)
    large.written = name, (yield from written_in_steps(part))
    return type_, large


def written(value: Mapping[str, object], name: str) -> bytes:
    """Return a member of an event as `compact` writes it, without writing it again where that was done in steps."""
    if isinstance(value, LargeValue) and value.written[0] == name:
        return value.written[1]
    return compact(value.get(name))
