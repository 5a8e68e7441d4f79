"""gateway/downstream/http/negotiation.py."""

import pytest

from gateway.downstream.http.negotiation import negotiate, preferred
from gateway.errors import GatewayError

SSE, NDJSON, JSON = OFFERED = ("text/event-stream", "application/x-ndjson", "application/json")


@pytest.mark.parametrize(
    ("accept", "best"),
    [
        ([], SSE),
        ([""], SSE),
        (["*/*"], SSE),
        (["*"], SSE),
        (["*;q=.2"], SSE),
        (["application/json"], JSON),
        (["Application/JSON"], JSON),
        (["application/json;charset=utf-8"], JSON),
        (["application/json; q=0.5, application/x-ndjson; q=0.6"], NDJSON),
        (["application/json;q=1., application/x-ndjson;q=.9"], JSON),
        (["application/json;Q=0.5, application/x-ndjson"], NDJSON),
        # A named type wins over a wildcard of the same weight, and `type/*` over `*/*`.
        (["application/json, text/plain, */*"], JSON),
        (["application/*, */*"], NDJSON),
        (["*/*, application/*;q=0.9, application/json"], JSON),
        # The most specific range decides, whatever the order.
        (["*/*, text/event-stream;q=0"], NDJSON),
        (["text/event-stream;q=0, application/*;q=0.3, */*;q=0.1"], NDJSON),
        (["application/json;q=0.1, */*;q=0.5"], SSE),
        # Several lines are one list.
        (["text/html", "*/*;q=0.1"], SSE),
        (["text/html", "application/json"], JSON),
        # An invalid range is ignored.
        (["text, application/json"], JSON),
        (["application/json;q=high"], JSON),
        ([",,application/json,"], JSON),
        # Java's HttpURLConnection.
        (["text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"], SSE),
        (["text/html"], None),
        (["*/*;q=0"], None),
        (["text/event-stream;q=0.0, application/*;q=0"], None),
    ],
)
def test_the_type_that_the_client_likes_best(accept: list[str], best: str | None) -> None:
    """The type is chosen by weight, then by how specific the range is, then by the server's own order."""
    assert preferred(",".join(accept) or None, OFFERED) == best


FORMS = {"sse": SSE, "ndjson": NDJSON, "json": JSON}


def test_the_parameter_overrides_accept() -> None:
    """A client that cannot set headers can choose the form in the URL."""
    assert negotiate("json", SSE, FORMS) == "json"
    assert negotiate(None, NDJSON, FORMS) == "ndjson"


@pytest.mark.parametrize(
    ("named", "accept", "code", "said"),
    [("xml", None, "invalid-parameter", "sse, ndjson, json"), (None, "image/png", "not-acceptable", SSE)],
)
def test_what_cannot_be_given_is_refused(named: str | None, accept: str | None, code: str, said: str) -> None:
    """The error lists the available types."""
    with pytest.raises(GatewayError, match=said) as refused:
        negotiate(named, accept, FORMS)

    assert refused.value.code == code
