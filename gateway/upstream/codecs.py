"""Leave audio and video out of the process: codecs and SRTP.

aiortc imports PyAV, and with it FFmpeg's libraries, wherever it mentions a frame: 19 MiB of memory and 0.1 s at start, for a
gateway that relays text. pylibsrtp, which encrypts media, brings its own OpenSSL: 5 MiB. `leave_out` puts empty classes
in their place while aiortc is imported. To be called by a program before it imports anything else of this package. A library
that is used with others must not call it.
"""

import importlib
import sys
from collections.abc import MutableSequence, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

TESTED = {"aiortc": "1.16.", "aioice": "0.13."}
"""The version of aiortc was read for what it takes from these packages when it is imported: classes and their constants. With
both versions `tuning` uses its hook that sets up no SRTP."""

_LEFT_OUT = ("av", "pylibsrtp")


class _EmptyType(type):
    """The type of a class that has every constant. Each is 0."""

    def __getattr__(cls, name: str) -> int:
        if name.startswith("__"):
            raise AttributeError(name)
        return 0


class _Empty(metaclass=_EmptyType):
    """Accept any arguments."""

    def __init__(self, *_: object, **__: object) -> None:
        return None


class _StandIn(ModuleType):
    """A module in which every name is an empty class."""

    __path__: MutableSequence[str] = []  # noqa: RUF012 - a package with nothing in it, as ModuleType has it

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _EmptyType(name, (_Empty,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _StandIns(MetaPathFinder, Loader):
    """Finds a stand-in for each package that is left out, and for its modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if _is_left_out(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return None


def leave_out() -> bool:
    """Import aiortc without its codecs; return whether that was done.

    Nothing is done if aiortc or one of these packages is imported already, or if a version is not the tested one. Afterwards
    `import av` imports PyAV as usual, but aiortc cannot encode, decode or encrypt media in this process.
    """
    untested = any(not _version(name).startswith(tested) for name, tested in TESTED.items())
    if untested or any(name in sys.modules for name in ("aiortc", *_LEFT_OUT)):
        return False
    finder = _StandIns()
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module("aiortc")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _is_left_out(name)]:
            del sys.modules[name]
    return True


def _is_left_out(name: str) -> bool:
    return name.partition(".")[0] in _LEFT_OUT


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
