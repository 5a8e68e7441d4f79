"""A Sentinel that names the primary it is told to, for what real ones do only for a moment."""

import asyncio
from typing import Self

from gateway.cluster.resp import Parser, command


class FakeSentinel:
    """Answers what clients ask Sentinels."""

    def __init__(self, port: int) -> None:
        self.primary = port
        """The port of the primary that it names."""
        self.state_port = port
        """The port that its description of the primary has, which is the former one during a failover."""
        self.epoch = 0
        self.flags = "master"
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def port(self) -> int:
        assert self._server is not None, "not started"
        return int(self._server.sockets[0].getsockname()[1])

    def names(self, port: int, epoch: int) -> None:
        """Name another primary after a failover."""
        self.primary = self.state_port = port
        self.epoch = epoch

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = Parser()  # A command has the form of a reply.
        while data := await reader.read(65536):
            for words in parser.feed(data):
                assert isinstance(words, list)
                writer.write(self._answer([bytes(word) for word in words]))  # type: ignore[arg-type]  # all are bytes
        writer.close()

    def _answer(self, words: list[bytes]) -> bytes:
        match [word.upper() for word in words[:2]]:
            case [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME"]:
                return command([b"127.0.0.1", b"%d" % self.primary])
            case [b"SENTINEL", b"MASTER"]:
                return self._state()
            case [b"SENTINEL", b"MASTERS"]:
                return b"*1\r\n" + self._state()
        return b"+OK\r\n"

    def _state(self) -> bytes:
        state = {
            "name": "main",
            "ip": "127.0.0.1",
            "port": self.state_port,
            "flags": self.flags,
            "num-other-sentinels": 2,
            "config-epoch": self.epoch,
        }
        return command(str(part).encode() for pair in state.items() for part in pair)
