"""What a caller may ask of the OpenAI session object: merged over the operator's template, less what is locked. No I/O."""

from collections.abc import Iterable, Mapping

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

    `pointer` is where `members` stands in the request.
    """
    for name in locked:
        if _sets(members, name.split(".")):
            flaw = Flaw("locked by the operator", pointer=f"{pointer}/{name.replace('.', '/')}")
            raise CallerError(
                "member-locked", f"'{name}' is fixed by the operator of this gateway.", flaws=(flaw,)
            )


def _sets(members: object, path: list[str]) -> bool:
    for name in path:
        if not isinstance(members, Mapping):
            return True  # Something that is no object stands where the locked member's object would.
        if name not in members:
            return False
        members = members[name]
    return True
