"""A telemetry that records what it is told."""

import inspect
from collections.abc import Callable
from typing import Any, cast

from gateway.relay.telemetry import Telemetry


class Facts:
    """Records every call, oldest first. Raises for a name or an argument that the port does not have."""

    def __init__(self) -> None:
        self.all: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        signature = inspect.signature(getattr(Telemetry, name))

        def note(*args: Any, **named: Any) -> None:
            self.all.append((name, signature.bind(self, *args, **named).args[1:]))

        return note

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """Return the arguments of the calls of one name."""
        getattr(Telemetry, name)
        return [args for told, args in self.all if told == name]

    @property
    def port(self) -> Telemetry:
        return cast(Telemetry, self)
