"""A brain that asks a chat completions server, so that a local model server makes the whole stack a private chat.

It works with any server that has a streaming `POST /v1/chat/completions`. Text is passed on as it arrives, function calls
when they are complete. Nothing is retried: a failure ends the response as failed, as on the service.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from gateway.emulator.protocol.brain import BrainError, FunctionCall, Piece, Prompt
from gateway.emulator.protocol.items import Item, text_of

# A local model may need to be loaded first, and may take long to produce its first token.
_SILENCE_SECONDS = 120.0
_CONNECT_SECONDS = 10.0
_MAX_LINE = 1024 * 1024
_MAX_COMPLAINT = 16 * 1024


class ChatBrain:
    """Asks `{base_url}/chat/completions` with `model`; `key`, if not empty, is sent as Bearer."""

    def __init__(self, base_url: str, model: str, key: str | None) -> None:
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._model = model
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http: aiohttp.ClientSession | None = None

    async def answer(self, prompt: Prompt) -> AsyncIterator[Piece]:
        """Stream one completion; raises BrainError."""
        calls: dict[int, dict[str, str]] = {}
        try:
            async with self._session().post(self._url, json=self._request(prompt)) as response:
                if response.status != 200:
                    why = _complaint(await response.content.read(_MAX_COMPLAINT))
                    raise BrainError(None, f"The model server answered {response.status}{why}.")
                if response.content_type == "application/json":
                    # Without this check, an error body read as a stream would look like an empty answer.
                    raise BrainError(None, "The model server does not stream its answers.")
                async for line in response.content:
                    delta = _delta(line)
                    if delta is None:
                        break
                    if content := delta.get("content"):
                        yield str(content)
                    _collect(calls, delta.get("tool_calls"))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise BrainError(None, f"The model server failed: {type(error).__name__}.") from error
        for _, call in sorted(calls.items()):
            yield FunctionCall(call["name"], call["arguments"] or "{}")

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
            # No limit on connections: each active response holds one, and responses are bounded elsewhere.
            connector = aiohttp.TCPConnector(limit=0)
            self._http = aiohttp.ClientSession(
                headers=self._headers, timeout=timeout, connector=connector, read_bufsize=_MAX_LINE
            )
        return self._http

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        messages = [{"role": "system", "content": prompt.instructions}]
        messages += [message for item in prompt.items for message in _messages(item)]
        request: dict[str, Any] = {"model": self._model, "stream": True, "messages": messages}
        functions = [tool for tool in prompt.tools if tool.get("type") == "function"]
        if functions and prompt.tool_choice != "none":
            request["tools"] = [
                {
                    "type": "function",
                    "function": {k: t[k] for k in ("name", "description", "parameters") if t.get(k)},
                }
                for t in functions
            ]
            choice = prompt.tool_choice
            request["tool_choice"] = (
                {"type": "function", "function": {"name": choice.get("name")}}
                if isinstance(choice, dict)
                else choice
            )
        return request


def _messages(item: Item) -> list[dict[str, Any]]:
    match item.get("type"):
        case "message":
            return [{"role": item["role"], "content": text_of(item)}]
        case "function_call":
            return [_called(item["call_id"], item)]
        case "function_call_output":
            return [{"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}]
        case "mcp_call":
            content = item["output"] or json.dumps(item["error"])
            return [
                _called(item["id"], item),
                {"role": "tool", "tool_call_id": item["id"], "content": content},
            ]
        case _:
            return []


def _called(call_id: str, item: Item) -> dict[str, Any]:
    function = {"name": item["name"], "arguments": item["arguments"]}
    called = {"id": call_id, "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [called]}


def _delta(line: bytes) -> dict[str, Any] | None:
    """Read one line of the stream: a delta, an empty one for lines that carry none, None at the end."""
    text = line.decode("utf-8", "replace").strip()
    if not text.startswith("data:"):
        return {}
    data = text[5:].strip()
    if data == "[DONE]":
        return None
    chunk = json.loads(data)
    if isinstance(chunk, dict) and chunk.get("error"):
        # The status has already been sent, so servers report the error in the stream.
        raise BrainError(None, f"The model server failed{_complaint(data)}.")
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    delta = (
        choices[0].get("delta")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict)
        else None
    )
    return delta if isinstance(delta, dict) else {}


def _complaint(body: str | bytes) -> str:
    """Return the server's error message in the form `: message`, or an empty string if there is none."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    error = told.get("error") if isinstance(told, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return f": {message[:200].rstrip('. ')}" if isinstance(message, str) and message else ""


def _collect(calls: dict[int, dict[str, str]], pieces: Any) -> None:
    for piece in pieces if isinstance(pieces, list) else ():
        call = calls.setdefault(int(piece.get("index", 0)), {"name": "", "arguments": ""})
        function = piece.get("function") or {}
        call["name"] += function.get("name") or ""
        call["arguments"] += function.get("arguments") or ""
