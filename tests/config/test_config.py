"""The configuration: the precedence of its sources, its refusals, and the reference file compared with the code."""

import json
import re
import tomllib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config, ConfigError, load
from gateway.config.reading import ignored_names, keys
from gateway.config.sections import SESSION_TEMPLATE

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "config" / "gateway.toml"
SECRETS = {
    "admin.token",
    "access.signing_key",
    "upstream.api_key",
    "upstream.ice_servers[].credential",
    "cluster.password",
}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Return a function that writes a configuration file."""

    def write(text: str) -> Path:
        file = tmp_path / "gateway.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def problems(file: Path | None = None, environ: Mapping[str, str] | None = None) -> list[str]:
    """Load an invalid configuration and return the reported problems."""
    with pytest.raises(ConfigError) as refused:
        load(file, environ=environ or {})
    return refused.value.problems


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a tree's leaves by dotted name. A member of OpenAI's session object is one leaf."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and prefix + name != "upstream.session":
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves


# --- order ------------------------------------------------------------------------------------------------------------


def test_defaults_stand_without_any_source() -> None:
    """Without any setting, the defaults are those of the contract."""
    config = load(environ={})

    assert (config.server.host, config.server.port, config.admin.port) == ("127.0.0.1", 8080, 8081)
    assert config.upstream.base_url == "https://api.openai.com/v1"
    assert config.drain.timeout_seconds == 25


def test_each_source_goes_over_the_one_before(written: Any) -> None:
    """Defaults < file < environment < flags, key by key."""
    file = written("[server]\nhost = 'file'\nport = 1\nmax_batch_events = 7\n")
    environ = {"GATEWAY_SERVER__PORT": "2", "GATEWAY_SERVER__HOST": "environment"}

    config = load(file, environ=environ, flags={"server": {"port": 3}})

    assert (config.server.host, config.server.port) == ("environment", 3)
    assert (config.server.max_batch_events, config.server.max_event_bytes) == (7, 1048576)


def test_file_is_named_by_the_environment(written: Any) -> None:
    """GATEWAY_CONFIG names the file if no flag does."""
    file = written("[server]\nport = 9\n")

    assert load(environ={"GATEWAY_CONFIG": str(file)}).server.port == 9


def test_file_may_begin_with_a_byte_order_mark(written: Any) -> None:
    """Windows' editors write one, which is no part of TOML."""
    file = written("\ufeff[server]\nport = 9\n")

    assert load(file, environ={}).server.port == 9


def test_lists_in_the_environment_are_json() -> None:
    """A list is written as JSON."""
    config = load(environ={"GATEWAY_ACCESS__CORS_ORIGINS": '["https://a.example", "*"]'})

    assert config.access.cors_origins == ("https://a.example", "*")


def test_names_without_two_underscores_are_not_ours() -> None:
    """Names that Kubernetes injects, such as GATEWAY_PORT and GATEWAY_SERVER, are not configuration."""
    environ = {"GATEWAY_PORT": "tcp://10.0.0.1:8080", "GATEWAY_SERVER": "{}", "GATEWAY_LOG": "x"}

    assert load(environ=environ) == load(environ={})


# --- the session template ---------------------------------------------------------------------------------------------


def test_template_merges_over_the_default_one(written: Any) -> None:
    """Setting one member of the session template keeps the others."""
    config = load(written("[upstream.session]\ninstructions = 'Be brief.'\n"), environ={})

    assert config.upstream.session == {**SESSION_TEMPLATE, "instructions": "Be brief."}


def test_template_takes_null_as_a_word(written: Any) -> None:
    """In the session template the text "null" means null, because TOML has none."""
    config = load(written("[upstream.session]\ntruncation = 'null'\n"), environ={})

    assert config.upstream.session["truncation"] is None


@pytest.mark.parametrize("number", ["inf", "nan"])
def test_template_with_a_number_that_json_lacks_is_refused(written: Any, number: str) -> None:
    """TOML has such numbers, and they would be sent as null. OpenAI's `max_output_tokens` is the text "inf"."""
    file = written(f"[upstream.session]\nmax_output_tokens = {number}\n")

    with pytest.raises(ConfigError) as refused:
        load(file, environ={})

    assert "upstream.session" in str(refused.value)
    assert 'write "inf" in quotation marks' in str(refused.value)


