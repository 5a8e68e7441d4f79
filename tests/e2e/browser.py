"""A real Chromium without a window, driven over its DevTools protocol; a test does with `Page` what a person does.

It knows the few commands of the protocol that the tests need, and nothing of the pages. One process serves all tests
of a run: each has its own browser context, which shares no cookies, storage or connections with others.
"""

import asyncio
import base64
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import aiohttp

from tests.programs import Program

Json = dict[str, Any]
DEADLINE_SECONDS = 40.0
_LOOK_SECONDS = 0.03
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --disable-extensions --mute-audio "
    "--hide-scrollbars --force-color-profile=srgb --no-proxy-server --remote-debugging-port=0"
)
_KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Tab": (9, ""),
}


class Chromium(Program):
    """One browser process."""

    def __init__(self, program: str, home: Path) -> None:
        flags = (*_FLAGS.split(), f"--user-data-dir={home}", "about:blank")
        super().__init__(home / "output", *flags, command=program)

    @cached_property
    def url(self) -> str:
        """The WebSocket of its DevTools. Waits until it listens."""
        return self.said(r"DevTools listening on (ws://\S+)")

    @asynccontextmanager
    async def page(self, url: str) -> AsyncIterator["Page"]:
        """Open a page in its own context, wait until it is loaded, and close it afterwards."""
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(self.url, max_msg_size=64 * 1024 * 1024) as socket,
        ):
            tools = _DevTools(socket)
            reading = asyncio.create_task(tools.read(), name="devtools")
            try:
                context = (await tools.ask("Target.createBrowserContext", {"disposeOnDetach": True}))[
                    "browserContextId"
                ]
                page = await _open(tools, context, url)
                yield page
            finally:
                reading.cancel()
                await asyncio.wait({reading})


class _DevTools:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Json]] = {}
        self.complaints: list[str] = []

    async def read(self) -> None:
        async for message in self._socket:
            self._take(json.loads(message.data))

    async def ask(self, method: str, parameters: Json | None = None, session: str | None = None) -> Json:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        command: Json = {"id": number, "method": method, "params": parameters or {}}
        if session is not None:
            command["sessionId"] = session
        await self._socket.send_json(command)
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                told: Json = await answer
                return told
        finally:
            del self._answers[number]

    def _take(self, told: Json) -> None:
        if "id" in told:
            answer = self._answers.get(told["id"])
            if answer is None or answer.done():
                return
            if "error" in told:
                answer.set_exception(AssertionError(told["error"]["message"]))
            else:
                answer.set_result(told["result"])
            return
        parameters = told.get("params", {})
        match told["method"]:
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "assert", "warning"):
                self.complaints.append(json.dumps(parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                entry = parameters["entry"]
                self.complaints.append(f"{entry['text']} {entry.get('url', '')}")


async def _open(tools: _DevTools, context: str, url: str) -> "Page":
    target = (
        await tools.ask(
            "Target.createTarget",
            {"url": "about:blank", "browserContextId": context, "width": 1280, "height": 800},
        )
    )["targetId"]
    session = (await tools.ask("Target.attachToTarget", {"targetId": target, "flatten": True}))["sessionId"]
    page = Page(tools, session)
    for domain in ("Page", "Runtime", "Log", "Network"):
        await page.ask(f"{domain}.enable")
    await page.go(url)
    return page


class Page:
    """A page as a user sees it. `complaints` are its console errors, warnings and exceptions."""

    def __init__(self, tools: _DevTools, session: str) -> None:
        self._tools = tools
        self._session = session

    @property
    def complaints(self) -> list[str]:
        return self._tools.complaints

    async def ask(self, method: str, **parameters: Any) -> Json:
        """Send one DevTools command."""
        return await self._tools.ask(method, parameters, self._session)

    async def go(self, url: str) -> None:
        """Open a URL and wait until it is loaded."""
        await self._leave("Page.navigate", url=url)

    async def reload(self) -> None:
        """Reload the page and wait until it is loaded, so that later calls do not see the old document."""
        await self._leave("Page.reload")

    async def _leave(self, method: str, **parameters: Any) -> None:
        """Load another document. The load event alone does not distinguish it from the previous one, whose own may
        still arrive."""
        await self.evaluate("window.left = true")
        told = await self.ask(method, **parameters)
        assert "errorText" not in told, told
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not await self._arrived():
            assert time.monotonic() < deadline, f"no other document is loaded: {self.complaints}"
            await asyncio.sleep(_LOOK_SECONDS)

    async def _arrived(self) -> bool:
        # A request to a document that is being replaced gets no answer.
        with suppress(AssertionError):
            return bool(await self.evaluate("!window.left && document.readyState === 'complete'"))
        return False

    async def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript, await it if it is a promise and return its value as JSON."""
        told = await self.ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, expression: str, seconds: float = DEADLINE_SECONDS) -> Any:
        """Wait until JavaScript returns a true value and return it; fail after `seconds`."""
        deadline = time.monotonic() + seconds
        while not (value := await self.evaluate(expression)):
            assert time.monotonic() < deadline, (
                f"{expression} did not come true; complaints: {self.complaints}"
            )
            await asyncio.sleep(_LOOK_SECONDS)
        return value

    async def click(self, selector: str) -> None:
        """Click the middle of an element, which must exist and be visible."""
        where = await self.until(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            " e.scrollIntoView({block: 'nearest', inline: 'nearest', behavior: 'instant'});"
            " const b = e.getBoundingClientRect(); if (!b.width) return null;"
            " return {x: b.x + b.width / 2, y: b.y + b.height / 2} })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.ask("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    async def type(self, text: str) -> None:
        """Type text into the focused element."""
        await self.ask("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        """Press and release a key: Enter, Escape or Tab."""
        code, text = _KEYS[key]
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.ask(
            "Input.dispatchKeyEvent", type="keyDown", **pressed, **({"text": text} if text else {})
        )
        await self.ask("Input.dispatchKeyEvent", type="keyUp", **pressed)

    async def offline(self, offline: bool) -> None:
        """Switch the page's network off or on."""
        conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await self.ask("Network.emulateNetworkConditions", offline=offline, **conditions)

    async def look(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Set the window's size and the preferred colours."""
        await self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.ask("Emulation.setEmulatedMedia", features=features)

    async def picture(self) -> bytes:
        """Return a screenshot as a PNG."""
        return base64.b64decode((await self.ask("Page.captureScreenshot", format="png"))["data"])
