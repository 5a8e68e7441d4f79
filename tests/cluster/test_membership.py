"""gateway/cluster/membership.py: the rate of hand-overs. Their effects are tested with whole nodes (tests/e2e)."""

import pytest

from gateway.cluster.membership import PER_SECOND, STARTED_SHARE, pause_between


def test_hand_overs_are_spread_so_that_peers_can_serve_meanwhile() -> None:
    """With enough time the rate is fixed; with little time all hand-overs begin within the first part of it."""
    assert pause_between(100, 60.0) == 1 / PER_SECOND
    assert pause_between(10_000, 60.0) * 10_000 == pytest.approx(60.0 * STARTED_SHARE)
    assert pause_between(0, 60.0) == 1 / PER_SECOND
