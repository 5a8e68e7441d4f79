"""An offline Realtime upstream: the service's HTTP signalling and a real far-end peer.

Refuses to know the gateway: it imports nothing of it, and shares nothing with it but the wire, so that a mistake made on
one side is not made again on the other. It runs best in a process of its own: `python -m gateway.emulator`.

The way of a call: `server` reads the offer (`signalling`, `sdp`) and `service` opens a `call`: a `peer` (`ice`, then DTLS,
then `association`) with a voice on top; a `sideband` may join it. The voice is `realtime`, or a `recording`. `realtime` checks client events
(`events`, `catalog`, `shapes`), keeps the conversation (`items`), and has a `brain` (`rules`, `chat`) write `responses` (`writing`)
at a pace (`pacing`), counted by `usage`. What can go wrong on purpose is listed in `faults`, and steered by `control`.
"""

from gateway.emulator.config import EmulatorConfig
from gateway.emulator.faults import Faults
from gateway.emulator.http.server import Emulator

__all__ = ["Emulator", "EmulatorConfig", "Faults"]
