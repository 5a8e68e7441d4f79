"""The console page in a real Chromium, used as a person does: by typing, clicking and looking, never by calling its
code."""

import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.conftest import require_packages
from tests.e2e.browser import Chromium, Page
from tests.e2e.caller import Caller, Emulate, Serve
from tests.e2e.caller import say as say_events
from tests.e2e.npm import NPM
from tests.farend import FarEnd
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium")]
FILES = Path(__file__).parents[2] / "gateway" / "downstream" / "console"
ANSWERS = "[...document.querySelectorAll('#messages .assistant')].map((one) => one.textContent)"
SETTLED = f"document.querySelector('#cancel').hidden && !document.querySelector('.open') && {ANSWERS}.length"
DELTAS = "[...document.querySelectorAll('#event-list .type')].filter((e) => e.textContent.endsWith('.delta')).length"
STATE = "document.querySelector('#state-text').textContent"


@pytest_asyncio.fixture
async def page(served: str, chromium: Chromium) -> AsyncIterator[Page]:
    """Open the console; the test fails if the browser reports an error or a warning."""
    async with chromium.page(f"{served}/") as page:
        yield page
        assert page.complaints == []


async def start(page: Page) -> None:
    """Start a session with its button."""
    await page.click("#begin")
    await page.until(f"document.activeElement.id === 'say' && {STATE}.startsWith('Connected')")


async def say(page: Page, text: str) -> None:
    """Type a message and send it with Enter."""
    await page.type(text)
    await page.press("Enter")


async def answers(page: Page, count: int = 1) -> list[str]:
    """Wait for this many finished answers and return their texts."""
    await page.until(f"{SETTLED} >= {count}")
    told: list[str] = await page.evaluate(ANSWERS)
    return told


async def test_conversation_is_held(page: Page) -> None:
    """Two turns show their answers, events and figures, and curl commands that repeat them."""
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
    """After an outage in the middle of an answer, during which a message is sent, the page catches up completely."""
    far_end = emulate("--tokens-per-second", "40")
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
        # The list keeps 400 rows, all from this conversation.
        deltas = await page.evaluate(DELTAS)
        complaints = [one for one in page.complaints if "ERR_INTERNET_DISCONNECTED" not in one]

    assert len(before) < len(told[0])
    assert told == [", ".join(map(str, range(1, 61))) + ".", "1, 2, 3, 4, 5."]
    assert deltas == sum(block.type.endswith(".delta") for block in log)
    assert received.count("conversation.item.create") == received.count("response.create") == 2
    assert complaints == []


async def test_escape_stops_the_answer(emulate: Emulate, serve: Serve, chromium: Chromium) -> None:
    """Escape cancels the response, and the page shows it as stopped."""
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


async def test_lost_answer_does_not_hold_back_the_next(
    emulate: Emulate, serve: Serve, chromium: Chromium
) -> None:
    """After a call is lost in the middle of an answer, a text that was already sent, and later ones, are answered."""
    far_end = emulate("--tokens-per-second", "20")
    gateway = await serve(far_end)
    async with chromium.page(f"{gateway.url}/") as page, Caller(gateway.url) as caller:
        await start(page)
        await say(page, "Count to 500")
        await page.until(f"{ANSWERS}.join('').includes('5')")
        await say(page, "What is 6 times 7?")
        session_id = await page.evaluate("JSON.parse(sessionStorage.getItem('gateway.sessions'))[0].id")
        _, session = await caller.ask("GET", f"/v1/sessions/{session_id}")
        await far_end.fault(session["call_id"], do="close_channel")
        await page.until(f"{ANSWERS}.length === 2 && {SETTLED}")
        await say(page, "What is 5 times 5?")
        told = await answers(page, 3)

    assert told[2] == "That is 25."


async def test_refused_request_does_not_hold_back_the_next(
    serve: Serve, far_end: FarEnd, chromium: Chromium
) -> None:
    """When the request for a response is refused, a text that was already sent is answered at once, with one more request. An
    error about another event changes nothing."""
    gateway = await serve(far_end)
    script = """(async () => {
        const { Talk } = await import("/talk.js");
        const sent = [];
        const asked = () => sent.filter(({ type }) => type === "response.create").length;
        const figures = { tookDelta() {}, tookUsage() {} };
        const talk = new Talk({ send: (events) => sent.push(...events), figures, onDone() {} });
        const counts = [];
        talk.say("one");
        talk.say("two");
        counts.push(asked());
        talk.took({ type: "error", error: { message: "no", event_id: "another" } });
        counts.push(asked());
        talk.took({ type: "error", error: { message: "no", event_id: sent[1].event_id } });
        counts.push(asked());
        talk.took({ type: "response.created", response: { id: "r" } });
        talk.took({ type: "response.done", response: { id: "r", status: "completed", output: [] } });
        counts.push(asked());
        return counts;
    })()"""
    async with chromium.page(f"{gateway.url}/") as page:
        assert await page.evaluate(script) == [1, 1, 2, 2]


