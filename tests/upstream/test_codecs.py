"""The programs run without codecs, while other users of the library keep them."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from gateway.upstream import codecs


def run(program: str) -> str:
    """Run a Python program in its own process and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_aiortc_is_imported_without_media() -> None:
    """Neither PyAV nor pylibsrtp is imported, no FFmpeg library is mapped, and PyAV can still be imported."""
    said = run(
        "import sys\n"
        "from gateway.upstream.codecs import leave_out\n"
        "print(leave_out(), leave_out())\n"
        "import gateway.app\n"
        "print(any(name.split('.')[0] in ('av', 'pylibsrtp') for name in sys.modules), 'libavcodec' in open('/proc/self/maps').read())\n"
        "import av\n"
        "print(av.AudioFrame.__module__)\n"
    )

    assert said.split("\n") == ["True False", "False False", "av.audio.frame"]


@pytest.mark.slow
def test_gateway_serves_without_media_and_terminal_colours() -> None:
    """`gateway serve` imports none of the packages that only other commands need."""
    said = run(
        "import sys\n"
        "from gateway.cli.serve import prepare\n"
        "prepare()\n"
        "import gateway.cli.serving\n"
        "print([name for name in ('av', 'pylibsrtp', 'rich', 'pygments', 'redis') if name in sys.modules])\n"
        "import rich\n"
    )

    assert said == "[]"


@pytest.mark.slow
def test_library_user_keeps_the_codecs() -> None:
    """Importing the gateway does not change aiortc."""
    assert run("import gateway.app, aiortc.rtp; print(aiortc.rtp.AudioFrame.__module__)") == "av.audio.frame"


@pytest.mark.parametrize("library", ["aiortc", "aioice"])
def test_other_version_is_left_as_it_is(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other releases keep all imports, because it is unknown what they use of PyAV."""
    monkeypatch.setattr(
        codecs, "_version", lambda name: "2.0.0" if name == library else codecs.TESTED[name] + "0"
    )
    monkeypatch.delitem(sys.modules, "aiortc", raising=False)
    monkeypatch.delitem(sys.modules, "av", raising=False)

    assert not codecs.leave_out()
    assert "aiortc" not in sys.modules


def test_library_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """If package metadata is missing, nothing is left out."""

    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(codecs, "version", missing)
    assert codecs._version("aiortc") == ""
