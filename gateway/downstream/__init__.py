"""The HTTP side: the only package that uses aiohttp's server.

A request passes `middleware` (its id, its origin, its errors), is authorized by `auth.access`, and reaches a handler. There
is one file per resource. Handlers access sessions only through `gateway.relay.ports.Handle`.
"""
