"""Requests for sessions of other nodes: how they are authorized, forwarded and answered."""
