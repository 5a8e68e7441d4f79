"""Text turns: one question and its answer in one request."""
