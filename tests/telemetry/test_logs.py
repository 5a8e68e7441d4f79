"""Log lines: their two forms, what is redacted, and that lines of other libraries have the same form."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from gateway.errors import UpstreamError
from gateway.telemetry import LogFormat, LogLevel, Metrics, configure_logging, flush_logs
from gateway.telemetry.redaction import REDACTED, redact

SECRETS = [
    "sk-proj-abcdefghijklmnop",
    "sk-abcdefghijklmnop",
    "ek_68af296e8e408191a1120ab6383263c2",
    "gwk_ESkSJCidCwXuFwslhU1M5SNa.EusSlmIfM2NMguhJNES-VjgaSzMhYbzJCkkcHEMCBHU",
    "gwt_ESkSJCidCwXuFwslhU1M5SNa.tnsQ9yP1BDqvlIW4-UnfxBCa7oiWtPxN9TH46XQXMXQ",
    "gwp_MgVBC6eDaVMz-R8SevYiRFlGE4KWhdlHaG--Lsr5Nss",
]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore the process's logging."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def written() -> Callable[..., Callable[[], str]]:
    """Return a function that sets up logging and returns the output."""

    def configure(format: LogFormat = "json", level: LogLevel = "info") -> Callable[[], str]:
        stream = io.StringIO()
        configure_logging(format, level, stream)

        def text() -> str:
            flush_logs()
            return stream.getvalue()

        return text

    return configure


def lines(text: str) -> list[dict[str, Any]]:
    """Parse JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def test_json_is_one_object_a_line(written: Callable[..., Callable[[], str]]) -> None:
    """A line is one object with event, level, time and fields, also if they contain line ends."""
    text = written()
    structlog.get_logger().info("session_opened", session="gws_a", note="two\nlines")

    (line,) = lines(text())
    assert (line["event"], line["level"], line["session"]) == ("session_opened", "info", "gws_a")
    assert line["time"].endswith("Z")


def test_console_is_plain_where_there_is_no_terminal(written: Callable[..., Callable[[], str]]) -> None:
    """Without a terminal the console form has the event unchanged and no colour codes."""
    text = written("console")
    structlog.get_logger().info("listening on http://127.0.0.1:8080")

    assert "listening on http://127.0.0.1:8080" in text()
    assert "\x1b" not in text()


def test_console_writes_a_line_as_structlog_does(written: Callable[..., Callable[[], str]]) -> None:
    """The plain form is written by a faster function; only values that could be misread are quoted."""
    fields = {"a": "two words", "b": 1.5, "c": None, "d": "é", "e": ["x"], "f": "k=v", "g": "plain"}
    text = written("console")
    structlog.get_logger().info("seen", **fields)
    _, _, line = text().partition(" ")

    renderer = structlog.dev.ConsoleRenderer(colors=False, timestamp_key="time", pad_event_to=24)
    expected = renderer(None, "", {"time": "T", "level": "info", "event": "seen", **fields})
    assert line.rstrip("\n") == str(expected).removeprefix("T ")


def test_level_is_kept(written: Callable[..., Callable[[], str]]) -> None:
    """Lines below the configured level are not written."""
    text = written("json", "warning")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")

    assert [line["event"] for line in lines(text())] == ["loud"]


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_redacted_wherever_they_stand(
    secret: str, written: Callable[..., Callable[[], str]]
) -> None:
    """Secrets are redacted in the event, in a field, in nested values, in an exception's text, and in other
    libraries' lines."""
    text = written()
    log = structlog.get_logger()
    said = f"saw {secret}"
    log.info(said, field=secret, nested={"list": [{"deep": f"x {secret} y"}]}, error=ValueError(secret))
    try:
        raise ValueError(f"header was Bearer {secret}")
    except ValueError:
        log.exception("failed")
    logging.getLogger("aiohttp.server").warning("got %s", secret)

    assert len(lines(text())) == 3
    assert secret not in text()
    assert REDACTED in text()


