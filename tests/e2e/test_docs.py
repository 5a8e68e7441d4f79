"""The commands in the documentation, run as a reader runs them against a gateway and an emulator.

A block below `<!-- runnable -->` is run: the commands of `console` blocks one after the other in one shell per page,
with their output compared; `sh`, `python` and `js` blocks as scripts that must succeed. In a promised output `…`
stands for anything, IDs and times may differ, and lines may be left out.
"""

import asyncio
import os
import re
import shutil
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.app import Gateway
from tests.docs.pages import PAGES, Block, name, runnable
from tests.farend import FarEnd

pytestmark = pytest.mark.slow
SECONDS = 60.0
DONE = "---- done"

# A stream has no end, so it is ended after 3 s of `curl -N`, as if the reader pressed Ctrl-C. The progress meter, which a
# terminal does not show beside a response, would be written into the middle of its lines.
CURL = """#!/bin/sh
for word in "$@"; do case $word in -N|-sN|-N*) exec "{curl}" --no-progress-meter --max-time 3 "$@" ;; esac; done
exec "{curl}" --no-progress-meter "$@"
"""

# What differs between runs: IDs with a prefix, IDs in the log, times.
_VARYING = re.compile(
    r"…|\b(?P<prefix>gws|gwk|gwt|rtc|event|resp|item|call)_(?:\w+|…)|\b[0-9a-z]{4}-\d+\b|(?P<name>retry: |_(?:at|seconds)\":)\d+"
)


def pattern(line: str) -> re.Pattern[str]:
    """Return what a promised line of output must match."""
    found, end = [], 0
    for varying in _VARYING.finditer(line := line.strip()):
        found.append(re.escape(line[end : varying.start()]))
        end = varying.end()
        if varying[0] == "…":
            found.append(".*")
        elif varying["prefix"]:
            found.append(rf"{varying['prefix']}_[\w-]+")
        else:
            found.append(rf"{re.escape(varying['name'])}\d+" if varying["name"] else r"[0-9a-z]+-\d+")
    return re.compile("".join(found) + re.escape(line[end:]))


def missing(promised: str, output: str) -> str | None:
    """Return the first promised line that is missing at its place in the output."""
    lines: Iterator[str] = iter(output.splitlines())
    for wanted in promised.splitlines():
        if wanted.strip() in ("", "…"):
            continue
        expected = pattern(wanted)
        if not any(expected.search(line) for line in lines):
            return wanted
    return None


async def output_of(*command: str, environ: dict[str, str], cwd: Path, said: str = "") -> tuple[int, str]:
    """Run a command to its end and return its status and all its output."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=STDOUT, env=environ, cwd=cwd
    )
    try:
        async with asyncio.timeout(SECONDS):
            output, _ = await process.communicate(said.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode()


async def commands(block: Block, environ: dict[str, str], cwd: Path) -> list[tuple[str, str]]:
    """Split a `console` block into commands and the output that it promises for each. A command continues over the
    next lines until the shell can parse it."""
    found: list[tuple[str, str]] = []
    unfinished = False
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif unfinished:
            found[-1] = (f"{found[-1][0]}\n{line}", "")
        else:
            found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
            continue
        status, told = await output_of("bash", "-n", environ=environ, cwd=cwd, said=found[-1][0])
        unfinished = status != 0 or "here-document" in told or found[-1][0].endswith("\\")
    assert not unfinished, f"no shell can parse {found[-1][0]}"
    return found


@pytest.mark.needs("curl")
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=name)
async def test_runnable_blocks_do_what_they_promise(
    gateway: Gateway, far_end: FarEnd, part_path: Callable[[str], str], tmp_path: Path, page: Path
) -> None:
    """Each command succeeds and prints what the page says."""
    # A model thinks first. Without that, a reader may print the answer before the command that asked prints its receipt.
    await far_end.faults(first_delta_seconds=0.5)
    (tmp_path / "bin").mkdir()
    curl = tmp_path / "bin" / "curl"
    curl.write_text(CURL.format(curl=part_path("curl")))
    curl.chmod(0o755)
    examples = tmp_path / "deploy" / "examples"
    shutil.copytree(page.parents[page.parent.name == "docs"] / "deploy" / "examples", examples)
    environ = {
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GATEWAY": gateway.url,
        "NO_PROXY": "*",
        "HOME": str(tmp_path),
    }
    session: list[tuple[str, str]] = []
    for block in runnable(page):
        text = block.text
        for port, url in ((8080, gateway.url), (8081, gateway.admin_url)):
            text = re.sub(rf"(http://)?(localhost|127\.0\.0\.1):{port}", url, text)
        block = Block(block.language, text, block.prints)
        if block.language == "console":
            session += await commands(block, environ, tmp_path)
            continue
        command = {"sh": ["bash", "-eu"], "python": [sys.executable], "js": ["node"]}[block.language]
        script = tmp_path / ("script.mjs" if block.language == "js" else "script")
        script.write_text(block.text)
        status, output = await output_of(*command, str(script), environ=environ, cwd=tmp_path)
        assert status == 0, (block.text, output)
        assert missing(block.prints, output) is None, (block.text, output)
    if session:
        # A reader in the background gets a moment before the next command, as if a person typed.
        typed = "".join(
            f"{command}\n{'sleep 1' if command.endswith('&') else 'echo'}\n" for command, _ in session
        )
        _, output = await output_of(
            "bash", environ=environ, cwd=tmp_path, said=f"{typed}wait\necho; echo {DONE}\n"
        )
        lost = missing("".join(promised for _, promised in session), output)
        assert lost is None, (lost, output)
        assert output.endswith(f"{DONE}\n")
