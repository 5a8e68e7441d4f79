"""Whether a call is alive: consent (RFC 7675) with an ICE-lite far end that ignores checks without USE-CANDIDATE.

Stock aioice loses such a call after about 33 s, so these tests take a minute.
"""

import asyncio
from collections.abc import Mapping

import pytest

from gateway.relay.ports import LossCause
from gateway.upstream.tuning import ALL_HOOKS, Hook
from tests.facts import Facts
from tests.upstream.farend import program
from tests.upstream.kit import REQUEST, Remembering, dialling

LIVES_SECONDS = 62.0


async def _live(setup: str, hooks: frozenset[Hook], results: dict[str, object]) -> None:
    facts = Facts()
    arguments = ("-m", "gateway", "emulate", "--port", "0", "--consent", "strict", "--setup", setup)
    async with program(*arguments) as url, dialling(url, facts, hooks=hooks) as dialer:
        sink = Remembering()
        call = await dialer.dial(REQUEST, sink)
        try:
            await sink.until(lambda sink: sink.losses, seconds=LIVES_SECONDS)
        except TimeoutError:
            # The call is connected, and it works.
            before = len(sink.texts)
            call.send(['{"type":"response.create"}'])
            await sink.until(lambda sink: len(sink.texts) > before)
        name = f"{setup} {'nominated' if Hook.NOMINATED_CONSENT in hooks else 'stock'}"
        results[name] = sink.losses[0][1] if sink.losses else "alive"
        await call.close(hang_up=True)


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_call_outlives_a_minute_with_a_strict_far_end() -> None:
    """Nominating consent checks keep a call alive in either DTLS role; without the hook the same call is lost."""
    results: dict[str, object] = {}
    stock = ALL_HOOKS - {Hook.NOMINATED_CONSENT}
    async with asyncio.TaskGroup() as group:
        for setup, hooks in (("active", ALL_HOOKS), ("passive", ALL_HOOKS), ("active", stock)):
            group.create_task(_live(setup, hooks, results))

    expected: Mapping[str, object] = {
        "active nominated": "alive",
        "passive nominated": "alive",
        "active stock": LossCause.CONSENT_EXPIRED,
    }
    assert results == expected
