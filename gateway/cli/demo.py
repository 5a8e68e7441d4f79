"""`gateway demo`: runs a gateway and the offline upstream on this machine, and shows a conversation.

The output is the real traffic: requests by POST, events by SSE, and a WebRTC call between the two processes.
"""

import asyncio
import codecs
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from gateway.cli.question import question

if TYPE_CHECKING:
    from gateway.app import Gateway
    from gateway.cli.child import Child
    from gateway.client import Client, Session

QUESTIONS: Final = ("Hello! Who are you?", "What is 6 times 7?", "Count to 10.")
LAST_QUESTION: Final = "Spell relay."
ANSWER_SECONDS: Final = 30.0


def demo(
    port: Annotated[
        int | None,
        typer.Option(
            metavar="P",
            min=0,
            max=65535,
            help="Port for clients; if it is in use, a free port is used.  \\[8080]",
        ),
    ] = None,
) -> None:
    """Hold a conversation through a gateway, offline, then keep serving. GATEWAY_… settings count, too."""
    from gateway.cli.running import run

    sys.exit(run(_demo(port)))


async def _demo(wanted: int | None) -> int:
    from gateway.cli.child import ChildError, emulator
    from gateway.cli.demo_settings import asked_for, free_port, settings
    from gateway.cli.running import fail
    from gateway.cli.serving import config_errors_exit, serve_until_told
    from gateway.telemetry import configure_logging

    console = Console(highlight=False)
    with config_errors_exit():
        asked = asked_for(os.environ)
    level = asked.log.level if "level" in asked.log.model_fields_set else "warning"
    configure_logging(asked.log.format, level)
    wanted = asked.server.port if wanted is None else wanted
    try:
        port = free_port(asked.server.host, wanted)
        admin_port = free_port(asked.admin.host, asked.admin.port)
    except OSError as error:
        fail(f"{error}; set server.host and admin.host to addresses of this machine")
    if wanted not in (port, 0):
        console.print(f"Port {wanted} is in use; using {port} instead.")
    try:
        async with emulator() as far_end:
            with config_errors_exit():
                made = settings(os.environ, port, admin_port, far_end.found[0])

            async def beside(gateway: "Gateway") -> None:
                await _show(console, gateway, far_end, made.key)

            return await serve_until_told(made.config, beside)
    except ChildError as error:
        console.print(f"[red]The demo has ended:[/] {escape(str(error))}")
        return 1


async def _show(console: Console, gateway: "Gateway", far_end: "Child", key: str | None) -> None:
    """Show the conversation and the next steps, then wait while the gateway keeps serving."""
    from gateway.cli.demo_settings import local_url
    from gateway.client import Client

    url = local_url(gateway.url)
    console.print(f"upstream  {far_end.found[0]}  [dim](the emulator, offline, in process {far_end.pid})[/]")
    console.print(f"gateway   listening on {gateway.url}")
    console.print(f"operator  admin listening on {gateway.admin_url}\n")
    async with Client(url, key=key) as client:
        await _converse(console, client)
        await _turn(console, client)
    _explain(console, url, local_url(gateway.admin_url), key)
    await far_end.wait()


async def _converse(console: Console, client: "Client") -> None:
    began = time.perf_counter()
    session = await client.open()
    took = (time.perf_counter() - began) * 1000
    console.print("[bold]POST[/] /v1/sessions")
    opened = f"201, {session.id}: WebRTC call {session.created['call_id']} opened in {took:.0f} ms"
    console.print(f"[dim]{opened}[/]", soft_wrap=True)
    console.print(f"[bold]GET[/]  /v1/sessions/{session.id}/events\n")
    events = session.events()
    try:
        for text in QUESTIONS:
            async with asyncio.timeout(ANSWER_SECONDS):
                await _ask(console, session, text)
                await _listen(console, events)
    finally:
        await events.aclose()
    await session.close()
    console.print(f"[bold]DELETE[/] /v1/sessions/{session.id}\n")


async def _ask(console: Console, session: "Session", text: str) -> None:
    said = question(text)
    console.print(f"[bold]POST[/] /v1/sessions/{session.id}/events")
    for event in said:
        console.print(f"  [cyan]{escape(json.dumps(event, ensure_ascii=False))}[/]", soft_wrap=True)
    receipt = await session.send(*said)
    console.print(f"[dim]202, {receipt['accepted']} events accepted[/]")


async def _listen(console: Console, events: Any) -> None:  # Any: the generator's third type is not used
    """Show the events of one answer: the name of each event, and the text as it arrives."""
    streaming = False
    async for event in events:
        if event.type == "response.output_text.delta":
            if not streaming:
                # The first one is shown as received, the others in short form.
                console.print(f"  [dim]{event.id:>8}  {escape(event.text)}[/]", soft_wrap=True)
                console.print(f"  {'':>8}  ", end="")
            streaming = True
            console.print(f"[green]{escape(event.value['delta'])}[/]", end="", soft_wrap=True)
            continue
        if streaming:
            console.print()
            streaming = False
        console.print(f"  [dim]{event.id:>8}  {event.type}[/]")
        if event.type == "response.done":
            usage = event.value["response"]["usage"] or {}
            console.print(
                f"  [dim]{'':>8}  {usage.get('input_tokens')} tokens in, {usage.get('output_tokens')} out[/]\n"
            )
            return


async def _turn(console: Console, client: "Client") -> None:
    """Show a turn: one request, with its answer streamed as text."""
    console.print("[bold]POST[/] /v1/turns")
    console.print(f"  [cyan]{LAST_QUESTION}[/]")
    async with (
        asyncio.timeout(ANSWER_SECONDS),
        client.http.post(f"{client.url}/v1/turns", data=LAST_QUESTION, raise_for_status=True) as answer,
    ):
        console.print(f"[dim]{answer.status} {answer.content_type}[/]\n  ", end="")
        decoder = codecs.getincrementaldecoder("utf-8")()
        async for piece in answer.content.iter_any():
            console.print(f"[green]{escape(decoder.decode(piece))}[/]", end="", soft_wrap=True)
    console.print("\n")


def _explain(console: Console, url: str, admin: str, key: str | None) -> None:
    curl = "curl" if key is None else 'curl -H "Authorization: Bearer $KEY"'
    item = '{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"Hello"}]}}'
    lines = [
        *([] if key is None else ["# a key that is valid while the demo runs", f"KEY={key}", ""]),
        "# one turn in one request",
        f"{curl} -N {url}/v1/turns -d 'What can you do?'",
        "",
        "# a session: read its events in one terminal, send in another",
        f"S=$({curl} -s -X POST {url}/v1/sessions | grep -o 'gws_[A-Za-z0-9]*' | head -n1); echo $S",
        f"{curl} -N {url}/v1/sessions/$S/events",
        f'{curl} {url}/v1/sessions/$S/events -d \'[{item},{{"type":"response.create"}}]\'',
        "",
        "# metrics, on the operator's listener",
        f"curl -s {admin}/metrics | grep ^realtime_gateway",
    ]
    console.print("[bold]Try it yourself:[/]\n")
    for line in lines:
        style = "dim" if line.startswith("#") else None
        console.print("  " + line, style=style, markup=False, soft_wrap=True)
    console.print("\nServing until Ctrl-C.")
