"""The console page as a person uses it, in a real Chromium: typed, clicked and looked at, never called from inside."""

import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.browser import Chromium, Page
from tests.e2e.farend import FarEnd
from tests.e2e.house import Caller, Emulate, Serve, eventually

pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium")]
FILES = Path(__file__).parents[2] / "gateway" / "downstream" / "console"
ANSWERS = "[...document.querySelectorAll('#messages .assistant')].map((one) => one.textContent)"
SETTLED = f"document.querySelector('#cancel').hidden && !document.querySelector('.open') && {ANSWERS}.length"
DELTAS = "[...document.querySelectorAll('#event-list .type')].filter((e) => e.textContent.endsWith('.delta')).length"
STATE = "document.querySelector('#state-text').textContent"


@pytest.fixture(scope="module")
def chromium(part_path: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """Run one browser for this file."""
    browser = Chromium(part_path("chromium"), tmp_path_factory.mktemp("chromium"))
    try:
        yield browser
    finally:
        browser.stop()


@pytest_asyncio.fixture
async def page(served: str, chromium: Chromium) -> AsyncIterator[Page]:
    """Open the console; a test with the page must end without a complaint of the browser's."""
    async with chromium.page(f"{served}/") as page:
        yield page
        assert page.complaints == []


async def start(page: Page) -> None:
    """Start a session by its button."""
    await page.click("#begin")
    await page.until(f"document.activeElement.id === 'say' && {STATE}.startsWith('Connected')")


async def say(page: Page, text: str) -> None:
    """Type a message and send it with Enter."""
    await page.type(text)
    await page.press("Enter")


async def answers(page: Page, count: int = 1) -> list[str]:
    """Wait for so many finished answers and give their texts."""
    await page.until(f"{SETTLED} >= {count}")
    told: list[str] = await page.evaluate(ANSWERS)
    return told


async def test_conversation_is_held(page: Page) -> None:
    """Two turns give their answers, their events, their figures, and curl lines that repeat them."""
    await start(page)
    await say(page, "What is 6 times 7?")
    await answers(page)
    await say(page, "Count to 5")
    told = await answers(page, 2)
    figures = await page.evaluate(
        "[document.querySelector('#delta-now'), document.querySelector('#tokens-note')].map(e => e.textContent)"
    )
    bars = await page.evaluate("document.querySelectorAll('#tokens-plot .out').length")
    await page.click("[data-show=curl]")
    lines = await page.evaluate("[...document.querySelectorAll('#curl-list pre')].map((e) => e.textContent)")

    assert told == ["That is 42.", "1, 2, 3, 4, 5."]
    assert re.fullmatch(r"\d+ ms|\d\.\d s", figures[0])
    assert re.fullmatch(r"in [1-9]\d* · out [1-9]\d* · audio 0", figures[1])
    assert bars == 2
    assert "Count to 5" in lines[0]
    assert lines[0].startswith("curl -s http://")


async def test_offline_page_comes_back_with_nothing_lost(
    emulate: Emulate, serve: Serve, chromium: Chromium
) -> None:
    """Cut off in mid-answer, with a message sent meanwhile, the page catches up whole once it is back."""
    far_end = emulate("--tokens-per-second", "100")
    gateway = await serve(far_end)
    async with chromium.page(f"{gateway.url}/") as page, Caller(gateway.url) as caller:
        await start(page)
        await say(page, "Count to 60")
        await page.until(f"{ANSWERS}.join('').includes('7')")
        await page.offline(True)
        await page.until(f"{STATE}.startsWith('Offline')")
        before = (await page.evaluate(ANSWERS))[0]
        await say(page, "Count to 5")
        session_id = await page.evaluate("JSON.parse(sessionStorage.getItem('gateway.sessions'))[0].id")
        log = await caller.until(session_id, "response.done")
        await page.offline(False)
        told = await answers(page, 2)
        _, session = await caller.ask("GET", f"/v1/sessions/{session_id}")
        log = await caller.until(session_id, "response.done", 2)
        received = [json.loads(frame)["type"] for frame in await far_end.received(session["call_id"])]
        # The list keeps 400 rows, all of this conversation's.
        deltas = await page.evaluate(DELTAS)
        complaints = [one for one in page.complaints if "ERR_INTERNET_DISCONNECTED" not in one]

    assert len(before) < len(told[0])
    assert told == [", ".join(map(str, range(1, 61))) + ".", "1, 2, 3, 4, 5."]
    assert deltas == sum(block.type.endswith(".delta") for block in log)
    assert received.count("conversation.item.create") == received.count("response.create") == 2
    assert complaints == []


async def test_escape_stops_the_answer(emulate: Emulate, serve: Serve, chromium: Chromium) -> None:
    """Escape cancels the response, which the page then shows as stopped."""
    gateway = await serve(emulate("--tokens-per-second", "20"))
    async with chromium.page(f"{gateway.url}/") as page:
        await start(page)
        await say(page, "Count to 500")
        await page.until(f"{ANSWERS}.join('').includes('5')")
        await page.press("Escape")
        told = await answers(page)
        notes = await page.evaluate("[...document.querySelectorAll('.note')].map((e) => e.textContent)")

    assert not told[0].endswith("500.")
    assert notes == ["Stopped"]


async def test_key_is_asked_for_only_where_one_is_needed(
    serve: Serve, far_end: FarEnd, chromium: Chromium
) -> None:
    """The field appears on a 401, takes the focus, and its key opens a session; no curl line shows it."""
    key = "a-key-for-this-test-and-no-other"
    access = {"keys": [{"name": "one", "sha256": [hashlib.sha256(key.encode()).hexdigest()]}]}
    gateway = await serve(far_end, access=access)
    async with chromium.page(f"{gateway.url}/") as page:
        hidden = await page.evaluate("document.querySelector('#key-field').hidden")
        await page.click("#begin")
        await page.until("document.activeElement.id === 'key'")
        await page.type(key)
        await page.press("Enter")
        await page.until(f"{STATE}.startsWith('Connected')")
        await say(page, "What is 6 times 7?")
        told = await answers(page)
        kept = await page.evaluate("document.body.textContent + JSON.stringify(sessionStorage)")
        listed = await page.until("Number(document.querySelector('#session-count').textContent)")

    assert hidden
    assert told == ["That is 42."]
    assert key not in kept
    assert listed == 1


async def test_keyboard_alone_is_enough(page: Page) -> None:
    """From the page's beginning Tab leads over the views to the form, Enter starts, types and sends."""
    reached = []
    for _ in range(12):
        await page.press("Tab")
        reached.append(
            await page.evaluate("document.activeElement.id || document.activeElement.dataset.show")
        )
        if reached[-1] == "begin":
            break
    await page.press("Enter")
    await page.until("document.activeElement.id === 'say'")
    await say(page, "Count to 5")

    assert await answers(page) == ["1, 2, 3, 4, 5."]
    assert reached[-3:] == ["model", "instructions", "begin"]


async def test_fields_and_buttons_have_names(page: Page) -> None:
    """Whatever can be focused has a name that a screen reader can say."""
    await start(page)
    tree = (await page.ask("Accessibility.getFullAXTree"))["nodes"]
    nameless = [
        node["role"]["value"]
        for node in tree
        if not node["ignored"]
        and node["role"]["value"]
        in ("button", "textbox", "searchbox", "combobox", "radio", "list", "log", "img")
        and node["role"]["value"] != "list"
        and not node.get("name", {}).get("value")
    ]

    assert nameless == []


@pytest.mark.parametrize("view", ["talk", "events", "curl", "sessions"])
async def test_phone_needs_no_sideways_scrolling(page: Page, view: str) -> None:
    """At 360 px every view fits, its long words included."""
    await page.look(360, 640, phone=True)
    await start(page)
    await say(page, "Repeat after me: " + "x" * 200)
    await answers(page)
    await page.click(f"[data-show={view}]")
    wide = await page.evaluate("document.documentElement.scrollWidth")
    shown = await page.evaluate(f"document.querySelector('#{view}').getBoundingClientRect().height")

    assert wide == 360
    assert shown > 100


async def test_page_follows_the_preferred_colours(page: Page) -> None:
    """Dark and light differ where it counts: paper dark under light ink, and the other way round."""
    shades = []
    for dark in (False, True):
        await page.look(1280, 800, dark=dark)
        colours = await page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        shades.append([sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in colours])

    (light_paper, light_ink), (dark_paper, dark_ink) = shades
    assert (light_paper > 230, light_ink < 60) == (True, True)
    assert (dark_paper < 40, dark_ink > 200) == (True, True)


async def test_what_is_said_is_shown_as_text(page: Page) -> None:
    """Markup from either side is characters on the page, never elements."""
    await start(page)
    await say(page, "Repeat after me: <img src=x onerror=alert(1)><b>hi</b>")
    told = await answers(page)
    made = await page.evaluate(
        "document.querySelectorAll('#messages img, #messages b, #event-list img').length"
    )

    assert told == ["<img src=x onerror=alert(1)><b>hi</b>"]
    assert made == 0


async def test_filters_show_what_they_say(page: Page) -> None:
    """Direction, type and search narrow the list, and lifting them brings all back."""
    types = "[...document.querySelectorAll('#event-list .type')].map((e) => e.textContent)"
    await start(page)
    await say(page, "Count to 5")
    await answers(page)
    await page.until(f"{types}.at(-1) === 'rate_limits.updated'")
    everything = await page.evaluate(types)
    await page.click(".ways label:nth-of-type(2)")
    up = await page.evaluate(types)
    await page.click(".ways label:nth-of-type(1)")
    await page.click("#filter-text")
    await page.type("input_text")
    found = await page.evaluate(types)
    await page.press("Escape")
    lifted = await page.evaluate(types)

    assert up == ["conversation.item.create", "response.create"]
    assert "conversation.item.create" in found
    assert 0 < len(found) < len(everything)
    assert lifted == everything


async def test_session_is_joined_again_after_a_reload(page: Page, served: str) -> None:
    """A reloaded page lists its session, joins it, shows what was said, and goes on."""
    await start(page)
    await say(page, "Count to 5")
    await answers(page)
    await page.go(f"{served}/")
    await page.until("Number(document.querySelector('#session-count').textContent) === 1")
    await page.click("[data-show=sessions]")
    await page.click("#session-list button")
    first = await answers(page)
    said = await page.evaluate("document.querySelector('#messages .user').textContent")
    await page.click("#say")
    await say(page, "What is 6 times 7?")
    told = await answers(page, 2)

    assert (said, first) == ("Count to 5", ["1, 2, 3, 4, 5."])
    assert told == ["1, 2, 3, 4, 5.", "That is 42."]


async def test_session_ends_from_the_page(page: Page, served: str) -> None:
    """The button ends the session for good and offers a new one."""
    await start(page)
    session_id = await page.evaluate("JSON.parse(sessionStorage.getItem('gateway.sessions'))[0].id")
    await page.click("#end")
    await page.until(f"{STATE} === 'Session ended'")
    async with Caller(served) as caller:

        async def is_closed() -> bool:
            _, session = await caller.ask("GET", f"/v1/sessions/{session_id}")
            return bool(session["state"] == "closed")

        await eventually(is_closed)
    await page.click("#end")
    await start(page)

    assert await page.evaluate("document.querySelectorAll('#messages .user').length") == 0


def test_files_hold_to_the_policy() -> None:
    """No inline script or style, nobody else's host, no markup made from data."""
    for file in FILES.iterdir():
        text = file.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), (
            file.name
        )
        hosts = set(re.findall(r"https?://([\w.-]+)", text))
        assert hosts <= {"www.w3.org"}, file.name
    page = (FILES / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\bsrc=)", page)
