"""One text turn in one request."""
