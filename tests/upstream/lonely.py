"""A program that opens a call to its own emulator and prints `open`; it runs in a namespace with only loopback."""

import asyncio
import sys

from tests.upstream.farend import program
from tests.upstream.kit import REQUEST, Remembering, dialling


async def main() -> None:
    """Open one call and close it."""
    async with program("-m", "gateway", "emulate", "--port", "0") as url, dialling(url) as dialer:
        sink = Remembering()
        call = await dialer.dial(REQUEST, sink)
        await sink.until(lambda sink: sink.texts)
        await call.close(hang_up=True)
    sys.stdout.write("open\n")


asyncio.run(main())
