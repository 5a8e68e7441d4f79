"""gateway/upstream/descriptors.py: if a call gets no socket, the error names that cause instead of the network or
OpenAI."""

import itertools
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from gateway.errors import OverloadError, UpstreamError
from gateway.upstream.descriptors import exhausted
from tests.facts import Facts
from tests.upstream.kit import REQUEST, Remembering, dialling


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Leave the process this many free file descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The listing itself uses one, which is closed by the time it is read.
    used = {int(name) for name in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{name}").is_symlink()}
    free = itertools.islice((number for number in itertools.count() if number not in used), count, None)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(free), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("free", [0, 1])
async def test_a_call_without_a_descriptor_is_refused_as_capacity(far_end: str, free: int) -> None:
    """A create is refused as `capacity` if the socket for packets, or the one for signalling, cannot be opened."""
    async with dialling(far_end) as dialer:
        with free_descriptors(free), pytest.raises(OverloadError) as refusal:
            await dialer.dial(REQUEST, Remembering())

        assert (refusal.value.code, refusal.value.retry_after) == ("capacity", 5.0)
        assert "file descriptor" in refusal.value.detail


async def test_a_hang_up_without_a_descriptor_is_reported(far_end: str) -> None:
    """The failure is reported but not raised, because nothing awaits the hang-up."""
    facts = Facts()
    async with dialling(far_end, facts) as dialer:
        with free_descriptors(0):
            await dialer.hang_up("rtc_1", None)

    assert [what for what, _ in facts.of("close_failed")] == ["hang-up"]


async def test_a_machine_without_an_address_is_told_as_such() -> None:
    """If descriptors are free but there is no address, the error names the network."""
    async with dialling("http://127.0.0.1:9/v1") as dialer:
        refusal = dialer.no_address(turn_failed=True)

    assert isinstance(refusal, UpstreamError)
    assert refusal.detail == "The TURN server gave no network address for the connection to OpenAI."


def test_only_errors_of_the_system_are_an_exhaustion() -> None:
    """A refused connection is not an exhaustion of descriptors."""
    assert not exhausted(ConnectionRefusedError(111, "refused"))
    assert not exhausted(aiohttp.ServerDisconnectedError())
