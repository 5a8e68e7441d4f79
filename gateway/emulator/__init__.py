"""An offline Realtime upstream: the service's HTTP signalling and a real far-end peer.

The emulator does not know the gateway. It imports none of its code and shares only the protocol with it, so that a mistake
on one side is not repeated on the other. Run it in a separate process: `gateway emulate`.

`http` handles requests: `signalling` reads offers, `websocket` holds sidebands and WebSocket sessions, `control` is for tests.
`service` opens a `call`: a connection (`transport.peer` over ICE, DTLS and SCTP, or a WebSocket) with a voice on top, which is
`protocol.realtime`, or a `recording`. The protocol checks client events (`events`, `catalog`, `shapes`), keeps the conversation
(`items`, `live`), listens (`listening`, `audio`), imports and calls MCP tools (`remote`, `mcp`), and has a `brain` write `responses`
(`writing`) at a pace (`pacing`), counted by `usage`. `faults` lists what can go wrong on purpose.
"""

from gateway.emulator.config import EmulatorConfig
from gateway.emulator.faults import Faults
from gateway.emulator.http.server import Emulator

__all__ = ["Emulator", "EmulatorConfig", "Faults"]
