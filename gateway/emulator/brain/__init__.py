"""The sources of answers: rules, a chat completions server, tools."""
