"""`gateway top`: sessions, states, rates, tokens and cost, live in the terminal, from the operator's listener."""

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.live import Live

if TYPE_CHECKING:
    import aiohttp

    from gateway.cli.top_view import Look

LOOK_SECONDS: Final = 5.0
PAGE: Final = 100
MAX_SESSIONS: Final = 1000
"""More would not be readable, and each poll would cost the gateway more."""

_LISTENER: Final = "the operator's listener, which `gateway serve` logs as `admin listening on …`"

_LINES_AROUND: Final = 9
"""Totals, blank line, the table's header, the line about omitted sessions."""


def top(
    url: Annotated[
        str, typer.Option(metavar="U", help="URL of the operator's listener.")
    ] = "http://127.0.0.1:8081",
    token: Annotated[
        str | None,
        typer.Option(metavar="T", envvar="GATEWAY_ADMIN__TOKEN", help="Admin token, if one is set."),
    ] = None,
    interval: Annotated[
        float, typer.Option(metavar="S", min=0.5, max=3600, help="Seconds between two updates.")
    ] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print once, with rates over the interval, and exit.")
    ] = False,
) -> None:
    """Watch a gateway: sessions, states, rates, tokens and cost. Ctrl-C ends."""
    from gateway.cli.running import full_url, run

    console = Console(highlight=False)
    run(_top(console, full_url(url), token, interval, once=once or not console.is_terminal))


async def _top(console: Console, url: str, token: str | None, interval: float, *, once: bool) -> None:
    import aiohttp

    from gateway.cli.running import fail, why
    from gateway.cli.top_view import drawing

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=LOOK_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as http:
        try:
            before, now = None, await look(http, url)
            if once:
                await asyncio.sleep(interval)
                console.print(drawing(now, await look(http, url), MAX_SESSIONS))
                return
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while True:
                    live.update(drawing(before, now, console.height - _LINES_AROUND), refresh=True)
                    await asyncio.sleep(interval)
                    before, now = now, await look(http, url)
        except aiohttp.ClientResponseError as error:
            fail(_refusal(error, url))
        except (aiohttp.ClientError, TimeoutError) as error:
            fail(f"{url} cannot be reached: {why(error)}. Set --url to {_LISTENER}.")


def _refusal(error: "aiohttp.ClientResponseError", url: str) -> str:
    if error.status == 401:
        return "The admin token is not accepted; set it with --token or GATEWAY_ADMIN__TOKEN."
    if error.status == 404 and error.request_info.url.path.endswith("/metrics"):
        return f"{url} is a listener for clients: set --url to {_LISTENER}."
    if error.status == 404:
        return f"{url} lists no sessions here: set admin.token_file on the gateway, or run `gateway top` on the gateway's machine."
    return f"{url} answered {error.status}, not as an operator's listener does."


async def look(http: "aiohttp.ClientSession", url: str) -> "Look":
    """Fetch metrics and sessions."""
    import aiohttp

    from gateway.cli.scrape import parse
    from gateway.cli.top_view import Look

    async with http.get(f"{url}/metrics", raise_for_status=True) as answer:
        try:
            samples = parse(await answer.text())
        except ValueError as error:
            info = answer.request_info
            raise aiohttp.ClientResponseError(
                info, answer.history, status=answer.status, message="no metrics"
            ) from error
    sessions: list[dict[str, object]] = []
    more, after = True, ""
    while more and len(sessions) < MAX_SESSIONS:
        query = {"limit": str(PAGE), **({"after": after} if after else {})}
        async with http.get(f"{url}/sessions", params=query, raise_for_status=True) as answer:
            page = await answer.json()
        sessions += [one for one in page["data"] if one["state"] != "closed"]
        more, after = bool(page.get("has_more")), page["data"][-1]["id"] if page["data"] else ""
    return Look(time.monotonic(), time.time(), samples, sessions, more)
