"""The offline service in its own process, and its control endpoint as methods."""

from pathlib import Path
from typing import Any, Self

import aiohttp

from tests.programs import Program

Json = dict[str, Any]
_SECONDS = aiohttp.ClientTimeout(total=20)


class FarEnd:
    """A running emulator; `base_url` is the gateway's `upstream.base_url`.

    In a `with` block it is ready at the beginning, and stopped at the end.
    """

    def __init__(self, log: Path, *flags: str) -> None:
        self.program = Program(log, "gateway", "emulate", "--port", "0", *flags)
        self.base_url = ""

    def __enter__(self) -> Self:
        try:
            self.ready()
        except BaseException:
            self.program.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.program.stop()

    def ready(self) -> None:
        self.base_url = self.program.said(r"emulator listening on (\S+)\n")

    async def about(self) -> Json:
        """Return `calls` (running now), `opened` and `cpu_seconds`."""
        return await self._ask("GET", "")

    async def faults(self, **faults: Any) -> None:
        """Set faults for later calls."""
        await self._ask("POST", "/faults", faults)

    async def well(self) -> None:
        """Clear the faults of later calls."""
        await self._ask("DELETE", "/faults")

    async def call(self, call_id: str) -> Json:
        """Return the description of a call."""
        return await self._ask("GET", f"/calls/{call_id}")

    async def received(self, call_id: str) -> list[Any]:
        """Return the frames a call's client has sent, verbatim."""
        data: list[Any] = (await self._ask("GET", f"/calls/{call_id}/received"))["data"]
        return data

    async def send(self, call_id: str, *frames: Any) -> None:
        """Send frames unchanged over a call's data channel."""
        await self._ask("POST", f"/calls/{call_id}/send", {"frames": frames})

    async def fault(self, call_id: str, **faults: Any) -> None:
        """Set the faults of a running call; `do=` makes something happen now."""
        await self._ask("POST", f"/calls/{call_id}/fault", faults)

    async def _ask(self, method: str, path: str, body: Json | None = None) -> Json:
        url = self.base_url.removesuffix("/v1") + "/_emulator" + path
        async with (
            aiohttp.ClientSession(timeout=_SECONDS) as http,
            http.request(method, url, json=body) as answer,
        ):
            assert answer.status == 200, await answer.text()
            found: Json = await answer.json()
            return found
