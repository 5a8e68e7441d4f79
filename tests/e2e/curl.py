"""curl as users run it: with their arguments, its output read as it arrives, killed if needed."""

import asyncio
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

from gateway.client import Block, BlockParser
from tests.e2e.caller import DEADLINE_SECONDS

CHUNK = 65536


class Curl:
    """One run of curl."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def some(self) -> bytes:
        """Wait for output and return it, empty at its end."""
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self._process.stdout.read(CHUNK)

    async def rest(self) -> bytes:
        """Return all its output from here to its end."""
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self._process.stdout.read()

    async def blocks(self) -> AsyncGenerator[Block, None]:
        """Read the output as an event stream and yield the blocks that have data."""
        parser = BlockParser()
        while chunk := await self.some():
            for block in parser.feed(chunk):
                if block.data is not None:
                    yield block

    async def status(self) -> int:
        """Wait for its end and return its exit status."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self._process.wait()

    def kill(self) -> None:
        """Kill it in the middle of its request."""
        with suppress(ProcessLookupError):
            self._process.kill()


@asynccontextmanager
async def curl(*arguments: str) -> AsyncIterator[Curl]:
    """Run curl quietly, without a proxy or a configuration file."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-q", "--silent", "--noproxy", "*", *arguments, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL
    )
    one = Curl(process)
    try:
        yield one
    finally:
        one.kill()
        await process.communicate()


async def curled(*arguments: str) -> str:
    """Run curl to its end and return its output; fail if curl does."""
    async with curl(*arguments) as one:
        output = await one.rest()
        assert await one.status() == 0, output
        return output.decode()
