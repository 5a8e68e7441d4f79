"""The documentation: every link leads somewhere, and the front page stays short."""

from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, links, name

README_LINES = 120


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    """Each path exists in the repository, and each anchor is that of a heading."""
    broken = []
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


def test_front_page_is_short() -> None:
    """The README is short enough to be read in one sitting."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_every_page_can_be_reached_from_the_front_page() -> None:
    """Every page of docs/ can be reached by links from the README."""
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = (
            (page.parent / link.partition("#")[0]).resolve() for link in links(page) if "://" not in link
        )
        todo += [target for target in targets if target.suffix == ".md" and target.exists()]

    assert {page.name for page in (ROOT / "docs").glob("*.md") if page not in reached} == set()
