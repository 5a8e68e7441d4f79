"""An offline Realtime upstream: the service's HTTP signalling and a real far-end peer.

Refuses to know the gateway: it imports nothing of it, and shares nothing with it but the wire, so that a mistake made on
one side is not made again on the other. It runs best in a process of its own: `python -m gateway.emulator`.

`http` takes requests: `signalling` reads offers, `websocket` holds sidebands and WebSocket sessions, `control` is for tests.
`service` opens a `call`: a connection (`transport.peer` over ICE, DTLS and SCTP, or a WebSocket) with a voice on top, which is
`protocol.realtime`, or a `recording`. The protocol checks client events (`events`, `catalog`, `shapes`), keeps the conversation
(`items`), listens (`listening`, `audio`), imports and calls MCP tools (`remote`, `mcp`), and has a `brain` write `responses`
(`writing`) at a pace (`pacing`), counted by `usage`. `faults` lists what can go wrong on purpose.
"""

from gateway.emulator.config import EmulatorConfig
from gateway.emulator.faults import Faults
from gateway.emulator.http.server import Emulator

__all__ = ["Emulator", "EmulatorConfig", "Faults"]