def test_template_of_the_environment_takes_only_json_as_numbers() -> None:
    """Python's JSON parser reads more: such a word stays a text."""
    config = load(environ={"GATEWAY_UPSTREAM__SESSION__MAX_OUTPUT_TOKENS": "Infinity"})

    assert config.upstream.session["max_output_tokens"] == "Infinity"


def test_template_members_come_from_the_environment_as_json_or_text() -> None:
    """Numbers, lists and objects of OpenAI's session object keep their type."""
    session = load(
        environ={
            "GATEWAY_UPSTREAM__SESSION__MODEL": "gpt-realtime-2",
            "GATEWAY_UPSTREAM__SESSION__MAX_OUTPUT_TOKENS": "100",
            "GATEWAY_UPSTREAM__SESSION__AUDIO__INPUT__TURN_DETECTION": '{"type": "semantic_vad"}',
        }
    ).upstream.session

    assert (session["model"], session["max_output_tokens"]) == ("gpt-realtime-2", 100)
    assert session["audio"] == {"input": {"turn_detection": {"type": "semantic_vad"}}}


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_unknown_key_in_the_file_is_refused_with_the_nearest(written: Any) -> None:
    """The message about a misspelt key names the file, the key and the nearest known key."""
    file = written("[relay]\nmax_sesions = 3\n")

    assert problems(file) == [
        f"relay.max_sesions (file {file}): unknown key; did you mean relay.max_sessions?"
    ]


def test_key_in_the_wrong_section_is_refused_with_its_own(written: Any) -> None:
    """A key in the wrong section is refused, and the message names its own section."""
    assert (
        "did you mean relay.max_server_event_bytes?"
        in problems(written("[log]\nmax_server_event_bytes = 1\n"))[0]
    )


def test_unknown_key_in_the_environment_is_refused_by_its_name() -> None:
    """The message names the variable as it was written."""
    said = problems(environ={"GATEWAY_STREAM__HEARTBEAT": "5"})

    where = "stream.heartbeat (environment GATEWAY_STREAM__HEARTBEAT)"
    assert said == [f"{where}: unknown key; did you mean stream.heartbeat_seconds?"]


def test_unknown_section_in_the_environment_is_refused() -> None:
    """A variable for an unknown section is refused instead of ignored."""
    assert problems(environ={"GATEWAY_UPSTREM__PROXY": "x"}) == [
        "GATEWAY_UPSTREM__PROXY: unknown section 'upstrem'; did you mean GATEWAY_UPSTREAM__…?"
    ]


def test_unknown_section_in_the_file_is_refused(written: Any) -> None:
    """A table for an unknown section is refused, and the message lists the known sections."""
    assert "unknown key" in problems(written("[servers]\nport = 1\n"))[0]


def test_every_problem_is_told_at_once(written: Any) -> None:
    """All problems are reported at once, so that three mistakes do not need three starts."""
    file = written("[server]\nport = 'x'\nprot = 1\n[log]\nformat = 'xml'\n")

    assert len(problems(file)) == 3


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("GATEWAY_SERVER__PORT", "70000", "must be at most 65535"),
        ("GATEWAY_ACCESS__CORS_ORIGINS", "https://a.example", "expected JSON"),
        ("GATEWAY_ACCESS__CORS_ORIGINS", '["https://a.example/path"]', "without a path"),
        ("GATEWAY_UPSTREAM__BASE_URL", "api.openai.com", "http:// or https:// URL"),
        ("GATEWAY_LOG__FORMAT", "xml", "'console' or 'json'"),
        ("GATEWAY_STREAM__HEARTBEAT_SECONDS", "61", "must be at most 60"),
        ("GATEWAY_DRAIN__TIMEOUT_SECONDS", "inf", "finite"),
        ("GATEWAY_RELAY__MAX_SESSIONS", "many", "expected a whole number"),
        ("GATEWAY_SERVER__HOST", "[::1]", "without brackets, such as ::1"),
        ("GATEWAY_ADMIN__HOST", "127.0.0.1:8081", "without a port"),
        (
            "GATEWAY_ACCESS__KEYS",
            '[{"name": "a b", "sha256": "' + 64 * "a" + '"}]',
            "1 to 64 characters: letters",
        ),
        (
            "GATEWAY_ACCESS__KEYS",
            '[{"name": "a", "sha256": "' + 64 * "a" + '", "events_per_second": 1e999}]',
            "finite",
        ),
        ("GATEWAY_SERVER__TRUSTED_PROXIES", '"10.0.0.1"', "expected a list"),
    ],
)
def test_value_of_the_wrong_kind_is_refused(name: str, value: str, expected: str) -> None:
    """The message names the variable and what was expected."""
    said = problems(environ={name: value})

    assert len(said) == 1
    assert f"{name}:" in said[0].replace(")", "")
    assert expected in said[0]