async def test_form_says_why_no_session_is_opened_yet(
    serve: Serve, far_end: FarEnd, chromium: Chromium
) -> None:
    """While the page tries again for a minute, it shows the reason, and the session opens as soon as OpenAI answers."""
    gateway = await serve(far_end)
    await far_end.faults(signal_status=500, signal_times=1)
    async with chromium.page(f"{gateway.url}/") as page:
        await page.click("#begin")
        told = await page.until("document.querySelector('#start-error').textContent")
        await page.until(f"{STATE}.startsWith('Connected')")

    assert told.startswith("OpenAI ")
    assert told.endswith(" Trying again…")


async def test_key_is_asked_for_only_where_one_is_needed(
    serve: Serve, far_end: FarEnd, chromium: Chromium
) -> None:
    """The field appears after a 401 and takes the focus, and its key opens a session; no curl command shows the key."""
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
    """From the top of the page Tab passes the views and reaches the form; Enter starts, types and sends."""
    reached = []
    for _ in range(16):
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
    assert reached[-4:] == ["model", "instructions", "with-tool", "begin"]


async def test_fields_and_buttons_have_names(page: Page) -> None:
    """Everything that can be focused has a name that a screen reader can read."""
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


@pytest.mark.parametrize("view", ["talk", "events", "raw", "curl", "sessions", "help"])
async def test_phone_needs_no_sideways_scrolling(page: Page, view: str) -> None:
    """At 320 px every view fits without scrolling sideways, during the session and after it."""
    await page.look(320, 640, phone=True)
    await start(page)
    await say(page, "Repeat after me: " + "x" * 200)
    await answers(page)
    await page.click(f"[data-show={view}]")
    wide = [await page.evaluate("document.documentElement.scrollWidth")]
    shown = await page.evaluate(f"document.querySelector('#{view}').getBoundingClientRect().height")
    await page.click("#end")
    await page.until(f"{STATE} === 'Session ended'")
    wide.append(await page.evaluate("document.documentElement.scrollWidth"))

    assert wide == [320, 320]
    assert shown > 100


async def test_page_follows_the_preferred_colours(page: Page) -> None:
    """The dark scheme has a dark background under light text, and the light scheme the reverse."""
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
    """Markup from either side is shown as text and never becomes elements."""
    await start(page)
    await say(page, "Repeat after me: <img src=x onerror=alert(1)><b>hi</b>")
    told = await answers(page)
    made = await page.evaluate(
        "document.querySelectorAll('#messages img, #messages b, #event-list img').length"
    )

    assert told == ["<img src=x onerror=alert(1)><b>hi</b>"]
    assert made == 0


async def test_filters_show_what_they_say(page: Page) -> None:
    """Direction, type and search narrow the list, and removing them shows everything again."""
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


async def test_reload_returns_to_the_session(page: Page, served: str) -> None:
    """A reloaded page returns to its session, shows the conversation, and continues."""
    await start(page)
    await say(page, "Count to 5")
    await answers(page)
    await page.go(f"{served}/")
    first = await answers(page)
    said = await page.evaluate("document.querySelector('#messages .user').textContent")
    await page.until("document.activeElement.id === 'say'")
    await say(page, "What is 6 times 7?")
    told = await answers(page, 2)

    assert (said, first) == ("Count to 5", ["1, 2, 3, 4, 5."])
    assert told == ["1, 2, 3, 4, 5.", "That is 42."]


async def test_session_of_another_client_is_joined_by_its_id(page: Page, served: str) -> None:
    """The form accepts an ID, reports an invalid one, and shows the conversation so far."""
    async with Caller(served) as caller:
        session = await caller.open()
        await caller.send(session["id"], *say_events("What is 6 times 7?"))
        await caller.until(session["id"], "response.done")
        await page.click("[data-show=sessions]")
        await page.click("#join-id")
        await page.type("gws_nobody")
        await page.press("Enter")
        wrong = await page.until("document.querySelector('#join-error').textContent")
        await page.evaluate("document.querySelector('#join-id').select()")
        await page.type(session["id"])
        await page.press("Enter")
        told = await answers(page)
        page.complaints[:] = [one for one in page.complaints if "404" not in one]

    assert "session" in wrong.lower()
    assert told == ["That is 42."]
    assert await page.evaluate("document.body.dataset.view") == "talk"


