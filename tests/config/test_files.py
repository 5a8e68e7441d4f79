"""The files that settings name: what they may hold. Errors never show their contents."""

import datetime
import hashlib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from pydantic import SecretStr

from gateway.config import ConfigError
from gateway.config.files import access_keys, listener_tls, openai_key, secret, secret_lines, signing_keys
from gateway.config.sections import Access, Key, Upstream

DIGEST = hashlib.sha256(b"key").hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file to write."""
    return tmp_path / "secret"


def test_secret_is_read_without_its_line_end(file: Path) -> None:
    """A secret is read without the line end that editors add."""
    file.write_text("  sk-abc\n\n")

    assert openai_key(Upstream(api_key_file=file)) == "sk-abc"


def test_byte_order_mark_is_no_part_of_a_secret(file: Path) -> None:
    """Notepad and PowerShell begin a file with one, which OpenAI would refuse as a part of the key."""
    file.write_bytes(b"\xef\xbb\xbfsk-abc\r\n")

    assert openai_key(Upstream(api_key_file=file)) == "sk-abc"


def test_environment_goes_before_the_file(file: Path) -> None:
    """The environment overrides the file, as for every setting."""
    file.write_text("from file")

    assert secret("admin.token", SecretStr("from environment"), file) == "from environment"


def test_nothing_set_is_nothing() -> None:
    """Having no key at all is valid."""
    assert openai_key(Upstream()) is None
    assert signing_keys(Access()) == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), (b"\n \n", "is empty"), (b"a\nb\n", "2 lines"), (b"\xff", "UTF-8")],
)
def test_unusable_file_is_refused_by_its_setting(file: Path, content: bytes | None, said: str) -> None:
    """The message about an unusable file names the setting and the file."""
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        secret("admin.token", None, file)

    assert "admin.token_file" in str(refused.value)
    assert str(file) in str(refused.value)
    assert said in str(refused.value)


def test_several_signing_keys_keep_their_order(file: Path) -> None:
    """The first line signs, the others still verify."""
    file.write_text(f"{'n' * 32}\n{'o' * 40}\n")

    assert signing_keys(Access(signing_key_file=file)) == (b"n" * 32, b"o" * 40)


def test_short_signing_key_is_refused_unseen(file: Path) -> None:
    """A signing key that is short enough to guess is refused, and the message does not show it."""
    file.write_text("hunter2")
    with pytest.raises(ConfigError, match="at least 32") as refused:
        signing_keys(Access(signing_key_file=file))

    assert "hunter2" not in str(refused.value)


def test_secret_lines_of_the_environment_are_one() -> None:
    """A variable of the environment holds one secret."""
    assert secret_lines("access.signing_key", SecretStr(" a\n"), None) == ("a",)


@pytest.mark.parametrize("heading", ["[[keys]]", "[[access.keys]]"])
def test_keys_file_adds_to_the_configured_keys(file: Path, heading: str) -> None:
    """Keys from the file and from the configuration are both accepted."""
    file.write_text(f'{heading}\nname = "bob"\nsha256 = "{DIGEST}"\nmax_sessions = 2\n')

    names = [
        key.name for key in access_keys(Access(keys=(Key(name="ada", sha256=(DIGEST,)),), keys_file=file))
    ]

    assert names == ["ada", "bob"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[keys]", "not valid TOML"),
        ("[access]\nanonymous = true\n", "expected only"),
        ("access = 3\n", "expected only"),
        ('[[keys]]\nname = "bob"\n', "sha256"),
        ('[[keys]]\nname = "bob"\nsha256 = "abc"\n', "64 hexadecimal"),
        (f'[[keys]]\nname = "ada"\nsha256 = "{DIGEST}"\n', "'ada' occurs twice"),
        (f'[[keys]]\nname = "anonymous"\nsha256 = "{DIGEST}"\n', "choose another name"),
    ],
)
def test_wrong_keys_file_is_refused(file: Path, text: str, said: str) -> None:
    """An error in the file is reported with the file's name."""
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        access_keys(Access(keys=(Key(name="ada", sha256=(DIGEST,)),), keys_file=file))

    assert str(file) in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        (None, "key", "server.tls_certificate_file: {}/certificate.pem cannot be read: No such file"),
        (
            "text",
            "key",
            "server.tls_certificate_file: {}/certificate.pem contains no `-----BEGIN CERTIFICATE-----`",
        ),
        (
            "certificate",
            "certificate",
            "server.tls_key_file: {}/key.pem contains no `-----BEGIN PRIVATE KEY-----`",
        ),
        ("certificate", "encrypted", "server.tls_key_file: {}/key.pem is encrypted; decrypt it"),
        ("certificate", "other", "{}/certificate.pem and {}/key.pem do not belong together"),
        ("certificate", "broken", "{}/certificate.pem and {}/key.pem cannot be used"),
    ],
)
def test_pair_for_tls_that_cannot_be_used_is_named(
    tmp_path: Path, certificate: str | None, key: str, said: str
) -> None:
    """The message names the setting, the file and the cause. OpenSSL's own message has none of them."""
    contents = {"text": b"hello", **tls_files()}
    files = {"certificate": tmp_path / "certificate.pem", "key": tmp_path / "key.pem"}
    for name, content in (("certificate", certificate), ("key", key)):
        if content is not None:
            files[name].write_bytes(contents[content])
    with pytest.raises(ConfigError) as refused:
        listener_tls("server.tls_certificate_file", files["certificate"], files["key"])

    assert said.replace("{}", str(tmp_path)) in str(refused.value)


def tls_files() -> dict[str, bytes]:
    """Return a certificate, its key in two forms, another key, and a damaged one."""
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))

    def pem(key: ec.EllipticCurvePrivateKey, encryption: KeySerializationEncryption) -> bytes:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)

    return {
        "certificate": builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM),
        "key": pem(key, NoEncryption()),
        "encrypted": pem(key, BestAvailableEncryption(b"password")),
        "other": pem(other, NoEncryption()),
        "broken": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    }
