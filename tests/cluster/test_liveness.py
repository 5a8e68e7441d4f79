"""When a node is considered dead, and when none is."""

from gateway.cluster.liveness import Liveness, ranked


def watched(*beats: tuple[float, dict[str, int]]) -> Liveness:
    """Make an observer with a lease of 4 s that got these answers."""
    liveness = Liveness(4.0)
    for now, seen in beats:
        liveness.answered(now, seen)
    return liveness


def test_node_that_stands_still_for_the_lease_is_dead() -> None:
    """A node is dead if its beat did not change for a lease while Redis answered all the time."""
    liveness = watched(*[(float(now), {"x": 7, "y": now}) for now in range(6)])

    assert liveness.dead(5.0) == ["x"]
    assert liveness.age("x", 5.0) == 5.0
    assert liveness.age("z", 5.0) is None


def test_nobody_is_dead_after_a_break_until_a_lease_later() -> None:
    """No node could send a beat while Redis was away, so that time does not count."""
    liveness = watched((0.0, {"x": 7}), (10.0, {"x": 7}), (11.0, {"x": 7}))

    assert liveness.dead(11.0) == []
    for now in (12.0, 13.0, 14.0):
        liveness.answered(now, {"x": 7})
    assert liveness.dead(14.0) == ["x"]


def test_nobody_is_dead_while_redis_is_silent() -> None:
    """An observer without answers from Redis considers no node dead."""
    liveness = watched(*[(float(now), {"x": 7}) for now in range(6)])

    assert liveness.dead(7.0) == []
    assert Liveness(4.0).dead(7.0) == []


def test_node_that_left_is_forgotten() -> None:
    """A node that has left the list is forgotten."""
    liveness = watched(*[(float(now), {"x": 7}) for now in range(6)], (6.0, {}))

    assert liveness.dead(6.0) == []


def test_failed_beat_is_a_break() -> None:
    """A failed command counts as a break, however short."""
    liveness = watched(*[(float(now), {"x": 7}) for now in range(4)])
    liveness.broken()
    liveness.answered(4.0, {"x": 7})

    assert liveness.dead(4.0) == []


def test_observers_agree_on_the_order_and_each_node_comes_first_for_a_share() -> None:
    """All observers use the same order, whatever the order of their lists, and each node comes first for a share of
    the sessions."""
    nodes = ["a", "b", "c"]
    firsts = dict.fromkeys(nodes, 0)
    for number in range(300):
        order = ranked(f"gws_{number}", nodes)
        assert order == ranked(f"gws_{number}", reversed(nodes))
        firsts[order[0]] += 1

    assert min(firsts.values()) > 60
