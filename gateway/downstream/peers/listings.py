"""Pages of the list of sessions, gathered from all nodes.

Each node lists its own sessions. Those of a node that does not answer, and those that no node has yet after their owner was
lost, are listed as their last snapshot describes them.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from aiohttp import hdrs, web

from gateway.downstream.http.answers import json_answer
from gateway.downstream.http.app_keys import BODY_SHA256, SESSIONS
from gateway.downstream.http.steps import one_at_a_time
from gateway.downstream.peers.elsewhere import ELSEWHERE, Elsewhere
from gateway.downstream.peers.splice import BrokenError, UnreachableError
from gateway.errors import CallerError, invalid_parameter
from gateway.relay.atrest import last_known
from gateway.relay.events.records import UnreadableRecord
from gateway.relay.journal import Peer
from gateway.relay.ports import View
from gateway.relay.requests import Principal

GATHER_SECONDS: Final = 2.0
"""How long a node may take to list its sessions."""

DEFAULT_LISTED: Final = 20
MAX_LISTED: Final = 100
"""Sessions per page: 1.6 MiB with 16 KiB of metadata each."""

Object = dict[str, object]


async def answer_page(
    request: web.Request,
    path: str,
    show: Callable[[View], Object],
    most: int,
    principal: Principal | None = None,
) -> web.Response:
    """Answer with the page that the parameters `limit` and `after` request, newest first.

    The sessions are those of a principal, None for all. `show` returns a session's object. `path` is where other nodes list
    theirs; for them a node lists `most` of its own. Raises `invalid-parameter` or `session-unknown`.
    """
    limit, after = _requested(request)
    sessions, nodes = request.app[SESSIONS], request.app.get(ELSEWHERE)
    async with one_at_a_time(request):
        if nodes is None:
            views, more = sessions.page(principal, limit, after)
            return _listing([show(view) for view in views], more)
        own = [show(view) for view in sessions.page(principal, most)[0]]
    if BODY_SHA256 in request:  # Another node asks, for the same caller.
        return _listing(own, more=False)
    name = None if principal is None else principal.name
    return _listing(*await _gather(request, nodes, path, own, show, limit, after, name))


def _requested(request: web.Request) -> tuple[int, str | None]:
    text = request.query.get("limit", str(DEFAULT_LISTED))
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0
    if not 1 <= limit <= MAX_LISTED:
        raise invalid_parameter("limit", f"must be a whole number from 1 to {MAX_LISTED}")
    return limit, request.query.get("after") or None


def _listing(objects: Sequence[Object], more: bool) -> web.Response:
    return json_answer({"object": "list", "data": objects, "has_more": more})


async def _gather(
    request: web.Request,
    nodes: Elsewhere,
    path: str,
    own: Sequence[Object],
    show: Callable[[View], Object],
    limit: int,
    after: str | None,
    principal: str | None,
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
