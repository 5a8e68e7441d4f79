"""The client without `async`, for scripts, notebooks and threads: the same names, with `for` and `with`.

The asyncio client runs on an event loop in its own thread, which ends with the client. A call waits for its result; Ctrl-C
cancels the pending work.

```python
with Client("http://127.0.0.1:8080") as client:
    print(client.ask("What is 6 times 7?").text)
```
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from gateway.client import client, session, turns
from gateway.client.answer import Answer, Json
from gateway.client.session import EARLIEST, Event

T = TypeVar("T")
_STOP_SECONDS: Final = 5.0


class _Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:  # Any: internal to asyncio
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("the client has ended; use it, and what it returned, inside its `with` block")
        waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return waiting.result()
        except BaseException:
            waiting.cancel()
            raise

    def iterate(self, items: AsyncGenerator[T]) -> Iterator[T]:
        end = object()

        async def following() -> object:
            return await anext(items, end)

        try:
            while (item := self.run(following())) is not end:
                yield item  # type: ignore[misc]  # `end` is the only other object
        finally:
            if not self._loop.is_closed():  # otherwise `stop` has closed it
                self.run(items.aclose())

    def stop(self) -> None:
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()


class Client:
    """Talks to one gateway. Use it as `with Client(url, key) as client`."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._client = client.Client(url, key)
        self._loop: _Loop | None = None

    def __enter__(self) -> Self:
        self._loop = _Loop()
        self._loop.run(self._client.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        loop, self._loop = self._running, None
        try:
            loop.run(self._client.__aexit__(kind, error, traceback))
        finally:
            loop.stop()

    @property
    def _running(self) -> _Loop:
        if self._loop is None:
            raise RuntimeError("use `with Client(…)`")
        return self._loop

    def open(self, **body: object) -> "Session":
        """Open a session. `body` is that of a create: `session`, `metadata`, `detach_grace_seconds`, `call_id`."""
        return Session(self._running, self._running.run(self._client.open(**body)))

    def attach(self, session_id: str, credential: str | None = None) -> "Session":
        """Return an existing session, without a request."""
        return Session(self._running, self._client.attach(session_id, credential))

    def sessions(self) -> list[Json]:
        """Return the caller's session objects, newest first. Needs an API key."""
        return self._running.run(self._client.sessions())

    def ask(self, input: str | list[Json], *, session: Json | None = None, **response: object) -> Answer:
        """Run one turn in a session opened for it, and return the whole answer."""
        return self._running.run(self._client.ask(input, session=session, **response))

    def stream(
        self, input: str | list[Json], *, session: Json | None = None, **response: object
    ) -> "TurnStream":
        """Run one turn in a session opened for it, and stream the answer."""
        return TurnStream(self._running, self._client.stream(input, session=session, **response))


class Session:
    """One session; `with` closes it at the end."""

    def __init__(self, loop: _Loop, wrapped: session.Session) -> None:
        self._loop = loop
        self._session = wrapped
        self.id = wrapped.id
        self.created = wrapped.created

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(self, *events: Mapping[str, Any]) -> Json:
        """Send client events in order, all or none. Return the receipt: `accepted`, `first`, `last`, `head`."""
        return self._loop.run(self._session.send(*events))

    def look(self) -> Json:
        """Return the session object as it is now."""
        return self._loop.run(self._session.look())

    def usage(self) -> Json:
        """Return the usage of the session so far."""
        return self._loop.run(self._session.usage())

    def turn(self, input: str | list[Json], **response: object) -> Answer:
        """Run a turn and return the whole answer."""
        return self._loop.run(self._session.turn(input, **response))

    def stream(self, input: str | list[Json], **response: object) -> "TurnStream":
        """Run a turn and stream the answer."""
        return TurnStream(self._loop, self._session.stream(input, **response))

    def events(
        self, after: str = EARLIEST, *, types: Iterable[str] = (), exclude: Iterable[str] = ()
    ) -> Iterator[Event]:
        """Yield the log's events after a cursor, in order and each once, until the session ends."""
        return self._loop.iterate(self._session.events(after, types=types, exclude=exclude))

    def close(self) -> None:
        """End the session."""
        self._loop.run(self._session.close())


class TurnStream:
    """A streamed answer: iterate over its pieces of text, then read `answer`."""

    def __init__(self, loop: _Loop, wrapped: turns.TurnStream) -> None:
        self._loop = loop
        self._turn = wrapped

    def __iter__(self) -> Iterator[str]:
        return self._loop.iterate(self._turn.__aiter__())

    def events(self) -> Iterator[Json]:
        """Yield the turn's events, up to and including its `response.done`."""
        return self._loop.iterate(self._turn.events())

    @property
    def answer(self) -> Answer:
        """The whole answer, available after it has been read to its end."""
        return self._turn.answer
