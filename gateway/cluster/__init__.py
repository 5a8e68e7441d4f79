"""Several nodes as one on Redis or Valkey: the only room that knows redis.

A session has one owner. Redis is the owner's journal: what the owner has added to it, another node can read back and
continue from. Ownership is fenced by Redis's own rule that the ids of a stream grow (see `appends`). Nodes show that
they live by a beat that others judge on their own clock (see `liveness`).
"""
