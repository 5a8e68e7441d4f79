"""Which media type to answer with: the one format negotiation of the HTTP side (RFC 9110 12.5.1).

`python-mimeparse` reads the header, since it also reads what real clients send and the grammar does not have: weights
without a leading zero (`q=.2`) and the bare `*` of Java's HttpURLConnection. Of the libraries tried, werkzeug drops such
ranges and WebOb takes the header for absent. What the standard leaves open is decided here: of equal weights, the type
that the more specific range names wins, then the order of what is offered. No I/O.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import mimeparse  # type: ignore[import-untyped]  # the library has no types

from gateway.errors import CallerError, Flaw

Form = TypeVar("Form", bound=str)

Ranges = Sequence[tuple[str, str, dict[str, str]]]


def negotiate(named: str | None, accept: str | None, media_types: Mapping[Form, str]) -> Form:
    """Return the form to answer in: that of the parameter `format`, else the one Accept likes best.

    `media_types` has the forms in the server's order. Raises `invalid-parameter` or `not-acceptable`.
    """
    if named is not None:
        for form in media_types:
            if form == named:
                return form
        what = f"must be one of {', '.join(media_types)}"
        raise CallerError("invalid-parameter", f"'format' {what}.", flaws=(Flaw(what, pointer="/format"),))
    best = preferred(accept, tuple(media_types.values()))
    for form, media_type in media_types.items():
        if media_type == best:
            return form
    offered = ", ".join(media_types.values())
    raise CallerError("not-acceptable", f"None of the types in Accept can be given; these can: {offered}.")


def preferred(accept: str | None, offered: Sequence[str]) -> str | None:
    """Return the media type of `offered` that a client likes best, None if it accepts none of them.

    `accept` holds the values of all its Accept headers, joined by commas. The first type offered is returned where there
    is none.
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
    """Read the media ranges; what is none is passed over, since the rest of the header may still be meant."""
    ranges = []
    for part in accept.lower().split(","):
        try:
            ranges.append(mimeparse.parse_media_range(part))
        except mimeparse.MimeTypeParseException:
            continue
    return ranges
