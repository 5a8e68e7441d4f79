"""Fixtures of what every request shares."""

import pytest

from tests.downstream.house import House
from tests.downstream.streams import Session, opened


@pytest.fixture
async def session(house: House) -> Session:
    """Return an open session of a running HTTP side."""
    return await opened(house)
