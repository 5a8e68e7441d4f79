"""Several nodes that share sessions through Redis or Valkey. Only this package imports redis.

A session has one owner. Redis is the owner's journal: what the owner has added to it, another node can read back and
continue from. Ownership is fenced by Redis's own rule that the ids of a stream grow (see `appends`). Each node writes a
heartbeat, which the others judge by their own clocks (see `liveness`).
"""
