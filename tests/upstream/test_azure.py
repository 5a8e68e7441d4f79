"""Azure's form of the service, with the provided configuration `config/azure.toml`.

The fake is an aiortc far end with Azure's addresses and rules, as in recorded calls: only ephemeral keys, a
`Location` without the prefix of the path, no ice-lite, candidates of two components and of TCP, and an end of
candidates.
"""

from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from gateway.config import load
from gateway.errors import UpstreamError
from gateway.wiring import upstream_config
from tests.conftest import ROOT
from tests.serving import serving
from tests.upstream.farend import Farend
from tests.upstream.kit import REQUEST, Remembering, dialling


class Azure(Farend):
    """Answers as Azure does."""

    async def call(self, request: web.Request) -> web.Response:
        """Accept a bare offer with an ephemeral key, and refuse everything else."""
        if not request.headers["Authorization"].startswith("Bearer ek_"):
            error = {"code": "401", "message": "This operation requires ephemeral tokens"}
            return web.json_response({"error": error}, status=401)
        assert request.content_type == "application/sdp"
        assert not request.query_string
        return await self.answer(await request.text())

    def rewrite(self, answer: str) -> str:
        """Repeat each candidate as Azure does."""
        lines = []
        for line in answer.splitlines():
            if line.startswith("a=candidate:"):
                words = line.split()
                second = [*words[:1], "2", *words[2:]]
                tcp = [*words[:2], "tcp", *words[3:], "tcptype", "passive"]
                lines += [line, " ".join(second), " ".join(tcp)]
            else:
                lines.append(line)
        return "\r\n".join(lines) + "\r\n"


async def test_call_by_the_given_configuration() -> None:
    """With the file's base path and credential a call opens, answers and is hung up; any other kind of key is
    refused."""
    given = upstream_config(load(ROOT / "config" / "azure.toml", environ={}))
    path = urlsplit(given.base_url).path
    azure = Azure()
    app = web.Application()
    app.router.add_post("/openai/v1/realtime/calls", azure.call)
    app.router.add_post("/openai/v1/realtime/calls/{call}/hangup", azure.hang_up)
    async with serving(app) as url, dialling(url + path, auth=given.auth, api_key=None) as dialer:
        try:
            sink = Remembering()
            call = await dialer.dial(replace(REQUEST, bearer="ek_somebody"), sink)
            call.send(["hello"])
            await sink.until(lambda sink: "hello" in sink.texts)
            await call.close(hang_up=True)

            with pytest.raises(UpstreamError, match="does not accept the credential") as refused:
                await dialer.dial(replace(REQUEST, bearer="a-key-of-azure"), sink)
        finally:
            for peer in azure.peers:
                await peer.close()

    assert given.api_key is None
    assert refused.value.code == "upstream-rejected"
    assert azure.hung_up == [call.call_id]
