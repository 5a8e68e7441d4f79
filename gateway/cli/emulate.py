"""`gateway emulate`: the offline Realtime upstream, in this process."""

import math
from pathlib import Path
from typing import Annotated

import typer


def emulate(
    host: Annotated[str, typer.Option(metavar="H", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="P", min=0, max=65535, help="Port; 0 picks a free port.")
    ] = 8090,
    tokens_per_second: Annotated[
        float, typer.Option(metavar="N", help="Pace of its answers; 0 for as fast as possible.")
    ] = 50,
    consent: Annotated[
        str,
        typer.Option(
            metavar="strict|lenient",
            help="strict ignores consent checks that do not nominate, as OpenAI does.",
        ),
    ] = "strict",
    setup: Annotated[
        str, typer.Option(metavar="active|passive", help="Its role in the DTLS handshake.")
    ] = "active",
    max_session_seconds: Annotated[
        float, typer.Option(metavar="N", help="Maximum duration of a call.")
    ] = 3600,
    record: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Play back this recording instead of answering; repeatable."),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Inject this fault into every call; repeatable."),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY[@PROJECT]",
            help="Accept only this key instead of any; keys of one project share calls; repeatable.",
        ),
    ] = None,
    brain_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Get the answers from this chat completions server."),
    ] = None,
    brain_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model to use on that server.")
    ] = None,
    hear: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Transcript of input audio; repeatable, used in turn."),
    ] = None,
    mcp: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="JSON file with the tools of an MCP server; repeatable."),
    ] = None,
    no_item_done_quirk: Annotated[
        bool,
        typer.Option(
            "--no-item-done-quirk",
            help="Send the real previous_item_id in every event; OpenAI was recorded without it.",
        ),
    ] = False,
) -> None:
    """Run the offline Realtime upstream. By default any key is accepted and nothing leaves this machine."""
    from gateway.cli.running import fail, why
    from gateway.emulator.__main__ import main, pair
    from gateway.emulator.faults import NONE, changed
    from gateway.emulator.protocol.mcp import load as load_mcp_server
    from gateway.emulator.recording import load

    if consent not in ("strict", "lenient"):
        raise typer.BadParameter(f"{consent!r} is neither strict nor lenient", param_hint="--consent")
    if setup not in ("active", "passive"):
        raise typer.BadParameter(f"{setup!r} is neither active nor passive", param_hint="--setup")
    # Written this way to refuse NaN too, for which every comparison is false.
    if not 0 <= tokens_per_second < math.inf:
        raise typer.BadParameter(
            f"{tokens_per_second:g} is not a valid pace, expected 0 or more", param_hint="--tokens-per-second"
        )
    if not 0 < max_session_seconds < math.inf:
        raise typer.BadParameter(
            f"{max_session_seconds:g} is not a valid duration, expected more than 0",
            param_hint="--max-session-seconds",
        )
    if brain_url is not None and not brain_url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{brain_url!r} is not an http URL", param_hint="--brain-url")
    arguments = ["--host", host, "--port", str(port), "--tokens-per-second", str(tokens_per_second)]
    arguments += ["--consent", consent, "--setup", setup, "--max-session-seconds", str(max_session_seconds)]
    for file in record or []:
        if not file.is_file():
            raise typer.BadParameter(f"{file} is no file", param_hint="--record")
        try:
            load(file)
        except (OSError, ValueError) as error:
            raise typer.BadParameter(str(error), param_hint="--record") from None
        arguments += ["--record", str(file)]
    try:
        changed(NONE, dict(pair(text) for text in fault or []))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--fault") from None
    for file in mcp or []:
        try:
            load_mcp_server(file)
        except (OSError, ValueError) as error:
            raise typer.BadParameter(str(error), param_hint="--mcp") from None
        arguments.append(f"--mcp={file}")
    for flag, values in (("--fault", fault), ("--api-key", api_key), ("--hear", hear)):
        for value in values or []:
            arguments.append(f"{flag}={value}")
    for flag, one in (("--brain-url", brain_url), ("--brain-model", brain_model)):
        if one is not None:
            arguments.append(f"{flag}={one}")
    if no_item_done_quirk:
        arguments.append("--no-item-done-quirk")
    try:
        main(arguments)
    except OSError as error:
        fail(f"cannot listen on {host}:{port}: {why(error)}; choose another address with --host and --port")