async def test_call_is_attached_to_by_its_id(page: Page, served: str) -> None:
    """With a call's ID in the form, the page gets the call's events from then on, and can send to it."""
    async with Caller(served) as caller:
        session = await caller.open()
        await page.click("[data-show=sessions]")
        await page.click("#join-id")
        await page.type(session["call_id"])
        await page.press("Enter")
        await page.until(f"document.activeElement.id === 'say' && {STATE}.startsWith('Connected')")
        call = await page.evaluate("document.querySelector('#call-now').textContent")
        await caller.send(session["id"], *say_events("What is 6 times 7?"))
        await answers(page)
        await say(page, "Count to 5")
        told = await answers(page, 2)

    assert call == "attached"
    assert told == ["That is 42.", "1, 2, 3, 4, 5."]


async def test_ended_session_looks_ended_and_keeps_its_view(page: Page, served: str) -> None:
    """The conversation and the chosen view stay, the state is shown as ended, and the focus is on the next possible
    action."""
    await start(page)
    await say(page, "Count to 5")
    told = await answers(page)
    session_id = await page.evaluate("JSON.parse(sessionStorage.getItem('gateway.sessions'))[0].id")
    await page.click("[data-show=help]")
    await page.click("#end")
    await page.until(f"{STATE} === 'Session ended'")
    async with Caller(served) as caller:

        async def is_closed() -> bool:
            _, session = await caller.ask("GET", f"/v1/sessions/{session_id}")
            return bool(session["state"] == "closed")

        await until(is_closed)
    left = await page.evaluate(
        "({view: document.body.dataset.view, composer: document.querySelector('#composer').hidden,"
        " ended: document.querySelector('#ended').textContent, focus: document.activeElement.id})"
    )
    kept = await page.evaluate(ANSWERS)
    await page.until("document.querySelector('#call-now').textContent === 'ended'")
    await page.click("#again")
    form = await page.evaluate("document.activeElement.id")
    await start(page)

    assert kept == told
    assert (left["view"], left["composer"], left["focus"]) == ("help", True, "again")
    assert "This session has ended. It was closed by a client." in " ".join(left["ended"].split())
    assert form == "instructions"
    assert await page.evaluate("document.querySelectorAll('#messages .user').length") == 0


async def test_session_that_ends_elsewhere_takes_no_focus(page: Page, served: str) -> None:
    """The focus does not move for a user in another part of the page."""
    await start(page)
    session_id = await page.evaluate("JSON.parse(sessionStorage.getItem('gateway.sessions'))[0].id")
    await page.click("#filter-text")
    async with Caller(served) as caller:
        await caller.ask("DELETE", f"/v1/sessions/{session_id}")
    await page.until(f"{STATE} === 'Session ended'")

    assert await page.evaluate("document.activeElement.id") == "filter-text"


async def test_stop_moves_nothing(emulate: Emulate, serve: Serve, chromium: Chromium) -> None:
    """The composer keeps its size and place before, during and after an answer; Stop cancels the answer."""
    gateway = await serve(emulate("--tokens-per-second", "20"))
    place = (
        "JSON.stringify(['#say', '#send'].map((id) => document.querySelector(id).getBoundingClientRect()))"
    )
    async with chromium.page(f"{gateway.url}/") as page:
        await start(page)
        places = [await page.evaluate(place)]
        await say(page, "Count to 500")
        await page.until("!document.querySelector('#cancel').hidden")
        await page.until(f"{ANSWERS}.join('').includes('5')")
        places.append(await page.evaluate(place))
        await page.click("#cancel")
        await answers(page)
        places.append(await page.evaluate(place))
        focus = await page.evaluate("document.activeElement.id")

    assert len(set(places)) == 1
    assert focus == "say"


async def test_event_id_is_shown_and_copied(page: Page) -> None:
    """Each event of the log shows its ID, and an expanded event has a button that copies it."""
    await start(page)
    row = "[...document.querySelectorAll('#event-list li')].find((e) => e.textContent.includes('session.created'))"
    await page.until(f"!!{row}")
    shown = await page.evaluate(f"{row}.querySelector('.id').textContent")
    await page.evaluate(f"{row}.querySelector('summary').click()")
    await page.until(f"!!{row}.querySelector('.event-tools button')")
    await page.evaluate(f"{row}.querySelector('.event-tools button').click()")
    await page.until(f"{row}.querySelector('.event-tools button').textContent === 'Copied'")

    await page.click("#filter-text")
    await page.ask(
        "Input.dispatchKeyEvent", type="keyDown", key="v", code="KeyV", modifiers=2, commands=["paste"]
    )
    pasted = await page.until("document.querySelector('#filter-text').value")

    assert re.fullmatch(r"[0-9a-z]+-1", shown)
    assert pasted == shown


