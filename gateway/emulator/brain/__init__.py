"""What answers: rules, a chat completions server, tools."""
