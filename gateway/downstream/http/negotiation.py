"""Content negotiation: which media type to answer with (RFC 9110 12.5.1).

`python-mimeparse` parses the header, since it accepts two invalid forms that real clients send: weights without a leading
zero (`q=.2`) and the bare `*` of Java's HttpURLConnection. Of the other libraries tried, werkzeug drops such ranges and
WebOb ignores the whole header. Where the standard leaves a choice, this file decides: among equal weights, the type with
the more specific range wins, then the server's order. No I/O.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import mimeparse  # type: ignore[import-untyped]  # the library has no types

from gateway.errors import CallerError, invalid_parameter

Form = TypeVar("Form", bound=str)

Ranges = Sequence[tuple[str, str, dict[str, str]]]


def negotiate(named: str | None, accept: str | None, media_types: Mapping[Form, str]) -> Form:
    """Return the form to answer in: the one the parameter `format` names, else the one that Accept prefers.

    `media_types` contains the forms in the server's order. Raises `invalid-parameter` or `not-acceptable`.
    """
    if named is not None:
        for form in media_types:
            if form == named:
                return form
        raise invalid_parameter("format", f"must be one of {', '.join(media_types)}")
    best = preferred(accept, tuple(media_types.values()))
    for form, media_type in media_types.items():
        if media_type == best:
            return form
    offered = ", ".join(media_types.values())
    raise CallerError("not-acceptable", f"None of the types in Accept is available; available: {offered}.")


def preferred(accept: str | None, offered: Sequence[str]) -> str | None:
    """Return the media type of `offered` that a client prefers, None if it accepts none of them.

    `accept` contains the values of all its Accept headers, joined by commas. Without one, the first type offered is
    returned.
    """
    ranges = _ranges(accept or "")
    if not ranges:
        return offered[0]
    ranked = [
        (*mimeparse.quality_and_fitness_parsed(media_type, ranges), -order, media_type)
        for order, media_type in enumerate(offered)
    ]
    quality, _, _, best = max(ranked)
    return best if quality > 0 else None


def _ranges(accept: str) -> Ranges:
    """Parse the media ranges. Invalid ones are skipped, since the rest of the header may be usable."""
    ranges = []
    for part in accept.lower().split(","):
        try:
            ranges.append(mimeparse.parse_media_range(part))
        except mimeparse.MimeTypeParseException:
            continue
    return ranges
