"""The pages of the documentation and what tests read from them: links, headings, and blocks marked as runnable. No I/O
beyond reading the files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FRONT = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES = sorted([*_FRONT, *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").glob("*/README.md")])

_FENCED = re.compile(r"^(`{3,}).*?^\1", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_RUNNABLE = re.compile(r"^<!-- runnable -->\n```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_PRINTS = re.compile(r"\A\n*It prints:\n+```text\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A block that a test runs, and the output that the page promises for it."""

    language: str
    text: str
    prints: str


def name(page: Path) -> str:
    """Return a page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def links(page: Path) -> Iterator[str]:
    """Yield the targets of the links in a page's prose."""
    yield from _LINK.findall(_FENCED.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number = 1
        while anchor in found:
            anchor = f"{anchor.removesuffix(f'-{number - 1}')}-{number}"
            number += 1
        found.add(anchor)
    return found


def runnable(page: Path) -> list[Block]:
    """Return the blocks of a page that are marked `<!-- runnable -->`, in order."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for match in _RUNNABLE.finditer(text):
        prints = _PRINTS.match(text, match.end())
        blocks.append(Block(match[1], match[2], prints[1] if prints else ""))
    return blocks
