"""The files that settings name: secrets and keys. Errors name the setting and the file, never its content."""

import ssl
import tomllib
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from gateway.config.problems import plain
from gateway.config.reading import ConfigError
from gateway.config.sections import Access, Key, Upstream

MIN_SIGNING_KEY_BYTES = 32
"""The size of a SHA-256 digest: a shorter key could be guessed more easily than a signature."""


def secret_lines(where: str, value: SecretStr | None, file: Path | None) -> tuple[str, ...]:
    """Return a secret from its environment variable, else the lines of its file; nothing if neither is set.

    `where` is the setting's name without `_file`.
    """
    if value is not None:
        return (value.get_secret_value().strip(),)
    if file is None:
        return ()
    lines = tuple(line.strip() for line in read_text(f"{where}_file", file).splitlines() if line.strip())
    if not lines:
        raise ConfigError([f"{where}_file: {file} is empty"])
    return lines


def secret(where: str, value: SecretStr | None, file: Path | None) -> str | None:
    """Return a secret that has one line, None if it is not set."""
    lines = secret_lines(where, value, file)
    if len(lines) > 1:
        raise ConfigError([f"{where}_file: {file} has {len(lines)} lines, expected one"])
    return lines[0] if lines else None


def openai_key(upstream: Upstream) -> str | None:
    """Return the gateway's own OpenAI key."""
    return secret("upstream.api_key", upstream.api_key, upstream.api_key_file)


def signing_keys(access: Access) -> tuple[bytes, ...]:
    """Return the keys for client secrets and tickets. The first one signs; all of them verify."""
    lines = secret_lines("access.signing_key", access.signing_key, access.signing_key_file)
    if any(len(line.encode()) < MIN_SIGNING_KEY_BYTES for line in lines):
        what = f"a signing key must have at least {MIN_SIGNING_KEY_BYTES} characters"
        where = (
            f"access.signing_key_file: {access.signing_key_file}"
            if access.signing_key is None
            else "access.signing_key"
        )
        raise ConfigError([f"{where}: {what}; `openssl rand -hex 32` makes one"])
    return tuple(line.encode() for line in lines)


def access_keys(access: Access) -> tuple[Key, ...]:
    """Return the configured callers and those of the keys file, which each call reads again."""
    if access.keys_file is None:
        return access.keys
    where = f"access.keys_file: {access.keys_file}"
    found = read_toml("access.keys_file", access.keys_file)
    # Both headings are accepted: keygen prints [[access.keys]], since most operators put keys into the configuration.
    section = found.pop("access", {})
    if set(found) - {"keys"} or not isinstance(section, dict) or set(section) - {"keys"}:
        raise ConfigError([f"{where}: expected only [[keys]] or [[access.keys]]"])
    try:
        in_file = [key for table in (found, section) for key in Access(keys=table.get("keys", ())).keys]
        return Access(keys=(*access.keys, *in_file)).keys
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError([f"{where}: {'.'.join(map(str, first['loc']))}: {plain(first)}"]) from None


def read_toml(where: str, file: Path) -> dict[str, Any]:
    """Return the content of a TOML file. Raises ConfigError, naming the setting `where`."""
    try:
        return tomllib.loads(read_text(where, file))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{where}: {file}: not valid TOML: {error}"]) from error


def read_text(where: str, file: Path) -> str:
    """Return a file's text. Raises ConfigError, naming the setting `where`."""
    try:
        return file.read_text(encoding="utf-8-sig")  # Windows' editors begin a file with a byte order mark.
    except OSError as error:
        raise ConfigError([f"{where}: {file} cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{where}: {file} is not UTF-8 text"]) from error


def authority(where: str, file: Path | None) -> ssl.SSLContext:
    """Return the TLS context of a client that trusts the certificates in `file`, without one those of the system."""
    if file is not None:
        _require_pem(where, file, "CERTIFICATE")
    try:
        return ssl.create_default_context(cafile=file)
    except ssl.SSLError as error:
        raise ConfigError([f"{where}: {file} cannot be used: {error}"]) from error


def listener_tls(where: str, certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return the TLS context of a listener, None without a certificate. `where` is the setting of the certificate."""
    if certificate is None or key is None:
        return None
    _require_pem(where, certificate, "CERTIFICATE")
    _require_pem(where.replace("certificate", "key"), key, "PRIVATE KEY")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        reason = (
            "do not belong together" if error.reason == "KEY_VALUES_MISMATCH" else f"cannot be used: {error}"
        )
        raise ConfigError([f"{where}: {certificate} and {key} {reason}"]) from error
    return context


def _require_pem(setting: str, file: Path, content: str) -> None:
    """Raise ConfigError unless the file looks right. OpenSSL's own messages name neither the file nor the cause, and it
    would ask on the terminal for the password of a key."""
    try:
        found = file.read_bytes()  # comments in it may have any encoding
    except OSError as error:
        raise ConfigError([f"{setting}: {file} cannot be read: {error.strerror}"]) from error
    if f"{content}-----".encode() not in found:
        raise ConfigError(
            [f"{setting}: {file} contains no `-----BEGIN {content}-----`; a PEM file is expected"]
        )
    if content == "PRIVATE KEY" and b"ENCRYPTED" in found:
        raise ConfigError([f"{setting}: {file} is encrypted; decrypt it: openssl pkey -in {file} -out NEW"])
