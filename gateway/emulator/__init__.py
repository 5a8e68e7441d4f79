"""An offline Realtime upstream: the service's HTTP signalling and a real far-end peer.

Refuses to know the gateway: it imports nothing of it, and shares nothing with it but the wire, so that a mistake made on
one side is not made again on the other. It runs in a process of its own: `python -m gateway.emulator`.
"""

from gateway.emulator.config import EmulatorConfig
from gateway.emulator.faults import Faults
from gateway.emulator.server import Emulator

__all__ = ["Emulator", "EmulatorConfig", "Faults"]
