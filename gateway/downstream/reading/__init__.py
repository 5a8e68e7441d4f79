"""Reading a session's events: parameters, cursors, and wire formats."""
