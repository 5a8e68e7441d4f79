"""A running HTTP side for tests: real sockets and a real hub; only the far end is simulated."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
from yarl import URL

from gateway.downstream.auth.access import Access
from gateway.downstream.server import Server, ServerDependencies
from gateway.errors import GatewayError
from gateway.relay.hub import Hub
from gateway.relay.ports import CallRequest, Json, Sink, Upstream
from tests.facts import Facts

SIGNING_KEY = b"k" * 32


class FarEnd:
    """A dialer whose calls send a greeting, record what they receive, and emit what a test asks for."""

    def __init__(self) -> None:
        self.requests: list[CallRequest] = []
        self.sent: list[str] = []
        self.closed = 0
        self.hung_up: list[bool] = []
        self.takes_bytes: int | None = None
        self.refusal: GatewayError | None = None
        self.gate: Callable[[], Awaitable[object]] | None = None
        self.sink: Sink | None = None

    async def dial(self, request: CallRequest, sink: Sink) -> Upstream:
        self.requests.append(request)
        if self.gate is not None:
            await self.gate()
        if self.refusal is not None:
            raise self.refusal
        self.sink = sink
        model = request.session.get("model", "gpt-realtime-2.1")
        created = {"type": "session.created", "session": {"type": "realtime", "model": model}}
        sink.received(request.generation, json.dumps(created))
        return self

    @property
    def call_id(self) -> str | None:
        return "rtc_far"

    @property
    def buffered(self) -> int:
        return 0

    @property
    def max_message_bytes(self) -> int | None:
        return self.takes_bytes

    @property
    def acknowledged(self) -> int:
        return len(self.sent)

    @property
    def undelivered(self) -> bool:
        return False

    async def hang_up(self, call_id: str, bearer: str | None) -> None:
        """Do nothing: no test asks this far end to hang up."""

    @property
    def diagnostics(self) -> Json:
        return {"phases": {"total": 0.01}}

    def send(self, batch: Sequence[str]) -> None:
        self.sent.extend(batch)

    async def probe(self, timeout: float) -> bool:
        return True

    async def close(self, hang_up: bool) -> None:
        self.closed += 1
        self.hung_up.append(hang_up)


@dataclass
class Harness:
    """A running HTTP side, and the parts that a test inspects or changes."""

    parts: ServerDependencies
    server: Server
    hub: Hub
    access: Access
    far_end: FarEnd
    facts: Facts
    http: aiohttp.ClientSession
    drained: list[bool] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.url

    async def call(self, method: str, path: str | URL, **options: Any) -> "Answer":
        """Make one request and read the whole answer; an absolute URL is used as it is."""
        url = path if isinstance(path, URL) or "://" in path else self.url + path
        async with self.http.request(method, url, **options) as response:
            return Answer(response.status, response.headers.copy(), await response.read())

    async def open(self, body: object = None, **options: Any) -> dict[str, Any]:
        """Open a session and return the create's answer."""
        answer = await self.call("POST", "/v1/sessions", json=body or {}, **options)
        assert answer.status == 201, answer.body
        return answer.json


@dataclass
class Answer:
    """The answer to a request."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self.body))

    @property
    def code(self) -> str:
        """Return the problem's code after checking that the answer has the form of every error."""
        assert self.headers["Content-Type"].startswith("application/problem+json"), self.body
        problem = self.json
        assert problem.keys() >= {"type", "title", "status", "detail", "instance", "code", "retryable"}
        assert problem["status"] == self.status
        return str(problem["code"])


Build = Callable[..., Awaitable[Harness]]
