"""A relay that gives OpenAI's Realtime API to clients that have nothing but HTTP."""

__version__ = "0.1.0"
