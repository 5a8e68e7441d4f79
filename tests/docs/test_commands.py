"""Commands that the documentation names: each exists, with the options it is shown with."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from gateway.cli import command_line
from tests.docs.pages import PAGES, ROOT, name

COMMANDS = {
    command: {option for parameter in made.params for option in parameter.opts}
    for command, made in typer.main.get_command(command_line()).commands.items()  # type: ignore[attr-defined]  # a group has them
}


def codes(page: Path) -> Iterator[str]:
    """Yield what a page shows as code, a line or a span at a time."""
    text = page.read_text(encoding="utf-8")
    for fenced in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from re.sub(r"\\\n", " ", fenced).splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def shown(page: Path) -> set[tuple[str, str]]:
    """Return the commands of a page, each with its options, one pair for each option."""
    found = set()
    for code in codes(page):
        for command, rest in re.findall(r"(?:^|[\s/(])gateway ([a-z]+)\b([^|&;]*)", code.partition("#")[0]):
            found |= {(command, option) for option in re.findall(r"(?<!\S)--[a-z-]+", rest)} | {(command, "")}
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name)
def test_commands_and_options_exist(page: Path) -> None:
    """Every command and option in the pages exists."""
    unknown = {
        f"gateway {command} {option}"
        for command, option in shown(page)
        if command not in COMMANDS or (option and option not in COMMANDS[command])
    }

    assert unknown == set()


def test_the_pages_show_commands() -> None:
    """The search finds commands, so the test above can fail."""
    assert {command for page in PAGES for command, _ in shown(page)} >= {
        "serve",
        "emulate",
        "keygen",
        "bench",
    }


def test_targets_and_modules_exist() -> None:
    """Each `make …` names a target, each `python -m …` a module, and each `tests/…` a file."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong = []
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        for code in codes(page):
            wrong += [f"make {one}" for one in re.findall(r"^make ([a-z-]+)", code) if one not in targets]
            wrong += [
                f"python -m {one}"
                for one in re.findall(r"python3? -m ((?:tests|gateway)[\w.]+)", code)
                if not list(ROOT.glob(one.replace(".", "/") + "*"))
            ]
            wrong += [
                one for one in re.findall(r"(?:^|\s)(tests/[\w/.]+\.py)", code) if not (ROOT / one).exists()
            ]

    assert wrong == []
