"""The parts that all HTTP requests and responses share: bodies, problem objects, limits, connections."""
