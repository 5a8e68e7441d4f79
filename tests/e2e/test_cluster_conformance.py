"""The contract through nginx over three nodes, round robin: the same answers as from one process.

    python -m tests.e2e.test_cluster_conformance [pytest options]

runs the whole suite of tests/conformance that way; the test below runs a part of it.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gateway.cli.child import offline_environment
from tests.cluster.redis_server import RedisServer
from tests.conftest import require_part
from tests.e2e.nodes import Nodes
from tests.e2e.proxies import nginx_command
from tests.farend import FarEnd
from tests.ports import free_port
from tests.programs import Program

ROOT = Path(__file__).resolve().parents[2]
KEY, OTHER_KEY, ORIGIN = "gw-conformance", "gw-conformance-other", "https://app.example"

ROUND_ROBIN = """
events {{ worker_connections 1024; }}
http {{
    upstream nodes {{ {servers} keepalive 32; }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 8m;
        large_client_header_buffers 8 64k;
        location / {{
            proxy_pass http://nodes;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 300s;
        }}
    }}
}}
"""


@contextmanager
def deployment(home: Path) -> Iterator[tuple[str, str]]:
    """Run three nodes behind nginx, and return its URL and that of the service behind them."""
    with ExitStack() as stack:
        far_end = stack.enter_context(FarEnd(home / "far-end", "--tokens-per-second", "200"))
        redis = RedisServer().start()
        stack.callback(redis.close)
        keys = [
            {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
            for name, key in (("one", KEY), ("other", OTHER_KEY))
        ]
        nodes = Nodes(
            home,
            far_end,
            redis.url,
            GATEWAY_ACCESS__KEYS=json.dumps(keys),
            GATEWAY_ACCESS__CORS_ORIGINS=json.dumps([ORIGIN]),
            GATEWAY_CLUSTER__LEASE_SECONDS="4",
        )
        stack.callback(nodes.close)
        servers = "".join(f"server {node.url.removeprefix('http://')};" for node in nodes.start(3))
        port = free_port()
        text = ROUND_ROBIN.format(servers=servers, port=port)
        command = nginx_command(require_part("nginx"), text, home / "nginx")
        stack.enter_context(Program(home / "nginx.log", *command[1:], command=command[0]))
        yield f"http://127.0.0.1:{port}", far_end.base_url


def run(urls: tuple[str, str], options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run the suite against a URL."""
    url, upstream = urls
    credentials = ["--url", url, "--key", KEY, "--other-key", OTHER_KEY, "--origin", ORIGIN]
    credentials += ["--upstream-url", upstream, "--upstream-key", offline_environment()["OPENAI_API_KEY"]]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *credentials]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)


@pytest.mark.slow
@pytest.mark.needs("redis-server", "nginx")
@pytest.mark.timeout(240)
def test_contract_holds_through_any_of_three_nodes(tmp_path: Path) -> None:
    """Sending and turns work through nodes that mostly do not own the session."""
    with deployment(tmp_path) as urls:
        done = run(urls, ["tests/conformance/test_turns.py", "tests/conformance/test_sending.py"])

    assert done.returncode == 0, done.stdout[-6000:]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, deployment(Path(folder)) as addresses:
        finished = run(addresses, sys.argv[1:] or ["tests/conformance"])
        print(finished.stdout[-20000:], finished.stderr[-2000:])  # noqa: T201  # a command
    sys.exit(finished.returncode)
