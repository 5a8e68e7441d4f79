"""No credential is ever written: a run sends every kind of credential to every place, and then all output is
searched."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.caller import Caller, say
from tests.farend import FarEnd
from tests.programs import Served
from tests.waiting import until

pytestmark = pytest.mark.slow

CALLER_KEY = "gw-callers-key-5f0c"
WRONG_KEY = "gw-nobodys-key-77ab"
REFUSED = "ek_refused-upstream-c03a"
OPENAI_KEY = "sk-of-the-operator-d6b1"
SIGNING_KEY = "signing-key-of-the-gateway-of-40-letters"
ADMIN_TOKEN = "admin-token-of-the-operator-8c7e"
SPOKEN = "Rhinoceros"


@dataclass
class Run:
    """The secrets of a run, and all of its output."""

    secrets: set[str] = field(default_factory=set)
    seen: dict[str, bytes] = field(default_factory=dict)

    async def ask(self, caller: Caller, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Send a request and keep the whole answer as something that others might see."""
        answer, said = await caller.ask(method, path, body, **options)
        kept = str(said).encode() if not isinstance(said, bytes) else said
        self.seen[f"{len(self.seen)} {method} {answer.status}"] = str(answer.headers).encode() + kept
        return said


@pytest.fixture(params=["console", "json"])
def program(request: pytest.FixtureRequest, far_end: FarEnd, tmp_path: Path) -> Iterator[Served]:
    """Run a gateway with its most verbose log."""
    keys = f'[{{"name":"ann","sha256":"{hashlib.sha256(CALLER_KEY.encode()).hexdigest()}"}}]'
    environ = {
        "OPENAI_API_KEY": OPENAI_KEY,
        "GATEWAY_ACCESS__KEYS": keys,
        "GATEWAY_ACCESS__SIGNING_KEY": SIGNING_KEY,
        "GATEWAY_ADMIN__TOKEN": ADMIN_TOKEN,
        "GATEWAY_LOG__LEVEL": "debug",
        "GATEWAY_LOG__FORMAT": request.param,
        "GATEWAY_UPSTREAM__AUTH": "client",
    }
    with Served(tmp_path / "log", far_end.base_url, environ=environ) as program:
        yield program


async def test_nothing_secret_is_written_down(program: Served, far_end: FarEnd) -> None:
    """Logs, metrics, errors and diagnostics contain no key, secret, ticket or token, and no conversation text."""
    run = Run({CALLER_KEY, WRONG_KEY, REFUSED, OPENAI_KEY, SIGNING_KEY, ADMIN_TOKEN, SPOKEN})
    url, admin_url = program.url, program.admin_url
    async with Caller(url) as caller, Caller(admin_url) as operator:
        session = await lived_through(run, caller, operator, far_end)
        await looked_at(run, operator, session)
    program.stop()
    run.seen["log"] = program.output.encode()

    assert session["id"].encode() in run.seen["log"]
    leaks = {
        (place, word) for place, text in run.seen.items() for word in run.secrets if word.encode() in text
    }
    assert leaks == set()


async def lived_through(run: Run, caller: Caller, operator: Caller, far_end: FarEnd) -> dict[str, Any]:
    """Send every credential to every place that takes one, and to many that do not; lose a call on the way."""
    key = bearer(CALLER_KEY)
    own, renewed = [await ephemeral_key(caller, far_end) for _ in range(2)]
    run.secrets |= {own, renewed}
    # The create's answer contains the secrets; nothing after it may.
    answer, session = await caller.ask(
        "POST", "/v1/sessions", {"metadata": {"a": 1}}, headers=key | upstream(own)
    )
    assert answer.status == 201, session
    path = f"/v1/sessions/{session['id']}"
    secret, first = session["client_secret"]["value"], session["stream_url"].partition("ticket=")[2]
    _, made = await caller.ask("POST", f"{path}/tickets", headers=bearer(secret))
    run.secrets |= {secret, first, made["ticket"]}

    # in their places
    await caller.ask(
        "POST",
        f"{path}/events",
        say(f"Please repeat after me: {SPOKEN}"),
        headers=bearer(secret) | upstream(renewed),
    )

    async def answered() -> bool:
        _, page = await caller.ask("GET", f"{session['stream_url']}&format=json&wait=1")
        return any(one["event"]["type"] == "response.done" for one in page["events"])

    await until(answered)
    await operator.ask("POST", f"/sessions/{session['id']}/restart", headers=bearer(ADMIN_TOKEN))
    await far_end.fault(session["call_id"], do="vanish")

    # in wrong places, and wrong ones in their places
    for word in sorted(run.secrets - {SPOKEN}):
        for shown in (
            bearer(word),
            {"Authorization": word},
            {"X-Upstream-Authorization": word},
        ):
            await run.ask(caller, "GET", f"/v1/sessions/gws_{'A' * 24}", headers=shown)
            await run.ask(caller, "PUT", path, headers=shown)
        for name in ("key", "ticket", "after", "format", "types", "wait"):
            await run.ask(caller, "GET", f"{path}/events", params={name: word}, headers=bearer(WRONG_KEY))
            await run.ask(operator, "GET", "/sessions", params={name: word})
        await run.ask(caller, "POST", "/v1/sessions", {word: word, "session": 1}, headers=bearer(WRONG_KEY))
        await run.ask(caller, "POST", f"{path}/events", f'{{"type":"{word}', headers=bearer(secret))
        await run.ask(caller, "POST", f"{path}/close", word + "x", headers={"Content-Type": "text/plain"})

    # refused by OpenAI
    await run.ask(caller, "POST", "/v1/sessions", headers=key | upstream(REFUSED))
    given: dict[str, Any] = session
    return given


async def looked_at(run: Run, operator: Caller, session: dict[str, Any]) -> None:
    """Read everything that the admin listener shows."""
    admin = bearer(ADMIN_TOKEN)
    for path in ("/metrics", "/sessions", f"/sessions/{session['id']}", "/livez", "/readyz"):
        await run.ask(operator, "GET", path, headers=admin)
    await run.ask(operator, "GET", "/metrics", headers={"Accept": "application/openmetrics-text"})
    await run.ask(operator, "DELETE", f"/sessions/{session['id']}", headers=admin)
    await run.ask(operator, "GET", f"/sessions/{session['id']}", headers=admin)


def bearer(word: str) -> dict[str, str]:
    """Return the headers that carry a credential."""
    return {"Authorization": f"Bearer {word}"}


def upstream(word: str) -> dict[str, str]:
    """Return the header with an upstream credential."""
    return {"X-Upstream-Authorization": f"Bearer {word}"}


async def ephemeral_key(caller: Caller, far_end: FarEnd) -> str:
    """Let the service create a key, as a caller's own server would."""
    url = f"{far_end.base_url}/realtime/client_secrets"
    async with caller.http.post(url, json={}, headers=bearer(OPENAI_KEY)) as answer:
        made = await answer.json()
        assert made["value"].startswith("ek_"), made
        return str(made["value"])
