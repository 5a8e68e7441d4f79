"""A session with httpx and httpx-sse: `pip install httpx httpx-sse`.

GATEWAY=http://127.0.0.1:8080 KEY=… python3 httpx_sse_example.py 'What is 6 times 7?'
"""

import codecs
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
from httpx_sse import SSEError, connect_sse

GATEWAY = os.environ.get("GATEWAY", "http://127.0.0.1:8080")
KEY = os.environ.get("KEY")
PASSING = (409, 429, 502, 503, 504)


def post(http: httpx.Client, path: str, body: object) -> dict[str, Any]:
    """Send until it is answered. One key for all tries: the gateway does it once."""
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    for wait in (0.5, 1, 2, 4, None):
        try:
            answer = http.post(path, json=body, headers=headers)
        except httpx.TransportError as error:
            if wait is None:
                raise SystemExit(f"{GATEWAY} does not answer: {error}") from None
            time.sleep(wait)
            continue
        if answer.is_success:
            return answer.json()  # type: ignore[no-any-return]  # an object, by the contract
        pause = float(answer.headers.get("Retry-After", wait or 0))
        # A budget of a day asks to wait for hours.
        if wait is None or pause > 60 or answer.status_code not in PASSING:
            raise SystemExit(answer.text)
        time.sleep(pause)
    raise AssertionError


def events(http: httpx.Client, path: str, cursor: str) -> Iterator[dict[str, Any]]:
    """Yield the session's events, each once and in order, over as many connections as it takes."""
    while True:
        retry = 2.0
        try:
            # The gateway says something every 15 s; what is silent for 40 is dead.
            headers, timeout = {"Last-Event-ID": cursor}, httpx.Timeout(10, read=40)
            with connect_sse(http, "GET", path, headers=headers, timeout=timeout) as source:
                if source.response.status_code == httpx.codes.NO_CONTENT:
                    return
                if source.response.is_error and source.response.status_code not in PASSING:
                    raise SystemExit(source.response.read().decode())
                for block in source.iter_sse():
                    retry = retry if block.retry is None else block.retry / 1000
                    if not block.data or block.event == "gateway.rotating":
                        continue
                    cursor = block.id or cursor
                    yield json.loads(block.data)
                    if block.event in ("gateway.closed", "gateway.superseded"):
                        return
        except (httpx.TransportError, SSEError):
            pass  # cut, or answered by something on the way: the cursor knows where
        time.sleep(retry)


def main() -> None:
    """Ask one question and print the answer as it is made."""
    question = sys.argv[1] if len(sys.argv) > 1 else "What is 6 times 7?"
    headers = {"Authorization": f"Bearer {KEY}"} if KEY else {}
    with httpx.Client(base_url=GATEWAY, headers=headers, timeout=60) as http:
        session = post(http, "/v1/sessions", {})
        content = [{"type": "input_text", "text": question}]
        item = {"type": "message", "role": "user", "content": content}
        halves = codecs.getincrementaldecoder("utf-16-le")(
            "replace"
        )  # a delta may end inside a surrogate pair
        try:
            said = [{"type": "conversation.item.create", "item": item}, {"type": "response.create"}]
            post(http, session["events_url"], said)
            for event in events(http, session["events_url"], session["head"]):
                if event["type"] == "response.output_text.delta":
                    text = halves.decode(event["delta"].encode("utf-16-le", "surrogatepass"))
                    print(text, end="", flush=True)
                elif event["type"] == "gateway.gap":
                    print(f"\n[{event['missed']} events are gone]", file=sys.stderr)
                failure = event.get("error") or (event.get("response", {}).get("status_details") or {}).get(
                    "error"
                )
                if failure:
                    raise SystemExit(f"OpenAI did not answer: {failure}")
                if event["type"] == "response.done":
                    print()
                    break
        finally:
            http.delete(f"/v1/sessions/{session['id']}")


if __name__ == "__main__":
    main()
