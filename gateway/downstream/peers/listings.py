"""Lists of sessions, gathered from all nodes.

Each node lists its own sessions. Those of a node that does not answer, and those that no node has yet after their owner was
lost, are listed as their last snapshot describes them.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from aiohttp import hdrs, web

from gateway.downstream.http.app_keys import SESSIONS
from gateway.downstream.peers.elsewhere import Elsewhere
from gateway.downstream.peers.splice import BrokenError, UnreachableError
from gateway.errors import CallerError
from gateway.relay.atrest import last_known
from gateway.relay.events.records import UnreadableRecord
from gateway.relay.journal import Peer
from gateway.relay.ports import View

GATHER_SECONDS: Final = 2.0
"""How long a node may take to list its sessions."""

Object = dict[str, object]


async def gather(
    request: web.Request,
    nodes: Elsewhere,
    path: str,
    own: Sequence[Object],
    show: Callable[[View], Object],
    limit: int,
    after: str | None,
    principal: str | None = None,
) -> tuple[list[Object], bool]:
    """Return a page of the lists of all nodes, newest first, and whether more follow. `show` returns the object of a session
    that no node lists. `principal` is the owner if all sessions have one; sessions of the same second are then ordered, too.
    Raises `session-unknown` if `after` is on no list, or OverloadError `recovering`."""
    word = request.headers.get(hdrs.AUTHORIZATION)
    headers = () if word is None else ((hdrs.AUTHORIZATION, word),)
    peers = nodes.directory.peers

    async def ask_one(peer: Peer) -> list[Object] | None:
        try:
            async with asyncio.timeout(GATHER_SECONDS):
                status, body = await nodes.fetch(peer, hdrs.METH_GET, path, headers=headers)
        except (UnreachableError, BrokenError, TimeoutError):
            return None
        found: list[Object] = json.loads(body)["data"] if status == 200 else []
        return found

    lists = await asyncio.gather(*map(ask_one, peers))
    named = {str(one["id"]): one for listed in (own, *lists) for one in listed or ()}
    silent = [peer.node for peer, listed in zip(peers, lists, strict=True) if listed is None]
    directory = nodes.directory
    ids = await (directory.sessions_on(silent) if principal is None else directory.sessions_of(principal))
    created = {session_id: int(str(one["created_at"])) for session_id, one in named.items()}
    created |= await directory.created_at([one for one in ids if one not in named])
    places = {} if principal is None else {session_id: place for place, session_id in enumerate(ids)}
    order = sorted(created, key=lambda one: (-created[one], places.get(one, 0)))
    if after is not None:
        if after not in created:
            raise CallerError("session-unknown", "The session in 'after' is not in this list.")
        order = order[order.index(after) + 1 :]
    page = order[:limit]
    resting = await _resting(request, nodes, [one for one in page if one not in named], show)
    every: Mapping[str, Object] = named | resting
    return [every[one] for one in page if one in every], len(order) > limit


async def _resting(
    request: web.Request, nodes: Elsewhere, session_ids: Sequence[str], show: Callable[[View], Object]
) -> dict[str, Object]:
    """Return the objects of sessions that no node lists. Those that were closed and forgotten meanwhile are missing, and those
    that another version of the gateway wrote."""
    shown: dict[str, Object] = {}
    snapshots = await nodes.directory.snapshots(session_ids) if session_ids else {}
    for session_id, snapshot in snapshots.items():
        try:
            shown[session_id] = show(last_known(snapshot, request.app[SESSIONS].limits))
        except UnreadableRecord:
            continue
    return shown
