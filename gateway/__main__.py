"""`gateway` and `python -m gateway`: the command line, or a sentence where what it needs is not installed.

The package installs the client alone by default. Its command belongs to the extra `server`.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Final

NEEDED: Final = ("aioice", "aiortc", "prometheus_client", "pydantic_settings", "rich", "structlog", "typer")
"""One module of each package that no command does without."""

EXIT_USAGE: Final = 2


def main() -> None:
    """Run the command line."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"gateway: {missing[0]} is not installed: this is the client alone. "
            "Install the gateway and its commands: pip install 'realtime-gateway[server]'\n"
        )
        sys.exit(EXIT_USAGE)
    import_module("gateway.cli").main()


if __name__ == "__main__":
    main()
