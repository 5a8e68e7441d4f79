"""Changes to aioice's ICE connection, one class per change.

Each class extends `aioice.Connection`; `tuning` composes those that are switched on and gives a connection that class
before it gathers. This file knows nothing of DTLS, SDP or the service.

Why consent (RFC 7675) is changed: OpenAI's media server is an ICE-lite agent and is reported to ignore checks
without USE-CANDIDATE once it is connected. aioice sends consent checks without it, treats the silence as a lost path, and
closes a healthy call after about 33 s. libwebrtc sends the attribute in every check, so it is harmless elsewhere.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any, cast

from aioice import stun as aioice_stun
from aioice.ice import (
    ICE_COMPLETED,
    ICE_FAILED,
    CandidatePair,
    Connection,
    StunProtocol,
    TransportPolicy,
)

from gateway.upstream import stun

# RFC 7675 5.1: a check every 5 s, each delay drawn from 0.8 to 1.2 of it.
CONSENT_INTERVAL_SECONDS = 5.0
# After a check that got no answer the next comes sooner: five more are sent before a path of the default 15 s is given up.
CONSENT_RETRY_SECONDS = 1.0
# One retransmission after 0.5 s, then 1 s to answer either: with aioice's own 0.5 s a slow path would be considered dead.
CONSENT_RETRANSMISSIONS = 1
# RFC 8445 6.1.4.2 (Ta, 50 ms there): between the starts of two checks.
PACE_SECONDS = 0.02
# aioice repeats a check after 0.5, 1, 2, 4 and 8 s. After an outage of 8 s it would wait for as long again, and a set-up has
# 15 s in all. libwebrtc repeats them at an even pace, too, every 0.5 s.
REPEAT_SECONDS = 1.0
# RFC 8863 4: after all pairs have failed, the far end may still reach us from an address that it did not name. It wants 39.5 s;
# a far end retransmits its checks after 0.5 and 1 s, and the caller waits.
PATIENCE_SECONDS = 3.0
# RFC 7983 7: the first byte of a datagram shows its protocol.
_STUN = range(4)
# No answer, or a socket that cannot send: it was closed, which uvloop and asyncio report in different ways.
_UNANSWERED = (aioice_stun.TransactionError, OSError, RuntimeError, AttributeError)
_FIRST_DTLS, _LAST_DTLS = 20, 63
_CHECKED = (CandidatePair.State.IN_PROGRESS, CandidatePair.State.SUCCEEDED)


class NominatedConsent(Connection):
    """Consent checks that a strict ICE-lite peer answers, and that notice a dead one sooner."""

    consent_timeout: float
    """In seconds; set by `tuning.tune` from `upstream/config.py`."""

    async def query_consent(self) -> None:
        """Check consent until it expires, then close the connection."""
        assert self.remote_password is not None
        key = self.remote_password.encode("utf8")
        loop = asyncio.get_running_loop()
        heard = loop.time()
        answered = True
        while True:
            drawn = CONSENT_INTERVAL_SECONDS * (0.8 + 0.4 * random.random())  # noqa: S311 - spreads load, no secret
            await asyncio.sleep(drawn if answered else CONSENT_RETRY_SECONDS)
            for pair in list(self._nominated.values()):
                try:
                    await pair.protocol.request(
                        self.build_request(pair, nominate=True),
                        pair.remote_addr,
                        integrity_key=key,
                        retransmissions=CONSENT_RETRANSMISSIONS,
                    )
                except _UNANSWERED:
                    answered = False
                else:
                    answered, heard = True, loop.time()
            if loop.time() - heard >= self.consent_timeout:
                # close() would cancel this task if it were not forgotten first, as in aioice.
                self._query_consent_task = None
                await self.close()
                return

    async def answers(self, retransmissions: int) -> bool:
        """Send a check now, as `query_consent` does, and return whether it was answered.

        With aioice's delays of 0.5 s, doubled each time, two retransmissions make 3.5 s.
        """
        assert self.remote_password is not None
        key = self.remote_password.encode("utf8")
        for pair in list(self._nominated.values()):
            request = self.build_request(pair, nominate=True)
            try:
                await pair.protocol.request(
                    request, pair.remote_addr, integrity_key=key, retransmissions=retransmissions
                )
            except _UNANSWERED:
                continue
            return True
        return False


class PromptChecks(Connection):
    """An ICE handshake that ends when a pair is nominated, not at the next tick of the pace.

    aioice starts a check, sleeps 20 ms, and only then looks whether it is done: 21 of the 29 ms that a set-up on loopback
    took. Here the pace runs beside the wait.

    A check that is not answered is repeated at an even pace, so that a set-up goes on soon after an outage.

    aioice also gives up as soon as all pairs have failed. A far end that listens on all addresses may answer a check from
    another address than the one that it was sent to, so that the check fails (RFC 8445 7.2.5.2.1), and its own check from
    there, which works, may come a moment later: libdatachannel on the same machine.
    """

    patience = PATIENCE_SECONDS
    _requests: dict[CandidatePair, aioice_stun.Message] | None = None

    async def connect(self) -> None:
        """Override `Connection.connect` to return at once on success."""
        if not self._local_candidates_end:
            raise ConnectionError("Local candidates gathering was not performed")
        if self.remote_username is None or self.remote_password is None:
            raise ConnectionError("Remote username or password is missing")
        for remote_candidate in self._remote_candidates:
            self._pair_remote_candidate(remote_candidate)
        self.sort_check_list()
        self._unfreeze_initial()
        for early_check in self._early_checks:
            self.check_incoming(*early_check)
        self._early_checks.clear()
        self._early_checks_done = True

        self._requests = {}
        pace = asyncio.create_task(self._pace())
        try:
            outcome = await self._check_list_state.get()
            if outcome == ICE_FAILED and not self._closing:
                outcome = await self._late_outcome()
        finally:
            self._requests = None
            pace.cancel()
            await asyncio.wait({pace})
            for check in self._check_list:
                if check.task:
                    check.task.cancel()
        if not pace.cancelled() and (error := pace.exception()) is not None:
            raise ConnectionError("ICE negotiation failed") from error
        # Closed in the same turn of the loop in which a pair was found: nothing else would end the consent checks.
        if outcome != ICE_COMPLETED or self._closing:
            raise ConnectionError("ICE negotiation failed")
        self._query_consent_task = asyncio.create_task(self.query_consent())

    async def _late_outcome(self) -> int:
        """Wait for a check of the far end that opens a path after all."""
        try:
            async with asyncio.timeout(self.patience):
                outcome = ICE_FAILED
                while outcome == ICE_FAILED and not self._closing:
                    self._check_list_done = False
                    outcome = await self._check_list_state.get()
                return outcome
        except TimeoutError:
            self._check_list_done = True
            return ICE_FAILED

    async def _pace(self) -> None:
        while self._check_periodic():
            await asyncio.sleep(PACE_SECONDS)
        if not self._check_list and not self._check_list_done:
            self._check_list_done = True
            self._check_list_state.put_nowait(ICE_FAILED)
        while True:
            await asyncio.sleep(REPEAT_SECONDS)
            self._repeat()

    def build_request(self, pair: CandidatePair, nominate: bool) -> aioice_stun.Message:
        """Override: remember the request of a check during the handshake."""
        request = super().build_request(pair, nominate)
        if self._requests is not None:
            self._requests[pair] = request
        return request

    def _repeat(self) -> None:
        for pair, request in (self._requests or {}).items():
            if pair.state is CandidatePair.State.IN_PROGRESS:
                with contextlib.suppress(*_UNANSWERED):
                    pair.protocol.send_stun(request, pair.remote_addr)


class ChosenAddresses(Connection):
    """Host candidates from the addresses it is given.

    aioice lists every interface each time (0.2 ms) and opens a socket on each, docker bridges included; and it leaves out
    loopback, without which nothing connects on a machine that has no network.
    """

    addresses: tuple[str, ...] = ()

    async def gather_candidates(self) -> None:
        """Gather from `addresses`, or from every interface if that is empty."""
        if not self.addresses:
            await super().gather_candidates()
            return
        if self._local_candidates_start:
            return
        self._local_candidates_start = True
        hosts = list(self.addresses) if self._transport_policy == TransportPolicy.ALL else []
        for component in self._components:
            self._local_candidates += await self.get_component_candidates(component, hosts)
        self._local_candidates_end = True


class DirectDatagrams(Connection):
    """A connection that hands DTLS datagrams to their reader without a queue and a task, and handles plain checks itself."""

    direct: Callable[[bytes], None] | None = None

    async def gather_candidates(self) -> None:
        """Gather, then route the sockets' datagrams here."""
        await super().gather_candidates()
        for protocol in self._protocols:
            protocol.__class__ = _DirectProtocol

    def build_request(self, pair: CandidatePair, nominate: bool) -> aioice_stun.Message:
        """Override: the request is packed once, in one step."""
        request = super().build_request(pair, nominate)
        if self.ice_controlling:
            request.__class__ = _PackedRequest
        return request

    def put(self, data: bytes) -> None:
        """Send a datagram to the nominated address; raises ConnectionError where there is none."""
        pair = self._nominated.get(1)
        if pair is None:
            raise ConnectionError("Cannot send data, not connected")
        pair.protocol.transport.sendto(data, pair.remote_addr)

    def end(self) -> None:
        """Wake the reading task and tell it that the connection is closed."""
        self._queue.put_nowait(None)

    def checked(self, protocol: StunProtocol, address: tuple[str, int], priority: int) -> None:
        """Consider a check that was answered. Override of aioice's way: it does nothing where nothing is left to do.

        That is so when the pair was or is being checked, and when a pair is nominated: what has not been checked by then is
        not needed. aioice would still check each address that a check comes from.
        """
        if self._early_checks_done and (
            (self._check_list_done and self._nominated)
            or any(
                pair.state in _CHECKED and pair.protocol is protocol and pair.remote_addr == address
                for pair in self._check_list
            )
        ):
            return
        message = aioice_stun.Message(
            aioice_stun.Method.BINDING, aioice_stun.Class.REQUEST, attributes={"PRIORITY": priority}
        )
        if self._early_checks_done:
            self.check_incoming(message, address, protocol)
        else:
            self._early_checks.append((message, address, protocol))


