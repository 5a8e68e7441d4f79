"""Authentication and authorization of callers, and the rules on their origins."""