@pytest.mark.parametrize(
    "text",
    [
        "[relay]\nmax_sessions = true\n",
        "[drain]\ntimeout_seconds = true\n",
        "[[access.keys]]\nname = 'a'\nmax_sessions = true\n",
    ],
)
def test_true_is_not_the_number_one(written: Any, text: str) -> None:
    """A truth value in the place of a number is refused."""
    assert "must not be true or false" in "".join(problems(written(text)))


def test_list_with_an_invalid_element_is_one_problem(written: Any) -> None:
    """Pydantic drops the element, and also finds that the list is too short."""
    file = written("[[access.keys]]\nname = 'a'\nsha256 = ['x']\n")

    assert problems(file) == [
        f"access.keys.0.sha256.0 (file {file}): must be a SHA-256 in 64 hexadecimal digits; `gateway keygen` prints one"
    ]


def test_list_that_is_written_twice_is_refused_with_a_remedy(written: Any) -> None:
    """The reference file has `keys = []`, which TOML forbids together with a table [[access.keys]]."""
    file = written("[access]\nkeys = []\n[[access.keys]]\nname = 'a'\n")

    assert "delete the line `… = []` of that list" in problems(file)[0]


def test_variables_with_one_underscore_too_few_are_found() -> None:
    """They set nothing, so the log names them. Those that Kubernetes makes for a service begin with tcp://."""
    environ = {
        "GATEWAY_RELAY_MAX_SESSIONS": "5",
        "GATEWAY_SERVER_PORT": "tcp://10.0.0.1:80",
        "GATEWAY_KEY": "k",
    }

    assert list(ignored_names(environ)) == [("GATEWAY_RELAY_MAX_SESSIONS", "GATEWAY_RELAY__MAX_SESSIONS")]


def test_file_that_is_no_toml_is_refused(written: Any) -> None:
    """A syntax error is reported with its position."""
    assert "not valid TOML" in problems(written("[server\n"))[0]


def test_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    """A file that was named must exist."""
    assert "No such file" in problems(tmp_path / "none.toml")[0]


def test_half_of_tls_is_refused(written: Any) -> None:
    """A certificate without its key is refused, because the gateway would serve plain HTTP unnoticed."""
    file = written("[server]\ntls_certificate_file = 'c.pem'\n")

    said = "is set without tls_key_file; set both or neither"
    assert problems(file) == [f"server.tls_certificate_file (file {file}): {said}"]


def test_half_of_tls_is_refused_where_it_was_set(written: Any) -> None:
    """The message names the variable, even if the section's other settings come from elsewhere."""
    with pytest.raises(ConfigError) as refused:
        load(
            written("[server]\nport = 1\n"),
            environ={"GATEWAY_SERVER__TLS_KEY_FILE": "k.pem"},
            flags={"server": {"port": 2}},
        )

    where = "server.tls_key_file (environment GATEWAY_SERVER__TLS_KEY_FILE)"
    assert refused.value.problems == [f"{where}: is set without tls_certificate_file; set both or neither"]


@pytest.mark.parametrize(
    "url",
    [
        "turn:",
        "http://a",
        "turn://a",
        "a:3478",
        "stun:a?transport=udp",
        "turns:a?transport=udp",
        "turn:a?transport=sctp",
    ],
)
def test_ice_server_of_no_known_form_is_refused(written: Any, url: str) -> None:
    """An ICE server of an unknown form is refused at start, not at the first call, and is named by its position in
    the file."""
    said = problems(written(f"[[upstream.ice_servers]]\nurls = ['stun:a', '{url}']\n"))

    assert said[0].startswith("upstream.ice_servers.0.urls.1 ")


