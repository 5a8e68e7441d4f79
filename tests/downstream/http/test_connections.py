"""gateway/downstream/http/connections.py."""

import pytest

from gateway.downstream.http.connections import REFUSALS, ConnectionLimits, Connections
from gateway.errors import OverloadError
from gateway.relay.memory import Budget
from tests.facts import Facts


class Idler:
    """A connection that only records that it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def close_idle(self) -> None:
        self.closed = True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def facts() -> Facts:
    """Return a telemetry that records facts."""
    return Facts()


@pytest.fixture
def clock() -> Clock:
    """Return a clock that does not advance."""
    return Clock()


@pytest.fixture
def connections(facts: Facts, clock: Clock) -> Connections:
    """Return a listener's connections, limited to three, of which two may be idle."""
    limits = ConnectionLimits(max_connections=3, max_idle=2, max_head_bytes=100)
    return Connections(limits, facts.port, Budget(), clock)


def test_the_longest_idle_connection_makes_room(connections: Connections) -> None:
    """A new connection is served while any other is idle."""
    first, second, third, fourth = (Idler() for _ in range(4))
    for connection in (first, second, third):
        assert connections.opened(connection)
        connections.busy(connection)
    connections.idle(second)
    connections.idle(first)

    assert connections.opened(fourth)
    assert [idler.closed for idler in (first, second, third)] == [False, True, False]


def test_with_none_idle_a_new_connection_is_refused(connections: Connections, facts: Facts) -> None:
    """If no connection is idle, a new one is refused, and that is logged once."""
    for _ in range(3):
        busy = Idler()
        assert connections.opened(busy)
        connections.busy(busy)

    assert not connections.opened(Idler())
    assert facts.of("connections_refused") == [(1, "connections")]


def test_a_lost_connection_makes_room(connections: Connections) -> None:
    """A lost connection makes room, whatever it was doing."""
    busy = [Idler() for _ in range(3)]
    for connection in busy:
        connections.opened(connection)
        connections.busy(connection)
    connections.lost(busy[0])

    assert connections.opened(Idler())
    assert len(connections) == 3


def test_idle_connections_have_a_bound_of_their_own(connections: Connections) -> None:
    """If there are too many idle connections the oldest is closed, even if the total limit is not reached."""
    idlers = [Idler() for _ in range(3)]
    for idler in idlers:
        connections.opened(idler)

    assert [idler.closed for idler in idlers] == [True, False, False]


def test_refusals_have_room_and_a_bound(connections: Connections) -> None:
    """A limited number of extra connections stays open until they have received their 503."""
    for _ in range(3 + REFUSALS):
        assert connections.room
        connections.busy(Idler())
        connections._open += 1

    assert not connections.room


def test_refusals_are_told_once_a_minute(connections: Connections, facts: Facts, clock: Clock) -> None:
    """Refusals are logged once a minute, with their number since the last line."""
    for now in (0.0, 1.0, 59.0, 60.0, 61.0):
        clock.now = now
        connections.refused("descriptors")

    assert facts.of("connections_refused") == [(1, "descriptors"), (3, "descriptors")]


def test_unfinished_heads_are_bounded_together(connections: Connections) -> None:
    """The unfinished heads of all connections share one limit, and each counts until it is complete."""
    assert connections.head_grew(60)
    assert not connections.head_grew(60)
    assert connections.budget.held == 120

    assert connections.head_grew(-60)
    assert connections.head_grew(40)


def test_unread_answers_have_a_share_of_a_principals_memory(connections: Connections) -> None:
    """Unread answers of one caller cannot use the memory that logs and sessions need, and do not delay another
    caller."""
    share = connections.budget.principal_bytes // 8
    connections.answering("ada", share)

    with pytest.raises(OverloadError) as refused:
        connections.answering("ada", 1)
    connections.answering("bob", share)
    connections.answered("ada", share)
    connections.answering("ada", 1)

    assert refused.value.code == "capacity"
