"""Fixtures of what every request shares."""

import pytest

from tests.downstream.harness import Harness
from tests.downstream.streams import Session, opened


@pytest.fixture
async def session(harness: Harness) -> Session:
    """Return an open session of a running HTTP side."""
    return await opened(harness)