def test_going_by_a_relay_needs_one(written: Any) -> None:
    """Relay-only ICE is refused without a TURN server, because no call could be opened."""
    text = "[upstream]\nice_transport_policy = 'relay'\nice_servers = [{ urls = 'stun:a' }]\n"

    assert "needs a TURN server" in problems(written(text))[0]


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[upstream]\napi_key = 'sk-verysecret'\n",
        "[admin]\ntoken = 'verysecret'\n",
        "[access]\nsigning_key = 'verysecret'\n",
        "[[upstream.ice_servers]]\nurls = 'turn:a'\ncredential = 'verysecret'\n",
    ],
)
def test_secret_in_the_file_is_refused_unseen(written: Any, text: str) -> None:
    """A secret in the file is refused, and the message does not repeat it."""
    said = problems(written(text))

    assert "does not belong in the file" in said[0]
    assert "verysecret" not in "".join(said)


def test_openai_key_comes_from_its_usual_name() -> None:
    """OPENAI_API_KEY is the gateway's key, and printing the configuration does not show it."""
    config = load(environ={"OPENAI_API_KEY": "sk-verysecret"})

    assert config.upstream.api_key is not None
    assert config.upstream.api_key.get_secret_value() == "sk-verysecret"
    assert "verysecret" not in repr(config)


def test_configured_key_file_goes_before_the_usual_name(written: Any) -> None:
    """A key file configured for the gateway overrides OPENAI_API_KEY, which other tools may have left in the
    environment."""
    config = load(written("[upstream]\napi_key_file = 'key'\n"), environ={"OPENAI_API_KEY": "sk-other"})

    assert config.upstream.api_key is None


def test_wrong_value_of_a_secret_is_not_repeated() -> None:
    """An error about a secret names the setting but not the value."""
    said = problems(environ={"GATEWAY_ADMIN__TOKEN__X": "verysecret"})

    assert "verysecret" not in "".join(said)


# --- the reference ----------------------------------------------------------------------------------------------------


def examples(text: str) -> str:
    """Return the reference with its examples enabled and the empty lists that they replace disabled."""
    text = re.sub(r"^(keys|ice_servers) = \[\]$", "", text, flags=re.MULTILINE)
    return re.sub(r"^#(?=[\[a-z])", "", text, flags=re.MULTILINE)


def test_reference_holds_every_key_with_its_default() -> None:
    """config/gateway.toml and the code name the same keys and the same defaults."""
    reference = flatten(tomllib.loads(REFERENCE.read_text(encoding="utf-8")))
    defaults = flatten(json.loads(Config().model_dump_json()))

    session = reference.pop("upstream.session")
    assert load(REFERENCE, environ={}) == Config()
    assert session == {**SESSION_TEMPLATE, "audio": {"input": {"turn_detection": "null"}}}
    assert set(reference) == set(defaults) - SECRETS - {"upstream.session"}


def test_reference_examples_hold_every_key_of_lists() -> None:
    """The tables that have no default are shown with all their members, and the examples are valid."""
    text = examples(REFERENCE.read_text(encoding="utf-8"))
    shown = tomllib.loads(text)
    wanted = {key for key in keys() if "[]." in key} - SECRETS

    found = {f"access.keys[].{name}" for key in shown["access"]["keys"] for name in key}
    found |= {
        f"upstream.ice_servers[].{name}" for server in shown["upstream"]["ice_servers"] for name in server
    }
    assert found == wanted


def test_reference_examples_load(tmp_path: Path) -> None:
    """The examples of the reference load as a configuration."""
    file = tmp_path / "gateway.toml"
    file.write_text(examples(REFERENCE.read_text(encoding="utf-8")), encoding="utf-8")

    config = load(file, environ={})

    assert config.access.keys[0].name == "example"
    assert config.upstream.ice_servers[0].username == "gateway"


def test_reference_says_of_every_key_when_to_change_it() -> None:
    """Each key, or group of keys, has a comment above it."""
    lines = REFERENCE.read_text(encoding="utf-8").splitlines()
    bare = [
        line
        for above, line in pairwise(lines)
        if re.match(r"#?[a-z][a-z_.]* = ", line) and not (above.startswith("# ") or " = " in above)
    ]

    assert bare == []


def test_development_configuration_loads() -> None:
    """config/development.toml points at the emulator."""
    config = load(ROOT / "config" / "development.toml", environ={})

    assert config.upstream.base_url == "http://127.0.0.1:8090/v1"
