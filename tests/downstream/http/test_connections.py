"""gateway/downstream/http/connections.py."""

from typing import cast

import pytest

from gateway.downstream.http.connections import REFUSALS, ConnectionLimits, Connections
from gateway.errors import OverloadError
from gateway.relay.memory import Budget
from gateway.relay.telemetry import DownstreamTelemetry
from tests.downstream.house import Facts


class Idler:
    """A connection that only remembers that it was closed."""

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
    """Return a telemetry that remembers."""
    return Facts()


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands."""
    return Clock()


@pytest.fixture
def connections(facts: Facts, clock: Clock) -> Connections:
    """Return a listener's connections, of which there may be three, and two idle."""
    limits = ConnectionLimits(max_connections=3, max_idle=2, max_head_bytes=100)
    return Connections(limits, cast("DownstreamTelemetry", facts), Budget(), clock)


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
    """It is logged once."""
    for _ in range(3):
        busy = Idler()
        assert connections.opened(busy)
        connections.busy(busy)

    assert not connections.opened(Idler())
    assert facts.of("connections_refused") == [(1, "connections")]


def test_a_lost_connection_makes_room(connections: Connections) -> None:
    """Whatever it was doing."""
    busy = [Idler() for _ in range(3)]
    for connection in busy:
        connections.opened(connection)
        connections.busy(connection)
    connections.lost(busy[0])

    assert connections.opened(Idler())
    assert len(connections) == 3


def test_idle_connections_have_a_bound_of_their_own(connections: Connections) -> None:
    """The oldest goes when there are more, although there is room for others."""
    idlers = [Idler() for _ in range(3)]
    for idler in idlers:
        connections.opened(idler)

    assert [idler.closed for idler in idlers] == [True, False, False]


def test_refusals_have_room_and_a_bound(connections: Connections) -> None:
    """A limited number of additional connections is kept open until they got their 503."""
    for _ in range(3 + REFUSALS):
        assert connections.room
        connections.busy(Idler())
        connections._open += 1

    assert not connections.room


def test_refusals_are_told_once_a_minute(connections: Connections, facts: Facts, clock: Clock) -> None:
    """With how many there were since."""
    for now in (0.0, 1.0, 59.0, 60.0, 61.0):
        clock.now = now
        connections.refused("descriptors")

    assert facts.of("connections_refused") == [(1, "descriptors"), (3, "descriptors")]


def test_unfinished_heads_are_bounded_together(connections: Connections) -> None:
    """What one connection holds counts against all, until it is finished."""
    assert connections.head_grew(60)
    assert not connections.head_grew(60)
    assert connections.budget.held == 120

    assert connections.head_grew(-60)
    assert connections.head_grew(40)


def test_unread_answers_have_a_share_of_a_principals_memory(connections: Connections) -> None:
    """One caller's clients that do not read cannot take what is for logs and sessions; another's are not held up."""
    share = connections.budget.principal_bytes // 8
    connections.answering("ada", share)

    with pytest.raises(OverloadError) as refused:
        connections.answering("ada", 1)
    connections.answering("bob", share)
    connections.answered("ada", share)
    connections.answering("ada", 1)

    assert refused.value.code == "capacity"
