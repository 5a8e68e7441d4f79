"""docs/emulator.md names exactly the flags and faults that exist."""

import dataclasses
import re

import typer

from gateway.cli import command_line
from gateway.emulator import Faults
from gateway.emulator.faults import WORDS
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "emulator.md").read_text(encoding="utf-8")


def cells(head: str) -> list[list[str]]:
    """Return the rows of the table whose first column has this heading."""
    table = PAGE.split(f"\n| {head} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[2:]]


def test_page_has_every_flag() -> None:
    """The table of flags is that of the command."""
    command = typer.main.get_command(command_line(["emulate"])).commands["emulate"]  # type: ignore[attr-defined]  # a group has them
    flags = {option for parameter in command.params for option in parameter.opts}
    told = {flag for row in cells("flag") for flag in re.findall(r"--[a-z-]+", row[0])}

    assert told == flags


def test_page_has_every_fault_and_its_words() -> None:
    """The table of faults is that of the code, with the values that each takes."""
    told = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in cells("fault")}

    assert told.keys() == {field.name for field in dataclasses.fields(Faults)}
    assert {name: words for name, words in told.items() if name in WORDS} == {
        name: set(words) for name, words in WORDS.items()
    }
