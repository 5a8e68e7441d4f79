"""What happens in a session: events as JSON text, the records of it, and the log that readers get.

`envelope` reads as little of an event's meaning as the relay needs, `records` says what can happen to a session, and
`eventlog` is the append-only log of one session.
"""
