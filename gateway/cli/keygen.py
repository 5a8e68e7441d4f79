"""`gateway keygen`: creates an API key."""

import hashlib
import re
import secrets
import sys
from typing import Annotated

import typer

KEY_PREFIX = "gwp_"
"""Marks the gateway's own keys for secret scanners, and for the redaction of logs."""


def keygen(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Name of the key's owner in metrics and logs.")
    ] = "default",
) -> None:
    """Print the configuration lines of a new API key, and the key itself, once, on stderr.

    `gateway keygen alice >> keys.toml` lets alice in and shows her key.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or name == "anonymous":
        raise typer.BadParameter("expected up to 64 letters, digits, '.', '_' or '-', and not 'anonymous'")
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    print(f'[[access.keys]]\nname = "{name}"\nsha256 = ["{digest}"]', flush=True)
    print(key, file=sys.stderr)
