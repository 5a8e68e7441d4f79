"""What stands between clients and a gateway: real nginx, HAProxy and Caddy, and two small proxies that hold bytes
back.

Each listens on a free port on loopback and ends with the test. The documented configurations (deploy/proxies) are
used unchanged, except for addresses and for the folders in which a server keeps its files.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from tests.ports import free_port
from tests.programs import Program
from tests.serving import serving

ROOT = Path(__file__).resolve().parents[2]
PROXIES = ROOT / "deploy" / "proxies"
START_SECONDS = 20.0
# At their end some wait for streams that nobody reads any more.
STOP_SECONDS = 1.0
HELD_BYTES = 4096

Part = Callable[[str], str]

# A minimal configuration: everything else is nginx's default, including HTTP/1.0 to the gateway and buffering.
_NGINX = """
events {{ }}
http {{
    {http}
    server {{
        listen 127.0.0.1:8000;
        location / {{ proxy_pass http://127.0.0.1:8080; {location} }}
    }}
}}
"""
NGINX_DEFAULT = _NGINX.format(http="", location="")
NGINX_HTTP_1_0 = _NGINX.format(http="", location="proxy_http_version 1.0; proxy_buffering off;")
NGINX_BUFFERING = _NGINX.format(
    http="", location="proxy_http_version 1.1; proxy_ignore_headers X-Accel-Buffering;"
)
NGINX_GZIP = _NGINX.format(
    http="gzip on; gzip_proxied any; gzip_types text/event-stream application/x-ndjson application/json;",
    location="proxy_http_version 1.1;",
)
HAPROXY_30_SECONDS = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend clients
    bind 127.0.0.1:8000
    default_backend gateway
backend gateway
    server gateway 127.0.0.1:8080
"""


def placed(text: str, port: int, gateway: str) -> str:
    """Return a configuration with this test's addresses instead of the example's."""
    address = gateway.removeprefix("http://")
    text = text.replace("127.0.0.1:8080", address)
    return re.sub(
        r"(listen|bind) (127\.0\.0\.1)?:?8000|^:8000", lambda found: _listen(found, port), text, flags=re.M
    )


def _listen(found: re.Match[str], port: int) -> str:
    return f"{found[1]} 127.0.0.1:{port}" if found[1] else f"http://127.0.0.1:{port}"


def nginx_command(program: str, text: str, home: Path) -> list[str]:
    """Write nginx's configuration so that it needs no folder but `home` and return the command that runs it."""
    folders = "".join(
        f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    home.mkdir(exist_ok=True)
    home.chmod(0o755)  # its worker runs as nobody
    text = text.replace("/var/log/nginx/access.log", f"{home}/access.log")
    if "access_log" not in text:
        folders += "access_log off;"
    file = home / "nginx.conf"
    file.write_text(text.replace("http {", f"http {{ {folders}", 1))
    own = f"daemon off; pid {home}/nginx.pid; error_log {home}/error.log; worker_processes 1;"
    return [program, "-p", str(home), "-e", f"{home}/error.log", "-c", str(file), "-g", own]


@asynccontextmanager
async def nginx(part: Part, text: str, home: Path, gateway: str) -> AsyncIterator[str]:
    """Run nginx in front of a gateway and return its URL."""
    port = free_port()
    command = nginx_command(part("nginx"), placed(text, port, gateway), home)
    async with _running(command, home, port) as url:
        yield url


@asynccontextmanager
async def haproxy(part: Part, text: str, home: Path, gateway: str) -> AsyncIterator[str]:
    """Run HAProxy in front of a gateway and return its URL."""
    port = free_port()
    file = _written(home / "haproxy.cfg", placed(text, port, gateway))
    async with _running([part("haproxy"), "-db", "-f", str(file)], home, port) as url:
        yield url


@asynccontextmanager
async def caddy(part: Part, text: str, home: Path, gateway: str) -> AsyncIterator[str]:
    """Run Caddy in front of a gateway and return its URL."""
    port = free_port()
    file = _written(home / "Caddyfile", "{\n\tadmin off\n}\n" + placed(text, port, gateway))
    command = [part("caddy"), "run", "--config", str(file), "--adapter", "caddyfile"]
    async with _running(command, home, port) as url:
        yield url


@asynccontextmanager
async def holding(gateway: str, held: int | None = HELD_BYTES) -> AsyncIterator[str]:
    """Run a proxy that passes bodies on in pieces of `held` bytes and the rest at the end; with None it holds
    everything until the end."""
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        skip_auto_headers=["Content-Type", "Accept", "Accept-Encoding"],
    ) as http:

        async def relay(request: web.Request) -> web.StreamResponse:
            headers = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
            async with http.request(
                request.method, gateway + request.path_qs, headers=headers, data=await request.read()
            ) as answer:
                response = web.StreamResponse(status=answer.status)
                for name, value in answer.headers.items():
                    if name not in _HOP_BY_HOP:
                        response.headers[name] = value
                kept = b""
                prepared = False
                async for chunk in answer.content.iter_any():
                    kept += chunk
                    while held is not None and len(kept) >= held:
                        if not prepared:
                            await response.prepare(request)
                            prepared = True
                        await response.write(kept[:held])
                        kept = kept[held:]
                if not prepared:
                    await response.prepare(request)
                await response.write_eof(kept)
                return response

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", relay)
        async with serving(app, handler_cancellation=True) as url:
            yield url


_HOP_BY_HOP = frozenset({"Connection", "Transfer-Encoding", "Content-Length", "Keep-Alive"})


@asynccontextmanager
async def _running(command: list[str], home: Path, port: int) -> AsyncIterator[str]:
    """Run a server: wait until it accepts connections, and stop it when the block ends."""
    environ = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(home))
    program = Program(home / "output", *command[1:], command=command[0], environ=environ)
    try:
        await _answers(program, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        await asyncio.to_thread(program.stop, STOP_SECONDS)


async def _answers(program: Program, port: int) -> None:
    """Wait until something listens on the port."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            assert program.process.poll() is None, program.output
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                await writer.wait_closed()
                return


def _written(file: Path, text: str) -> Path:
    file.parent.mkdir()
    file.write_text(text)
    return file
