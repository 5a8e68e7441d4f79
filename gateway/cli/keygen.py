"""`gateway keygen`: makes an API key."""

import hashlib
import re
import secrets
from typing import Annotated

import typer

KEY_PREFIX = "gwp_"
"""Marks the gateway's own keys for secret scanners, and for the redaction of logs."""


def keygen(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="What metrics and logs call its owner.")
    ] = "default",
) -> None:
    """Print a new API key, once, and the configuration lines that let it in."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or name == "anonymous":
        raise typer.BadParameter("expected up to 64 letters, digits, '.', '_' or '-', and not 'anonymous'")
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    print(f"Key (shown once, for the client):\n\n  {key}\n")
    print("Configuration, or the file of access.keys_file (the gateway keeps the SHA-256 only):\n")
    print(f'  [[access.keys]]\n  name = "{name}"\n  sha256 = ["{digest}"]')
