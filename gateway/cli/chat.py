"""`gateway chat`: a conversation in the terminal, over POST and SSE.

Between two lines of input only the session is open. Each answer is read from its own event stream, which starts at the
head in the receipt of the question, so no event can be missed.
"""

import asyncio
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from gateway.cli.question import question

if TYPE_CHECKING:
    from gateway.client import Session

GRACE_SECONDS: Final = 3600
"""How long the session waits for the next line: the maximum that a create accepts."""

ANSWER_SECONDS: Final = 300.0
LEAVE_SECONDS: Final = 5.0
STOP: Final = "chat_stop"
"""The `event_id` of a request to stop an answer. OpenAI refuses it if the answer has just ended."""


def chat(
    url: Annotated[str, typer.Option(metavar="U", help="The gateway.")] = "http://127.0.0.1:8080",
    key: Annotated[
        str | None,
        typer.Option(metavar="K", envvar="GATEWAY_KEY", help="API key, if the gateway requires one."),
    ] = None,
) -> None:
    """Chat through a gateway. Ctrl-C stops an answer; an empty line or Ctrl-D ends."""
    import aiohttp

    from gateway.cli.running import fail, full_url, refused, why
    from gateway.client import Client, ProblemError

    console = Console(highlight=False)
    with asyncio.Runner() as runner:
        client = Client(full_url(url), key)
        runner.run(client.__aenter__())
        try:
            runner.run(client.reach())
            session = runner.run(client.open(detach_grace_seconds=GRACE_SECONDS))
            console.print(f"[dim]{session.id} on {url}, {session.created['model']}[/]")
            _talk(runner, console, session)
            with suppress(ProblemError):
                runner.run(asyncio.wait_for(session.close(), LEAVE_SECONDS))
        except ProblemError as error:
            # A response without a problem object is from another server, or from a proxy in front of the gateway.
            known = error.code or error.problem.get("detail")
            fail(refused(error) if known else f"{url} answered {error.status}, not as a gateway does.")
        except (aiohttp.ClientError, TimeoutError) as error:
            remedy = "`gateway serve` or `gateway demo` starts a gateway; --url sets another address."
            fail(f"{url} cannot be reached: {why(error)}. {remedy}")
        finally:
            runner.run(client.__aexit__(None, None, None))


def _talk(runner: asyncio.Runner, console: Console, session: "Session") -> None:
    while True:
        try:
            line = console.input("[bold]you>[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if not line:
            return
        try:
            over = runner.run(_answer(console, session, line))
        except (KeyboardInterrupt, TimeoutError):
            runner.run(_stop(session))
            console.print(" [dim](stopped)[/]")
            continue
        if over:
            return


async def _answer(console: Console, session: "Session", line: str) -> bool:
    """Send a line and show the answer. Return whether the session has ended. Raises TimeoutError after ANSWER_SECONDS.

    A response that was stopped may end after this line was sent. Its events are not this line's answer.
    """
    from gateway.client.pieces import Pieces

    response, pieces = None, Pieces()
    receipt = await session.send(*question(line))
    async with asyncio.timeout(ANSWER_SECONDS), aclosing(session.events(receipt["head"])) as events:
        async for event in events:
            match event.type:
                case "response.created":
                    response = event.value["response"]["id"]
                case "response.output_text.delta" if event.value.get("response_id") == response:
                    text = pieces.add(event.value["delta"])
                    console.print(f"[green]{escape(text)}[/]", end="", soft_wrap=True)
                case "response.function_call_arguments.done" if event.value.get("response_id") == response:
                    console.print(
                        f"[dim]{escape(str(event.value.get('name')))}({escape(event.value['arguments'])})[/]"
                    )
                case "error" if event.value["error"].get("event_id") != STOP:
                    console.print(f"[red]{escape(str(event.value['error'].get('message')))}[/]")
                    return False
                case "gateway.gap":
                    console.print(f"[red](missed {event.value.get('missed')} events)[/]")
                case "gateway.closed":
                    console.print(f"[red]The session ended: {event.value['reason']}.[/]")
                    return True
                case "response.done" if event.value["response"].get("id") == response:
                    _end_answer(console, event.value["response"])
                    return False
    return True


def _end_answer(console: Console, response: dict[str, Any]) -> None:  # OpenAI's object
    console.print()
    if response.get("status") != "completed":
        error = (response.get("status_details") or {}).get("error") or {}
        console.print(f"[red]{response.get('status')}: {escape(str(error.get('message') or ''))}[/]")


async def _stop(session: "Session") -> None:
    async with asyncio.timeout(LEAVE_SECONDS):
        await session.send({"type": "response.cancel", "event_id": STOP})
