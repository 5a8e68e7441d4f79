"""The service over HTTP: calls, client secrets, sideband, and the controls for tests."""
