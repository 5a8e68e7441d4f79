"""The command line: one file per command, and what several of them share. Other packages do the work.

Exit status: 0 success, 1 failure, 2 wrong usage or configuration. Commands import large packages only when called, so that
`gateway keygen` does not load WebRTC, and the emulator's process does not load the gateway.
"""

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Annotated, Final

import typer

from gateway import __version__

COMMANDS: Final = ("serve", "demo", "emulate", "chat", "check", "bench", "keygen", "top")
"""Each is a function in the module of its name, in the order of the help."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"realtime-gateway {__version__}")
        raise typer.Exit


def command_line(commands: Iterable[str] = COMMANDS) -> typer.Typer:
    """Return the command line with these commands. Imports their modules."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def gateway(
        version: Annotated[
            bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and exit.")
        ] = False,
    ) -> None:
        """OpenAI's Realtime API for clients that have nothing but HTTP: POST events, read Server-Sent Events."""

    for name in commands:
        app.command()(getattr(import_module(f"gateway.cli.{name}"), name))
    return app


def main() -> None:
    """Run the command line."""
    # With a command's name only its module is imported: `serve` keeps none of what the others need, 3 MiB.
    named = [name for name in COMMANDS if name in sys.argv[1:2]]
    try:
        command_line(named or COMMANDS)(prog_name="gateway")
    except KeyboardInterrupt:
        sys.exit(130)
