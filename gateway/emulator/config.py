"""The configuration of an emulator. The command line flags are in `__main__`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gateway.emulator.faults import Faults
from gateway.emulator.transport.sdp import Setup

Consent = Literal["strict", "lenient"]


@dataclass(frozen=True, slots=True)
class EmulatorConfig:
    """One emulator.

    `tokens_per_second` 0 means as fast as the channel takes them. `api_keys` empty takes any key that is not an `ek_…`
    the emulator did not issue; `KEY@PROJECT` puts keys into one project, whose calls they share. `recordings` are JSON lines files served back in turn, one a call, instead of the brain.
    `hear` is what input audio says, in turn; `mcp_servers` are files of tools (`protocol.mcp`).
    `brain_url` is the base URL of a chat completions server (`http://127.0.0.1:11434/v1`), asked instead of the brain.
    """

    host: str = "127.0.0.1"
    port: int = 8090
    tokens_per_second: float = 50.0
    consent: Consent = "strict"
    setup: Setup = "active"
    max_session_seconds: float = 3600.0
    recordings: tuple[Path, ...] = ()
    api_keys: tuple[str, ...] = ()
    faults: Faults = field(default_factory=Faults)
    brain_url: str | None = None
    brain_model: str = "default"
    brain_key: str | None = None
    item_done_quirk: bool = True
    hear: tuple[str, ...] = ()
    mcp_servers: tuple[Path, ...] = ()
