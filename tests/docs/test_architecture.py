"""The architecture page, held against the tree."""

import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`((?:gateway|tests|config|docs|deploy)/[\w./-]+)`", PAGE)))


@pytest.mark.parametrize("path", FILES)
def test_files_that_are_named_exist(path: str) -> None:
    """Every file that the page names exists."""
    assert (ROOT / path).exists()


def test_names_in_the_walks_exist() -> None:
    """Each function of a step is defined in one of the files beside it."""
    lost = []
    for functions, files in re.findall(r"^\| \d\. [^|]+\| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE):
        sources = "".join(
            (ROOT / path).read_text(encoding="utf-8") for path in re.findall(r"`([^`]+)`", files)
        )
        for name in re.findall(r"`([^`]+)`", functions):
            function = name.rpartition(".")[2]
            if f"def {function}(" not in sources and f".{function}(" not in sources:
                lost.append(name)

    assert lost == []
