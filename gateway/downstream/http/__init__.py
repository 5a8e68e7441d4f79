"""What every answer and request of the HTTP side shares: bodies, problems, limits, the connection itself."""
