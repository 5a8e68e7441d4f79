"""The calls of a session: one at a time, replaced when it is lost or about to end.

`lifecycle` is the table of phases. `steps` holds the steps that never wait, `line` the tasks that do.
"""
