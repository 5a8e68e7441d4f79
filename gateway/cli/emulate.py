"""`gateway emulate`: the offline Realtime upstream, in this process."""

import asyncio
import gc
import math
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

if TYPE_CHECKING:
    from gateway.emulator import EmulatorConfig

GC_THRESHOLDS: Final = (50_000, 20, 100)
"""A full collection over some hundred calls takes 100 ms, which a client under measurement would see as latency."""


def _finite(value: float) -> float:
    if not 0 <= value < math.inf:  # false for NaN, too
        raise typer.BadParameter(f"{value:g} is not a number of 0 or more")
    return value


def _duration(value: float) -> float:
    if not _finite(value):
        raise typer.BadParameter("0 is not a number of more than 0")
    return value


def _http_url(value: str | None) -> str | None:
    if value is not None and not value.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{value!r} is not an http:// or https:// URL")
    return value


def emulate(
    host: Annotated[str, typer.Option(metavar="H", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="P", min=0, max=65535, help="Port; 0 picks a free port.")
    ] = 8090,
    tokens_per_second: Annotated[
        float,
        typer.Option(metavar="N", callback=_finite, help="Pace of its answers; 0 for as fast as possible."),
    ] = 50,
    consent: Annotated[
        Literal["strict", "lenient"],
        typer.Option(
            metavar="strict|lenient",
            help="strict ignores consent checks that do not nominate, as OpenAI does.",
        ),
    ] = "strict",
    setup: Annotated[
        Literal["active", "passive"],
        typer.Option(metavar="active|passive", help="Its role in the DTLS handshake."),
    ] = "active",
    max_session_seconds: Annotated[
        float, typer.Option(metavar="N", callback=_duration, help="Maximum duration of a call.")
    ] = 3600,
    record: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Play back this recording instead of answering; repeatable.",
        ),
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
        typer.Option(
            metavar="URL", callback=_http_url, help="Get the answers from this chat completions server."
        ),
    ] = None,
    brain_model: Annotated[
        str, typer.Option(metavar="NAME", help="The model to use on that server.")
    ] = "default",
    hear: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Transcript of input audio; repeatable, used in turn."),
    ] = None,
    mcp: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="JSON file with the tools of an MCP server; repeatable.",
        ),
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
    from gateway.cli.running import run
    from gateway.emulator import EmulatorConfig
    from gateway.emulator.faults import NONE, changed

    try:
        faults = changed(NONE, dict(text.partition("=")[::2] for text in fault or ()))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--fault") from None
    run(
        serve(
            EmulatorConfig(
                host=host,
                port=port,
                tokens_per_second=tokens_per_second,
                consent=consent,
                setup=setup,
                max_session_seconds=max_session_seconds,
                recordings=tuple(record or ()),
                api_keys=tuple(api_key or ()),
                faults=faults,
                brain_url=brain_url,
                brain_model=brain_model,
                brain_key=os.environ.get("EMULATOR_BRAIN_KEY"),
                item_done_quirk=not no_item_done_quirk,
                hear=tuple(hear or ()),
                mcp_servers=tuple(mcp or ()),
            )
        )
    )


async def serve(config: "EmulatorConfig") -> None:
    """Serve until SIGTERM or SIGINT. Exit with an error message if that is not possible."""
    from gateway.cli.running import fail, raise_file_limit, why
    from gateway.emulator import Emulator

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    emulator = Emulator(config)
    try:
        await emulator.start()
    except ValueError as error:  # names the file of `--record` or `--mcp` that is malformed
        raise typer.BadParameter(str(error)) from None
    except OSError as error:
        fail(
            f"cannot listen on {config.host}:{config.port}: {why(error)}; "
            "choose another address with --host and --port"
        )
    raise_file_limit()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        # Tests and `gateway demo` read this line.
        print(f"emulator listening on {emulator.base_url}", flush=True)
        await stop.wait()
    finally:
        await emulator.close()
