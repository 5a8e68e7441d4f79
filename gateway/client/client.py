"""The client of one gateway: sessions, and turns that need no session."""

from gateway.client.answer import Answer, Json
from gateway.client.http import Connection
from gateway.client.session import Session
from gateway.client.turns import TURN_SECONDS, TurnStream, turn_body


class Client(Connection):
    """Talks to one gateway. Use it as `async with Client(url, key) as client`."""

    async def open(self, **body: object) -> Session:
        """Open a session. `body` is that of a create: `session`, `metadata`, `detach_grace_seconds`, `call_id`."""
        return Session(self, await self.request("POST", "/v1/sessions", json=body, repeatable=True))

    def attach(self, session_id: str, credential: str | None = None) -> Session:
        """Return an existing session, without a request.

        `credential` is the session's client secret (`gwk_…`), or a ticket (`gwt_…`), which allows reading only. Without
        one the client's key is used.
        """
        return Session(self, {"id": session_id}, credential)

    async def sessions(self) -> list[Json]:
        """Return the caller's session objects, newest first. Needs an API key."""
        listed: list[Json] = []
        query = {"limit": 100}
        while True:
            page = await self.request("GET", "/v1/sessions", params=query)
            listed += page["data"]
            if not page.get("has_more"):
                return listed
            query["after"] = listed[-1]["id"]

    async def ask(
        self, input: str | list[Json], *, session: Json | None = None, **response: object
    ) -> Answer:
        """Run one turn in a session opened for it, and return the whole answer.

        `session` is as in a create; the other keywords go into `response.create`.
        """
        body = turn_body(input, response, session)
        return Answer.of(
            await self.request("POST", "/v1/turns", json=body, repeatable=True, seconds=TURN_SECONDS)
        )

    def stream(
        self, input: str | list[Json], *, session: Json | None = None, **response: object
    ) -> TurnStream:
        """Run one turn in a session opened for it, and stream the answer: `async for piece in client.stream("Hello")`."""
        return TurnStream(self, "/v1/turns", turn_body(input, response, session))
