"""Reading a session's events: parameters, the cursor's loop, and how events look on the wire."""
