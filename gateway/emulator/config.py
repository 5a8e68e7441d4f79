"""The configuration of an emulator."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gateway.emulator.faults import Faults
from gateway.emulator.transport.sdp import Setup

Consent = Literal["strict", "lenient"]


@dataclass(frozen=True, slots=True)
class EmulatorConfig:
    """One emulator.

    `tokens_per_second` 0 means as fast as the channel accepts them. With empty `api_keys` any key is accepted, except an
    `ek_…` that the emulator did not issue. `KEY@PROJECT` puts a key into a project; keys of a project share its calls.
    `recordings` are JSON lines files that are played back in turn, one per call, instead of the brain.
    `hear` are the transcripts of input audio, in turn; `mcp_servers` are files of tools (`protocol.mcp`).
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
