"""Clients from npm that run against the emulator: where they lie, and what to do where they are missing."""

import os
from pathlib import Path

import pytest

INTEROP = Path(__file__).parent / "interop"


def require_packages() -> None:
    """Skip where the packages are missing, fail where all parts must be there."""
    if (INTEROP / "node_modules").is_dir():
        return
    reason = f"the npm packages of {INTEROP / 'package.json'} are not installed, and this test runs them"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
