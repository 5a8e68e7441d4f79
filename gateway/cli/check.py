"""`gateway check`: checks everything the gateway needs, and prints a remedy for each failure."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape

from gateway.cli.running import EXIT_FAILED

if TYPE_CHECKING:
    from gateway.cli.check_upstream import Finding
    from gateway.config import Config

PUBLIC_STUN: Final = "stun.l.google.com:19302"
"""Gets only a binding request; any STUN server can be used."""

_MARKS: Final = {
    "ok": "[green]ok[/]",
    "warning": "[yellow]warning[/]",
    "failed": "[red]failed[/]",
    "skipped": "[dim]skipped[/]",
}


def check(
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file; also GATEWAY_CONFIG.")
    ] = None,
    upstream_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Base URL of the Realtime API.  \\[https://api.openai.com/v1]"),
    ] = None,
    stun: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="STUN server for testing outgoing UDP.")
    ] = PUBLIC_STUN,
) -> None:
    """Check configuration, DNS, HTTPS, UDP, TURN and, with a key, one real call; say what to do about each failure."""
    from gateway.app import Gateway
    from gateway.cli.check_upstream import Finding
    from gateway.cli.running import run
    from gateway.cli.serving import config_errors_exit, configure
    from gateway.config.reading import FILE_VARIABLE

    if not stun.rpartition(":")[0] or not stun.rpartition(":")[2].isdigit():
        raise typer.BadParameter(f"{stun!r} is not HOST:PORT", param_hint="--stun")
    console = Console(highlight=False)
    settings = configure(config, {"upstream": {"base_url": upstream_url}})
    with config_errors_exit():
        Gateway(settings)  # Reads all files that the configuration names.
    file = config or os.environ.get(FILE_VARIABLE)
    _print(console, Finding("ok", "configuration", str(file or "defaults and environment")))
    sys.exit(run(_check(settings, stun, console)))


async def _check(config: "Config", stun: str, console: Console) -> int:
    """Run and print all other checks. Return the exit status."""
    from gateway.cli.check_redis import redis
    from gateway.cli.check_upstream import examine

    failed = False
    for finding in await redis(config):
        failed = _print(console, finding) or failed
    async for finding in examine(config, stun):
        failed = _print(console, finding) or failed
    return EXIT_FAILED if failed else 0


def _print(console: Console, finding: "Finding") -> bool:
    """Print the result of a check. Return whether it failed."""
    padding = " " * (8 - len(finding.result))
    line = f"{_MARKS[finding.result]}{padding} [bold]{escape(finding.what)}[/]: {escape(finding.detail)}"
    console.print(line, soft_wrap=True)
    if finding.remedy:
        console.print(f"         → {escape(finding.remedy)}", soft_wrap=True)
    return finding.result == "failed"