class _PackedRequest(aioice_stun.Message):
    _packed = b""

    def add_message_integrity(self, key: bytes) -> None:
        given = self.attributes
        self._packed = stun.request(
            self.transaction_id,
            given["USERNAME"].encode(),
            given["PRIORITY"],
            given["ICE-CONTROLLING"],
            key,
            nominate="USE-CANDIDATE" in given,
        )

    def __bytes__(self) -> bytes:
        return self._packed


class _DirectProtocol(StunProtocol):
    # bytes: asyncio never passes a str, which aioice allows; Any: as in aioice
    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:  # type: ignore[override]
        first = data[0] if data else 64
        if _FIRST_DTLS <= first <= _LAST_DTLS:
            connection: DirectDatagrams = self.receiver  # type: ignore[assignment]  # the connection that made this protocol
            direct = connection.direct
            # The order of arrival is kept: nothing passes what still waits in the queue.
            if direct is not None and not connection._queue._queue:  # type: ignore[attr-defined]  # noqa: SLF001 - a file of private hooks; asyncio's queue is a deque with a lock's price
                direct(data)
            else:
                connection.data_received(data, self.local_candidate.component)
        elif first in _STUN and not self._took_check(data, (addr[0], addr[1])):
            super().datagram_received(data, addr)
        # Everything else, such as RTP, is dropped.

    def _took_check(self, data: bytes, address: tuple[str, int]) -> bool:
        """Handle a check or its answer if it has the usual form; return False for what aioice has to handle."""
        if data[0] == 0:
            connection = cast(DirectDatagrams, self.receiver)
            key = connection.local_password.encode()
            check = stun.read_request(data, key)
            if (
                check is None
                or not connection._valid_username(check[1])  # noqa: SLF001 - a file of private hooks
                or not connection.ice_controlling
                or connection._closing  # noqa: SLF001 - likewise
            ):
                return False
            transaction, _, priority = check
            self.transport.sendto(stun.response(transaction, address, key), address)
            connection.checked(self, address, priority)
            return True
        if (waiting := self.transactions.get(data[8:20])) is None or data[1] != 1:
            return False
        if (signed := stun.signed_part(data)) is None:
            return False
        message = aioice_stun.Message(
            aioice_stun.Method.BINDING,
            aioice_stun.Class.RESPONSE,
            data[8:20],
            {"MESSAGE-INTEGRITY": signed[1]},
        )
        message._integrity_data = signed[0]  # noqa: SLF001 - a file of private hooks
        waiting.response_received(message, address)
        return True
