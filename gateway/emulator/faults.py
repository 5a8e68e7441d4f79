"""The faults an emulator can be told to have."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Faults:
    """Nothing wrong by default."""
