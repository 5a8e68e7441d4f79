"""The caller's session object: merged over the operator's template, with locked members refused. No I/O."""

from collections.abc import Iterable, Mapping, Sequence

from gateway.errors import CallerError, Flaw

Json = Mapping[str, object]


def merge(template: Json, wanted: Json) -> dict[str, object]:
    """Lay `wanted` over `template`: objects merge, everything else replaces, null is a value."""
    merged = dict(template)
    for name, value in wanted.items():
        below = merged.get(name)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[name] = merge(below, value) if both else value  # type: ignore[arg-type]  # both are mappings here
    return merged


def check_locked(members: object, locked: Iterable[str], pointer: str) -> None:
    """Raise `member-locked` if `members` sets a locked member, or replaces an object that holds one.

    `pointer` is where `members` stands in the request. Names count in any case: some parsers, Go's for one, take a
    member whose name differs in case for the one they look for.
    """
    for name in locked:
        if _sets(members, name.split(".")):
            flaw = Flaw("locked by the operator", pointer=f"{pointer}/{name.replace('.', '/')}")
            raise CallerError(
                "member-locked", f"'{name}' is locked by the operator of this gateway.", flaws=(flaw,)
            )


def _sets(members: object, path: Sequence[str]) -> bool:
    if not path or not isinstance(members, Mapping):
        return (
            True  # The member itself, or a value that is not an object in place of the object that holds it.
        )
    name = path[0].casefold()
    return any(_sets(value, path[1:]) for own, value in members.items() if own.casefold() == name)
