"""Who is calling, and what they may do (api.md, 6 Credentials).

A caller sends an API key, a session's client secret or ticket, or nothing. `grant` and `session_grant` turn that into
a `Grant`, which is all that handlers use. Keys are stored as SHA-256 digests and compared in constant time. Keys and
secrets are not accepted in a query, since proxies and histories store it. Tickets are, since `EventSource` cannot send
headers.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal

from aiohttp import hdrs, web
from multidict import istr

from gateway.downstream.auth.buckets import Bucket, SharedRates
from gateway.downstream.auth.credentials import Signatures, looks_signed
from gateway.downstream.http.app_keys import PRINCIPAL, SESSION, SESSIONS
from gateway.errors import CallerError, OverloadError
from gateway.relay.events.envelope import matches_type
from gateway.relay.ports import Handle
from gateway.relay.requests import Principal

Need = Literal["read", "send"]
"""The required permission. Tickets allow reading only."""

ANONYMOUS: Final = "anonymous"

SECRET_ALLOWS: Final = (
    "conversation.item.*",
    "response.create",
    "response.cancel",
    "input_audio_buffer.*",
)
"""Event types that every client secret may send: enough for a conversation, without changes to the session."""

BURST_SECONDS: Final = 2.0
"""The burst of a rate limit, in seconds of its rate."""

_UPSTREAM_AUTHORIZATION: Final = istr("X-Upstream-Authorization")

_BEARER: Final = re.compile(r"bearer +([!-~]+) *\Z", re.IGNORECASE)
"""The name of the scheme is case-insensitive (RFC 9110 11.1)."""


@dataclass(frozen=True, slots=True)
class KeyRule:
    """One caller: the SHA-256 digests of its keys (two during a rotation) and its limits, None for no limit."""

    name: str
    sha256: tuple[bytes, ...] = field(default=(), repr=False)
    max_sessions: int | None = None
    sessions_per_minute: float | None = None
    events_per_second: float | None = None
    bytes_per_second: float | None = None
    tokens_per_session: int | None = None
    tokens_per_day: int | None = None
    dollars_per_session: float | None = None
    dollars_per_day: float | None = None


@dataclass(frozen=True, slots=True)
class AccessRules:
    """All access settings of the operator. Frozen: a reload replaces the whole object."""

    keys: tuple[KeyRule, ...] = ()
    keys_expected: bool = False
    """Keys are configured, even if there is none at the moment. Then an empty list of keys admits no caller."""
    anonymous: KeyRule | None = None
    """The rule for callers without a credential if keys are configured. Without keys they are always admitted."""
    hosts: frozenset[str] = frozenset()
    """Host names, in addition to loopback's, that are allowed for callers without a key."""
    own_origins: frozenset[str] = frozenset()
    """The gateway's own origins as clients see them, such as that of `server.public_url`."""
    cors_origins: frozenset[str] = frozenset()
    """Allowed origins of other sites, in the form of `normal_origin`, or `*` for all."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """Proxies whose `X-Forwarded-Proto` is trusted."""
    members_locked: bool = False
    """The operator has locked members of the session object."""
    client_upstream: bool = False
    """Each caller brings its own upstream credential (`upstream.auth = "client"`)."""

    @property
    def keyed(self) -> bool:
        """Whether a key that a caller sends must be a known one."""
        return bool(self.keys) or self.keys_expected

    @property
    def serves_anonymous(self) -> bool:
        """Whether callers without a credential are admitted."""
        return self.anonymous is not None or not self.keyed


_EVERYTHING: Final = ("*",)


@dataclass(frozen=True, slots=True)
class Grant:
    """An authorized caller."""

    principal: Principal
    credential: Literal["key", "anonymous", "secret", "ticket"]
    patterns: tuple[str, ...] = _EVERYTHING
    """Event types that it may send, or prefixes of them followed by `*`."""
    restricted: bool = False
    """Permissions depend on an event's members, so events that parsers may interpret differently are refused."""

    def allows(self, event_type: str) -> bool:
        return self.patterns == _EVERYTHING or any(
            matches_type(pattern, event_type) for pattern in self.patterns
        )


