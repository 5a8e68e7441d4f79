"""The HTTP side: the only room that knows aiohttp's server.

A request walks through `server` (its id, its origin, its errors), is let in by `access`, and ends in a handler: one
file a resource. Handlers see sessions through `gateway.relay.ports.Handle` only.
"""
