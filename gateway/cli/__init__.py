"""The command line: one file per command, and what several of them share. Other packages do the work.

Exit status: 0 success, 1 failure, 2 wrong usage or configuration. Commands import large packages only when called, so that
`gateway keygen` does not load WebRTC, and the emulator's process does not load the gateway.
"""

import sys
from typing import Annotated

import typer

from gateway import __version__
from gateway.cli.bench import bench
from gateway.cli.chat import chat
from gateway.cli.check import check
from gateway.cli.demo import demo
from gateway.cli.emulate import emulate
from gateway.cli.keygen import keygen
from gateway.cli.serve import serve
from gateway.cli.top import top

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"realtime-gateway {__version__}")
        raise typer.Exit


@app.callback()
def gateway(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """OpenAI's Realtime API for clients that have nothing but HTTP: POST events, read Server-Sent Events."""


for command in (serve, demo, emulate, chat, check, bench, keygen, top):
    app.command()(command)


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="gateway")
    except KeyboardInterrupt:
        sys.exit(130)