class Access:
    """The current rules and their rate limits. `replace` changes the rules while the gateway runs."""

    def __init__(
        self,
        rules: AccessRules,
        signatures: Signatures,
        monotonic: Callable[[], float],
        shared: SharedRates | None = None,
    ) -> None:
        """`shared` has the rate limits if there are several nodes."""
        self.rules = rules
        self.signatures = signatures
        self._monotonic = monotonic
        self._shared = shared
        # One bucket per principal and limit, so their number is bounded by the configured names.
        self._buckets: dict[tuple[str, str], Bucket] = {}
        # What each caller without a signed credential may do, by its name. Bounded in the same way.
        self._grants: dict[str, Grant] = {}

    def replace(self, rules: AccessRules) -> None:
        """Apply new rules. Running sessions keep their owner by name; rate limits start with full buckets."""
        self.rules = rules
        self._buckets.clear()
        self._grants.clear()

    def rule(self, principal: str) -> KeyRule | None:
        """Return a principal's limits; None if its key was removed or it has none."""
        if principal == ANONYMOUS:
            return self.rules.anonymous
        return next((rule for rule in self.rules.keys if rule.name == principal), None)

    def grant_of(self, rule: KeyRule | None) -> Grant:
        """Return what the caller of a key may do, or a caller without one. Made once, since every request needs it."""
        name = ANONYMOUS if rule is None else rule.name
        found = self._grants.get(name)
        if found is None:
            found = self._grants[name] = self._anonymous() if rule is None else self._keyed(rule)
        return found

    def _anonymous(self) -> Grant:
        limit = self.rules.anonymous.max_sessions if self.rules.anonymous else None
        principal = Principal(ANONYMOUS, anonymous=True, max_sessions=limit)
        return Grant(principal, "anonymous", restricted=self.rules.members_locked)

    def _keyed(self, rule: KeyRule) -> Grant:
        principal = _principal(rule)
        return Grant(principal, "key", restricted=self.rules.members_locked or principal.budgeted)

    def caller_by_key(self, word: str) -> KeyRule | None:
        """Return the caller of a key, in constant time; None if the key is unknown."""
        digest = hashlib.sha256(word.encode("utf-8", "replace")).digest()
        found = None
        for rule in self.rules.keys:
            for known in rule.sha256:
                if hmac.compare_digest(digest, known):
                    found = rule
        return found

    async def spend_opening(self, grant: Grant) -> None:
        """Count a session being opened. Raises `rate-limited`."""
        rule = self.rule(grant.principal.name)
        if rule is not None and rule.sessions_per_minute is not None:
            # The sessions of a whole minute may be opened at once, since the limit is per minute.
            most = rule.sessions_per_minute
            await self._spend(rule, "sessions", 1.0, most / 60, max(1.0, most))

    async def spend_bytes(self, grant: Grant, size: int) -> None:
        """Count a body before it is parsed, since parsing costs the same if it is invalid. Raises `rate-limited`."""
        rule = self.rule(grant.principal.name)
        if rule is not None and rule.bytes_per_second is not None:
            rate = rule.bytes_per_second
            await self._spend(rule, "bytes", float(size), rate, rate * BURST_SECONDS)

    async def spend_events(self, grant: Grant, events: int) -> None:
        """Count client events before they are sent. Raises `rate-limited`."""
        rule = self.rule(grant.principal.name)
        if rule is not None and rule.events_per_second is not None:
            rate = rule.events_per_second
            await self._spend(rule, "events", float(events), rate, rate * BURST_SECONDS)

    async def _spend(self, rule: KeyRule, what: str, amount: float, rate: float, burst: float) -> None:
        if self._shared is not None:
            wait = await self._shared.take(rule.name, what, amount, rate, burst)
        else:
            now = self._monotonic()
            bucket = self._buckets.setdefault((rule.name, what), Bucket.full(rate, burst, now))
            wait = bucket.wait(amount, now)
            if wait <= 0:
                bucket.take(amount, now)
        if wait > 0:
            raise OverloadError("rate-limited", f"This key's limit on {what} is reached.", retry_after=wait)


ACCESS: Final = web.AppKey("access", Access)


def grant(request: web.Request) -> Grant:
    """Authorize a request that concerns no session. Raises `unauthorized` or `forbidden`."""
    word, _ = _shown(request)
    if word is not None and looks_signed(word):
        kind, _ = _signed(request, word)
        raise CallerError("forbidden", f"A {kind} is valid only for its own session; this needs an API key.")
    found = _by_key(request, word)
    request[PRINCIPAL] = found.principal.name
    return found


def session_grant(request: web.Request, need: Need, *, word: str | None = None) -> tuple[Grant, Handle]:
    """Authorize a request for the session of the path's `{id}`, and mark the session as in use. A POST may bring a newer
    upstream credential for the session.

    `word` is a client secret that was not in a header. Raises `unauthorized`, `forbidden`, or `session-unknown`, also
    for sessions of other callers.
    """
    session_id = request.match_info["id"]
    shown, in_query = _shown(request)
    if shown is None:
        shown = word
    sessions = request.app[SESSIONS]
    if shown is None or not looks_signed(shown):
        found = _by_key(request, shown)
        handle = sessions.find(session_id, found.principal)
    else:
        kind, named = _signed(request, shown)
        if in_query and kind != "ticket":
            raise CallerError(
                "unauthorized", "Only a ticket may be sent in the query; send a secret as Bearer."
            )
        if named != session_id:
            raise CallerError("session-unknown", "There is no such session, or it is not yours.")
        if need != "read" and kind == "ticket":
            raise CallerError(
                "forbidden", "A ticket is only for reading; sending needs an API key or the client secret."
            )
        handle = sessions.find(session_id, None)
        found = _by_session(request, kind, handle)
    request[PRINCIPAL], request[SESSION] = found.principal.name, session_id
    handle.touch()
    if request.method == "POST" and found.credential != "ticket":
        bearer = upstream_bearer(request)
        if bearer is not None:
            handle.renew(bearer)
    return found, handle


