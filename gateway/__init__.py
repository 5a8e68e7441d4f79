"""A relay that makes OpenAI's Realtime API available to clients that have only HTTP."""

__version__ = "0.1.0"
