"""What the command line prints and how it exits, without running a gateway."""

import hashlib
import os
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway import __version__
from gateway.cli import command_line
from gateway.config.files import access_keys
from gateway.config.sections import Access
from tests.cli.conftest import Start

COMMANDS = ("serve", "demo", "emulate", "chat", "check", "bench", "keygen", "top")


async def test_help_names_every_command(start: Start) -> None:
    """`gateway --help` lists the contract's commands."""
    running = await start("--help")

    assert await running.ended() == 0
    assert all(re.search(rf"│ {command} ", running.output) for command in COMMANDS)


async def test_version_is_printed(start: Start) -> None:
    """`gateway --version` names the package and its version."""
    running = await start("--version")

    assert await running.ended() == 0
    assert running.output == f"realtime-gateway {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--prot", "1"),
        ("serve", "--port", "many"),
        ("unknown",),
        ("emulate", "--consent", "loose"),
        ("emulate", "--setup", "both"),
        ("emulate", "--record", "/nowhere.jsonl"),
        ("emulate", "--port", "99999"),
        ("emulate", "--tokens-per-second", "-1"),
        ("emulate", "--tokens-per-second", "nan"),
        ("emulate", "--max-session-seconds", "0"),
        ("emulate", "--max-session-seconds", "nan"),
        ("emulate", "--brain-url", "localhost:11434/v1"),
        ("demo", "--port", "99999"),
        ("bench", "--sessions", "0"),
        ("check", "--stun", "nohost"),
        ("keygen", "with space"),
        ("top", "--interval", "0"),
    ],
)
def test_wrong_usage_exits_with_two(arguments: tuple[str, ...]) -> None:
    """Usage errors and failures have different exit statuses."""
    result = CliRunner().invoke(command_line(), arguments)

    assert result.exit_code == 2
    assert "Usage: " in result.output


@pytest.mark.parametrize("command", ["chat", "bench", "top"])
@pytest.mark.parametrize("url", ["ftp://gateway", "http://[::1"])
def test_address_of_no_gateway_is_wrong_usage(command: str, url: str) -> None:
    """The message names the flag and shows an address."""
    result = CliRunner().invoke(command_line(), [command, "--url", url])

    assert result.exit_code == 2, result.output
    assert f"--url: {url!r} is not an http:// or https:// URL, such as http://127.0.0.1:8080" in result.output


def refused(*arguments: str, **environ: str) -> str:
    """Run a command that must be refused before it does anything, and return its output."""
    known = {name: None for name in os.environ if name.startswith(("GATEWAY_", "OPENAI_"))}
    result = CliRunner().invoke(command_line(), arguments, env={**known, **environ})

    assert result.exit_code == 2, result.output
    return result.output


@pytest.mark.parametrize("command", ["serve", "check"])
def test_wrong_configuration_exits_with_two_and_names_the_key(command: str) -> None:
    """The message names the key, what was expected, and the nearest known key."""
    said = refused(command, GATEWAY_RELAY__MAX_SESION="3", GATEWAY_SERVER__PORT="x")

    assert "GATEWAY_RELAY__MAX_SESION): unknown key; did you mean relay.max_sessions?" in said
    assert "GATEWAY_SERVER__PORT): expected a whole number" in said


def test_listening_to_strangers_without_a_key_is_refused() -> None:
    """Beyond loopback, keys or `access.anonymous` must be configured."""
    said = refused("serve", "--host", "0.0.0.0", "--port", "0", "--admin-port", "0")

    assert "server.host: 0.0.0.0 is reachable from other machines, but no key is configured" in said


def test_missing_secret_file_is_refused_by_its_key(tmp_path: Path) -> None:
    """A file that a setting names must be there when the gateway starts."""
    said = refused("serve", GATEWAY_UPSTREAM__API_KEY_FILE=str(tmp_path / "none"))

    assert "upstream.api_key_file" in said
    assert "No such file" in said


def test_keygen_prints_a_key_and_the_lines_that_let_it_in() -> None:
    """Stdout has the lines for the keys file; stderr has the key and nothing else."""
    result = CliRunner().invoke(command_line(), ["keygen", "ada"])

    assert result.exit_code == 0
    assert re.fullmatch(r"gwp_[A-Za-z0-9_-]{43}\n", result.stderr)
    digest = hashlib.sha256(result.stderr.strip().encode()).hexdigest()
    assert tomllib.loads(result.stdout) == {"access": {"keys": [{"name": "ada", "sha256": [digest]}]}}


def test_keygen_appends_to_a_keys_file(tmp_path: Path) -> None:
    """As in `gateway keygen NAME >> keys.toml`, for two callers."""
    file = tmp_path / "keys.toml"
    keys = []
    for name in ("ada", "bob"):
        result = CliRunner().invoke(command_line(), ["keygen", name])
        file.write_text((file.read_text() if file.exists() else "") + result.stdout)
        keys.append(result.stderr.strip())

    found = access_keys(Access(keys_file=file))
    assert [(key.name, *key.sha256) for key in found] == [
        (name, hashlib.sha256(key.encode()).hexdigest())
        for name, key in zip(("ada", "bob"), keys, strict=True)
    ]


async def test_keygen_never_repeats_itself(start: Start) -> None:
    """Each call generates a different key."""
    one, other = await start("keygen"), await start("keygen")
    await one.ended()
    await other.ended()
    keys = [(await running.says(r"gwp_\S{40,}"))[0] for running in (one, other)]

    assert keys[0] != keys[1]
