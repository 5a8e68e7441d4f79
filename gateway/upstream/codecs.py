"""Leave audio and video codecs out of the process.

aiortc imports PyAV, and with it FFmpeg's libraries, wherever it mentions a frame: 19 MiB of memory and 0.1 s at start, for a
gateway that relays text. `leave_out` puts empty classes in PyAV's place while aiortc is imported. To be called by a program
before it imports anything else of this package. A library that is used with others must not call it.
"""

import importlib
import sys
from collections.abc import MutableSequence, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

TESTED = "1.16."
"""The versions of aiortc that were read for what they take from PyAV when they are imported: classes, and nothing else."""


class _StandIn(ModuleType):
    """A module in which every name is an empty class."""

    __path__: MutableSequence[str] = []  # noqa: RUF012 - a package with nothing in it, as ModuleType has it

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _StandIns(MetaPathFinder, Loader):
    """Finds a stand-in for PyAV and each of its modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if _is_codec(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return None


def leave_out() -> bool:
    """Import aiortc without its codecs; return whether that was done.

    Nothing is done if aiortc or PyAV is imported already, or if aiortc is not a tested version. Afterwards `import av`
    imports PyAV as usual, but aiortc cannot encode or decode in this process.
    """
    if "aiortc" in sys.modules or "av" in sys.modules or not _version().startswith(TESTED):
        return False
    finder = _StandIns()
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module("aiortc")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _is_codec(name)]:
            del sys.modules[name]
    return True


def _is_codec(name: str) -> bool:
    return name == "av" or name.startswith("av.")


def _version() -> str:
    try:
        return version("aiortc")
    except PackageNotFoundError:
        return ""
