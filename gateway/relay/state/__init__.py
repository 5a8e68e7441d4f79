"""The state of a session: a pure fold over its records. No I/O, no clock.

`fold` says what a record changes, and `effects` what the session does as a result. The other files each hold one part of the
state: client events, responses in flight, turns, answers under keys, and the conversation.
"""
