"""Clients from npm that run against the emulator: where they are, and what to do without them."""

import os
from pathlib import Path

import pytest

INTEROP = Path(__file__).parent / "interop"


def require_packages() -> None:
    """Skip the test if the packages are missing; fail in CI."""
    if (INTEROP / "node_modules").is_dir():
        return
    reason = f"the npm packages of {INTEROP / 'package.json'} are not installed, and this test runs them"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