def test_fields_that_are_secret_by_name_are_redacted(written: Callable[..., Callable[[], str]]) -> None:
    """A credential of unknown form is recognized by its field's name."""
    text = written()
    structlog.get_logger().info("seen", authorization="Basic abc", headers={"Authorization": "Digest abc"})

    assert "abc" not in text()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("authorization: bearer abc.def", f"authorization: bearer {REDACTED}"),
        ("Proxy-Authorization: BEARER abc.def", f"Proxy-Authorization: BEARER {REDACTED}"),
        ("with rk_abcdefgh1 or sk-abcdefgh1", f"with {REDACTED} or {REDACTED}"),
        ("http://user:pass@proxy:3128/", f"http://{REDACTED}@proxy:3128/"),
        ("/v1/sessions/gws_abc?ticket=gwt_abcdefghijk.x", f"/v1/sessions/gws_abc?ticket={REDACTED}"),
        (
            "task-based risk-averse gws_abc rtc_u1_abcdefgh evt_1",
            "task-based risk-averse gws_abc rtc_u1_abcdefgh evt_1",
        ),
    ],
)
def test_redaction_hits_credentials_only(text: str, clean: str) -> None:
    """Ids and common words stay readable."""
    assert redact(text) == clean


def test_other_libraries_log_from_warning_on(written: Callable[..., Callable[[], str]]) -> None:
    """Their lines have the same form and name their logger; lines below warning are not written."""
    text = written()
    logging.getLogger("aioice.ice").info("chatter")
    logging.getLogger("aioice.ice").warning("trouble with %s", "consent")

    (line,) = lines(text())
    assert (line["event"], line["level"], line["logger"]) == ("trouble with consent", "warning", "aioice.ice")


def test_traceback_is_one_field(written: Callable[..., Callable[[], str]]) -> None:
    """The line of an internal error has its traceback as one field."""
    text = written()
    metrics = Metrics(CollectorRegistry(), version="0")
    metrics.relay_failed("gws_a", ZeroDivisionError("oops"))

    (line,) = lines(text())
    assert (line["event"], line["session"]) == ("relay_failed", "gws_a")
    assert "ZeroDivisionError: oops" in line["exception"]


def test_probes_are_logged_at_debug_only(written: Callable[..., Callable[[], str]]) -> None:
    """Prometheus and Kubernetes send requests every few seconds, so these are logged at debug level only."""
    text = written()
    metrics = Metrics(CollectorRegistry(), version="0")
    metrics.http_answered("r1", {"route": "/metrics", "status": 200})
    metrics.http_answered("r2", {"route": "/v1/sessions", "status": 201, "seconds": 0.0123456789})

    assert [(line["request_id"], line["seconds"]) for line in lines(text())] == [("r2", 0.012346)]


def test_access_log_can_be_switched_off(written: Callable[..., Callable[[], str]]) -> None:
    """`log.access = false` leaves out the line for each request."""
    text = written()
    Metrics(CollectorRegistry(), version="0", access_log=False).http_answered("r1", {"route": "/v1/turns"})

    assert text() == ""


def test_refused_session_is_logged_with_upstreams_code(written: Callable[..., Callable[[], str]]) -> None:
    """The line has OpenAI's code but not its message, which may quote the caller. A time-out has its phase, and a
    failed connection its reason."""
    text = written()
    metrics = Metrics(CollectorRegistry(), version="0")
    upstream = {"status": 429, "code": "insufficient_quota", "message": "You said: hello"}
    metrics.session_refused("ada", UpstreamError("upstream-rejected", "", members={"upstream": upstream}))
    metrics.session_refused("ada", UpstreamError("upstream-timeout", "", members={"phase": "ice"}))
    metrics.session_refused("ada", UpstreamError("upstream-failed", "Its name cannot be resolved."))

    refused, late, absent = lines(text())
    assert (refused["code"], refused["upstream_status"], refused["upstream_code"]) == (
        "upstream-rejected",
        429,
        "insufficient_quota",
    )
    assert "hello" not in text()
    assert (late["code"], late["phase"]) == ("upstream-timeout", "ice")
    assert absent["reason"] == "Its name cannot be resolved."
