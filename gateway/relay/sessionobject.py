"""The caller's session object: merged over the operator's template, with locked members refused. No I/O."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from gateway.errors import CallerError, Flaw

Json = Mapping[str, object]


def template(configured: Json) -> dict[str, object]:
    """Add the members that every Realtime session object needs to the configured template."""
    return {"type": "realtime", **configured}


def merge(template: Json, wanted: Json) -> dict[str, object]:
    """Lay `wanted` over `template`: objects merge, everything else replaces, null is a value."""
    merged = {**template, **wanted}
    for name, below in template.items():
        # Parsers return objects as dicts, and a check for Mapping takes ten times as long.
        if isinstance(below, dict) and isinstance(value := wanted.get(name), dict):
            merged[name] = merge(below, value)
    return merged


def check_locked(members: object, locked: Collection[str], pointer: str) -> None:
    """Raise `member-locked` if `members` sets a locked member, or replaces an object that holds one.

    `pointer` is where `members` stands in the request. Names count in any case: some parsers, Go's for one, take a
    member whose name differs in case for the one they look for.
    """
    found = set(_set_by(members, {name: name.split(".") for name in locked}))
    for name in locked:
        if name in found:
            flaw = Flaw("locked by the operator", pointer=f"{pointer}/{name.replace('.', '/')}")
            raise CallerError(
                "member-locked", f"'{name}' is locked by the operator of this gateway.", flaws=(flaw,)
            )


def _set_by(members: object, paths: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the names whose paths `members` sets. Looks at each member once, however many names there are."""
    if not isinstance(members, Mapping):
        yield from paths  # A value that is not an object in place of the object that holds them.
        return
    below: dict[str, dict[str, Sequence[str]]] = {}
    for name, path in paths.items():
        if path:
            below.setdefault(path[0].casefold(), {})[name] = path[1:]
        else:
            yield name
    if below:
        for own, value in members.items():
            if (inside := below.get(own.casefold())) is not None:
                yield from _set_by(value, inside)