def require_credential(request: web.Request) -> None:
    """Refuse a caller whose credential is missing or not genuine. The session's node checks whether it is valid for the
    session. Raises `unauthorized`."""
    word, _ = _shown(request)
    if word is not None and looks_signed(word):
        _signed(request, word)
    elif word is not None or not request.path.endswith("/close"):  # its body may be the client secret
        _by_key(request, word)


def by_ticket(request: web.Request) -> bool:
    """Return whether the caller showed a ticket. Raises `unauthorized`."""
    word, _ = _shown(request)
    return word is not None and looks_signed(word) and _signed(request, word)[0] == "ticket"


def upstream_bearer(request: web.Request) -> str | None:
    """Return the caller's own upstream credential, if the gateway is configured to use it."""
    header = request.headers.get(_UPSTREAM_AUTHORIZATION)
    if header is None:
        return None
    if not request.app[ACCESS].rules.client_upstream:
        detail = "This gateway uses its own upstream credential and does not accept X-Upstream-Authorization."
        raise CallerError("invalid-parameter", detail)
    found = _BEARER.match(header)
    if found is None:
        raise CallerError("invalid-parameter", "X-Upstream-Authorization must be 'Bearer' and a credential.")
    return found[1]


def bearer_word(request: web.Request) -> str | None:
    """Return the Bearer credential of the Authorization header. Other schemes, such as a proxy's Basic, are ignored."""
    found = _BEARER.match(request.headers.get(hdrs.AUTHORIZATION, ""))
    return found[1] if found else None


def _shown(request: web.Request) -> tuple[str | None, bool]:
    """Return the credential of a request, and whether it came from the query."""
    word = bearer_word(request)
    if word is not None:
        return word, False
    ticket = request.query.get("ticket")
    if ticket is None:
        return None, False
    if not looks_signed(ticket):
        raise CallerError("unauthorized", "The ticket is not valid.")
    return ticket, True


def _signed(request: web.Request, word: str) -> tuple[Literal["secret", "ticket"], str]:
    read = request.app[ACCESS].signatures.read(word)
    if read is None:
        raise CallerError("unauthorized", "The client secret or ticket is not valid.")
    return read


def _by_key(request: web.Request, word: str | None) -> Grant:
    access = request.app[ACCESS]
    rules = access.rules
    if rules.keyed and word is not None:
        rule = access.caller_by_key(word)
        if rule is None:
            raise CallerError("unauthorized", "This gateway does not know the API key.")
        return access.grant_of(rule)
    if not rules.serves_anonymous:
        raise CallerError("unauthorized", "Send an API key as 'Authorization: Bearer'.")
    return access.grant_of(None)


def _principal(rule: KeyRule) -> Principal:
    return Principal(
        rule.name,
        max_sessions=rule.max_sessions,
        tokens_per_session=rule.tokens_per_session,
        tokens_per_day=rule.tokens_per_day,
        dollars_per_session=rule.dollars_per_session,
        dollars_per_day=rule.dollars_per_day,
    )


def _by_session(request: web.Request, kind: Literal["secret", "ticket"], handle: Handle) -> Grant:
    view = handle.view()
    _require_known(request, view.principal)
    principal = Principal(view.principal, anonymous=view.principal == ANONYMOUS)
    if kind == "ticket":
        return Grant(principal, kind, patterns=(), restricted=True)
    patterns = SECRET_ALLOWS + view.secret_allows
    access = request.app[ACCESS]
    rule = access.rule(view.principal)
    budgeted = rule is not None and _principal(rule).budgeted
    restricted = "*" not in patterns or access.rules.members_locked or budgeted
    return Grant(principal, kind, patterns, restricted)


def _require_known(request: web.Request, principal: str) -> None:
    """Check that the principal still exists: revoking a key revokes the client secrets and tickets of its sessions."""
    access = request.app[ACCESS]
    known = access.rules.serves_anonymous if principal == ANONYMOUS else access.rule(principal) is not None
    if not known:
        raise CallerError("unauthorized", "The API key that opened this session has been revoked.")
