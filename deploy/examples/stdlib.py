"""A session with only Python's standard library: it resumes after a cut, and sends nothing twice.

GATEWAY=http://127.0.0.1:8080 KEY=… python3 stdlib.py 'What is 6 times 7?'
"""

import codecs
import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from typing import Any

GATEWAY = os.environ.get("GATEWAY", "http://127.0.0.1:8080")
KEY = os.environ.get("KEY")


def request(method: str, path: str, body: object = None, timeout: float = 60, **headers: str) -> HTTPResponse:
    """Send one request; `headers` have `_` for `-`."""
    data = None if body is None else json.dumps(body).encode()
    every = {name.replace("_", "-"): value for name, value in headers.items()}
    every["Content-Type"] = "application/json"
    if KEY:
        every["Authorization"] = f"Bearer {KEY}"
    asked = urllib.request.Request(GATEWAY + path, data, every, method=method)
    return urllib.request.urlopen(asked, timeout=timeout)  # type: ignore[no-any-return]  # typed as Any for ftp's sake


def post(path: str, body: object) -> dict[str, Any]:
    """Send until it is answered. One key for all tries: the gateway does it once."""
    key = uuid.uuid4().hex
    for wait in (0.5, 1, 2, 4, None):
        try:
            with request("POST", path, body, Idempotency_Key=key) as answer:
                return json.load(answer)  # type: ignore[no-any-return]  # an object, by the contract
        except urllib.error.HTTPError as error:
            problem = error.read().decode()
            pause = float(error.headers.get("Retry-After") or wait or 0)
            # A budget of a day asks to wait for hours.
            if wait is None or pause > 60 or error.code not in (409, 429, 502, 503, 504):
                raise SystemExit(problem) from None
            time.sleep(pause)
        except (OSError, HTTPException) as error:
            if wait is None:
                raise SystemExit(f"{GATEWAY} does not answer: {error}") from None
            time.sleep(wait)
    raise AssertionError


def events(path: str, cursor: str) -> Iterator[dict[str, Any]]:
    """Yield the session's events, each once and in order, over as many connections as it takes."""
    while True:
        retry = 2.0
        try:
            # The gateway says something every 15 s; what is silent for 40 is dead.
            coming = cursor
            with request("GET", path, timeout=40, Accept="text/event-stream", Last_Event_ID=cursor) as stream:
                if stream.status == 204:
                    return
                data: list[str] = []
                for line in stream:
                    name, _, value = line.decode().rstrip("\r\n").partition(":")
                    value = value.removeprefix(" ")
                    if name == "id":
                        coming = value
                    elif name == "data":
                        data.append(value)
                    elif name == "retry":
                        retry = int(value) / 1000
                    elif not name and not value and data:
                        event = json.loads("\n".join(data))
                        data = []
                        if event["type"] == "gateway.superseded":
                            return  # another reader took this one's place
                        if event["type"] not in ("gateway.error", "gateway.rotating"):
                            cursor = coming
                        yield event
                        if event["type"] == "gateway.closed":
                            return
        except urllib.error.HTTPError as error:
            if error.code not in (429, 502, 503, 504):
                raise SystemExit(error.read().decode()) from None
        except (OSError, HTTPException):
            pass  # cut: the cursor knows where
        time.sleep(retry)


def main() -> None:
    """Ask one question and print the answer as it is made."""
    question = sys.argv[1] if len(sys.argv) > 1 else "What is 6 times 7?"
    session = post("/v1/sessions", {})
    content = [{"type": "input_text", "text": question}]
    item = {"type": "message", "role": "user", "content": content}
    halves = codecs.getincrementaldecoder("utf-16-le")("replace")  # a delta may end inside a surrogate pair
    try:
        post(
            session["events_url"],
            [{"type": "conversation.item.create", "item": item}, {"type": "response.create"}],
        )
        for event in events(session["events_url"], session["head"]):
            if event["type"] == "response.output_text.delta":
                print(halves.decode(event["delta"].encode("utf-16-le", "surrogatepass")), end="", flush=True)
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
        request("DELETE", f"/v1/sessions/{session['id']}").close()


if __name__ == "__main__":
    main()
