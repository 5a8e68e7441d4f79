"""The pictures in docs/images: taken from the console and compared with those in the documentation.

`make screenshots` writes them again.
"""

import base64
import json
import os
from pathlib import Path

import pytest

from tests.e2e.browser import Chromium, Page
from tests.e2e.caller import Emulate, Serve

pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium")]
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"

# IDs, times and figures differ between runs. They change 1 to 2 % of the pixels; a page that looks different changes more.
MOST_CHANGED = 0.05
QUESTIONS = ("What is 17 * 23?", "Count to 12", "Tell me a joke.")

CHANGED = """(async ([one, other]) => {
  const pixels = async (data) => {
    const image = await createImageBitmap(await (await fetch(`data:image/png;base64,${data}`)).blob());
    const canvas = new OffscreenCanvas(image.width, image.height).getContext('2d');
    canvas.drawImage(image, 0, 0);
    return canvas.getImageData(0, 0, image.width, image.height);
  };
  const [a, b] = [await pixels(one), await pixels(other)];
  if (a.width !== b.width || a.height !== b.height) return 1;
  let changed = 0;
  for (let at = 0; at < a.data.length; at += 4) {
    changed += [0, 1, 2].some((channel) => Math.abs(a.data[at + channel] - b.data[at + channel]) > 48);
  }
  return changed / (a.data.length / 4);
})"""


async def converse(page: Page) -> None:
    """Hold a conversation with a tool round, as the pictures show it."""
    await page.click("#with-tool")
    await page.click("#begin")
    await page.until("document.activeElement.id === 'say'")
    answered = 0
    for question in ("What is the weather in Paris?", *QUESTIONS):
        await page.type(question)
        await page.press("Enter")
        answered += 1
        settled = (
            "!document.querySelector('.messages .open') && document.querySelector('#cancel').hidden && "
            "document.querySelectorAll('.messages .assistant').length"
        )
        await page.until(f"({settled}) >= {answered}")
        if question.startswith("What is the weather"):
            await page.click(".call button")
            answered += 1
            await page.until(f"({settled}) >= {answered}")
    await page.until("/[1-9]/.test(document.querySelector('#cost-now').textContent)")


async def test_pictures_show_the_console_as_it_is(emulate: Emulate, serve: Serve, chromium: Chromium) -> None:
    """Wide in light and dark, and on a phone, the stored pictures look like the page."""
    gateway = await serve(emulate("--tokens-per-second", "50"))
    made = {}
    async with chromium.page(f"{gateway.url}/") as page:
        await page.look(1280, 800)
        await converse(page)
        made["console.png"] = await page.picture()
        await page.look(1280, 800, dark=True)
        made["console-dark.png"] = await page.picture()
        await page.look(320, 640, dark=False, phone=True)
        await page.evaluate("document.querySelector('[data-show=talk]').click()")
        made["console-phone.png"] = await page.picture()
    if os.environ.get("SCREENSHOTS") == "write":
        for name, picture in made.items():
            (IMAGES / name).write_bytes(picture)

    changed = {}
    # A page without a content security policy, so that it may load the pictures.
    async with chromium.page("about:blank") as page:
        for name, picture in made.items():
            both = [base64.b64encode(one).decode() for one in ((IMAGES / name).read_bytes(), picture)]
            changed[name] = await page.evaluate(f"{CHANGED}({json.dumps(both)})")

    assert {name: share for name, share in changed.items() if share > MOST_CHANGED} == {}, (
        f"{changed}: the console looks different from its pictures; run `make screenshots` and look at them"
    )