async def test_raw_events_are_sent_as_they_are_written(page: Page) -> None:
    """A template can be sent, mistakes are reported before sending, and a sent event can be edited and sent again."""
    await start(page)
    await page.click("[data-show=raw]")
    await page.click("#raw-send")
    await answers(page)
    note = "document.querySelector('#raw-note').textContent"
    sent = await page.evaluate(note)
    complaints = []
    for text in ("{", "[]", '[{"type":"a"},{"no":1}]'):
        await page.evaluate(f"document.querySelector('#raw-text').value = {json.dumps(text)}")
        await page.click("#raw-send")
        complaints.append(await page.evaluate(note))
    await page.click("[data-show=events]")
    await page.evaluate("document.querySelector('#event-list .up summary').click()")
    await page.until("document.querySelectorAll('.event-tools button').length === 2")
    await page.evaluate("document.querySelectorAll('.event-tools button')[1].click()")
    edited = await page.evaluate("document.querySelector('#raw-text').value")

    assert sent == "Sent 2 events."
    assert complaints[0].startswith("This is not JSON")
    assert complaints[1:] == ["Event 0 has no “type”.", "Event 2 has no “type”."]
    assert json.loads(edited)["type"] == "conversation.item.create"


async def test_tool_round_is_played(page: Page) -> None:
    """A call of the example tool waits for a result, which is sent and leads to the answer; a reload shows all of
    it."""
    await page.click("#with-tool")
    await start(page)
    await say(page, "What is the weather in Paris?")
    called = await page.until("document.querySelector('.call code')?.textContent")
    await page.evaluate("document.querySelector('.call textarea').value = '{\"celsius\": 7}'")
    await page.click(".call button")
    told = await answers(page, 2)
    focus = await page.evaluate("document.activeElement.id")
    await page.reload()
    await page.until("!!document.querySelector('.call.done')")
    again = await answers(page, 2)

    assert called == 'get_weather({"city": "Paris"})'
    assert told == ["Let me check.", "Here is what I found: celsius is 7."]
    assert focus == "say"
    assert again == told


async def test_cost_and_call_are_in_sight(page: Page) -> None:
    """After an answer the page shows the cost of the session and its call."""
    await start(page)
    await say(page, "Count to 5")
    await answers(page)
    cost = await page.until(
        "/^[$]0[.]0*[1-9]/.test(document.querySelector('#cost-now').textContent) && document.querySelector('#cost-now').textContent"
    )
    call = await page.evaluate(
        "['#call-now', '#call-note'].map((id) => document.querySelector(id).textContent)"
    )

    assert float(cost[1:]) < 0.01
    assert call[0] == "open"
    assert re.fullmatch(r"until \d{1,2}:\d\d.*gpt-realtime-2\.1", call[1])


VIEWS = ("talk", "events", "raw", "curl", "sessions", "help")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
async def test_axe_finds_nothing(served: str, chromium: Chromium, width: int, dark: bool) -> None:
    """Before, during and after a session, axe-core reports no violation in any view."""
    axe = (require_packages(NPM) / "axe-core" / "axe.min.js").read_text()
    found: list[tuple[object, ...]] = []

    async def look(page: Page, where: str) -> None:
        broken = await page.evaluate(
            "axe.run({resultTypes: ['violations']}).then((told) => told.violations.map("
            "(one) => [one.id, one.nodes.map((node) => node.target.join(' ')).slice(0, 3)]))"
        )
        found.extend((where, *one) for one in broken)

    async with chromium.page(f"{served}/") as page:
        await page.look(width, 800, dark=dark, phone=width == 320)
        await page.evaluate(axe)
        await look(page, "start")
        await page.click("#with-tool")
        await start(page)
        await say(page, "What is the weather in Paris?")
        await page.until("!!document.querySelector('.call')")
        for view in VIEWS:
            await page.evaluate(f"document.querySelector('[data-show={view}]').click()")
            if view == "events":
                await page.evaluate("document.querySelector('#event-list summary').click()")
                await page.until("!!document.querySelector('.event-tools')")
            await look(page, view)
        await page.click("#end")
        await page.until(f"{STATE} === 'Session ended'")
        await page.evaluate("document.querySelector('[data-show=talk]').click()")
        await look(page, "ended")

    assert [str(one) for one in found] == []


def test_files_hold_to_the_policy() -> None:
    """The page has no inline script or style, uses no other host, and creates no markup from data."""
    for file in FILES.iterdir():
        text = file.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), (
            file.name
        )
        hosts = set(re.findall(r"https?://([\w.-]+)", text))
        assert hosts <= {"www.w3.org"}, file.name
    page = (FILES / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\bsrc=)", page)
