"""`gateway emulate`: the offline Realtime upstream, in this process."""

from pathlib import Path
from typing import Annotated

import typer


def emulate(
    host: Annotated[str, typer.Option(metavar="H", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="P", help="Port, 0 for a free one.")] = 8090,
    tokens_per_second: Annotated[
        float, typer.Option(metavar="N", help="How fast it speaks, 0 for as fast as it can.")
    ] = 50,
    consent: Annotated[
        str,
        typer.Option(
            metavar="strict|lenient",
            help="strict ignores consent checks that do not nominate, as OpenAI does.",
        ),
    ] = "strict",
    setup: Annotated[
        str, typer.Option(metavar="active|passive", help="Its part in the DTLS handshake.")
    ] = "active",
    max_session_seconds: Annotated[float, typer.Option(metavar="N", help="When a call ends.")] = 3600,
    record: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Serve this recording instead of answering; repeatable."),
    ] = None,
) -> None:
    """Run the offline Realtime upstream. Any key is taken, nothing leaves this machine."""
    from gateway.emulator.__main__ import main

    if consent not in ("strict", "lenient"):
        raise typer.BadParameter(f"{consent!r} is neither strict nor lenient", param_hint="--consent")
    if setup not in ("active", "passive"):
        raise typer.BadParameter(f"{setup!r} is neither active nor passive", param_hint="--setup")
    arguments = ["--host", host, "--port", str(port), "--tokens-per-second", str(tokens_per_second)]
    arguments += ["--consent", consent, "--setup", setup, "--max-session-seconds", str(max_session_seconds)]
    for file in record or []:
        if not file.is_file():
            raise typer.BadParameter(f"{file} is no file", param_hint="--record")
        arguments += ["--record", str(file)]
    try:
        main(arguments)
    except OSError as error:
        typer.echo(f"gateway: cannot listen on {host}:{port}: {error.strerror or error}", err=True)
        raise typer.Exit(1) from None
