"""Requests for sessions that live on another node: who may pass one on, where it goes, and how the answer comes back."""
