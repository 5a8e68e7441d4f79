"""The client's tests against a real gateway run one as the command line's do."""

from tests.cli.conftest import emulator, gateway

__all__ = ["emulator", "gateway"]
