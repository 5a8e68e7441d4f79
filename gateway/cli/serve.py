"""`gateway serve`: runs the gateway."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def serve(
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML file; also GATEWAY_CONFIG. See config/gateway.toml."),
    ] = None,
    host: Annotated[str | None, typer.Option(metavar="H", help="Address for clients.  \\[127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(metavar="P", help="Port for clients; 0 picks a free port.  \\[8080]")
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option(metavar="P", help="Port for operators; 0 picks a free port.  \\[8081]")
    ] = None,
    upstream_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Base URL of the Realtime API.  \\[https://api.openai.com/v1]"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=64,
            help="Processes on one port, each a node of the cluster; needs cluster.url.  \\[1]",
        ),
    ] = None,
    shared_port: Annotated[bool, typer.Option("--shared-port", hidden=True)] = False,
    peer_socket: Annotated[str, typer.Option("--peer-socket", hidden=True)] = "",
) -> None:
    """Run the gateway. OpenAI's key is taken from OPENAI_API_KEY."""
    prepare()
    from gateway.cli.running import run
    from gateway.cli.serving import configure, serve_until_told

    settings = configure(
        config,
        {
            "server": {"host": host, "port": port},
            "admin": {"port": admin_port},
            "upstream": {"base_url": upstream_url},
        },
    )
    if workers is not None and workers > 1:
        from gateway.cli.workers import run_workers

        sys.exit(run(run_workers(settings, workers, _flags(config, host, upstream_url))))
    sys.exit(run(serve_until_told(settings, shared=shared_port, peer_socket=peer_socket)))


def prepare() -> None:
    """Leave out of the process what only other commands need. Call before anything large is imported."""
    from gateway.upstream.codecs import leave_out

    leave_out()
    if "rich" not in sys.modules and "structlog" not in sys.modules:
        # structlog imports rich where it is installed, for tracebacks in colours that the gateway does not print: 4 MiB.
        # None makes the import fail as if it were not.
        sys.modules["rich"] = None  # type: ignore[assignment]  # documented, Python: import system, "The module cache"
        try:
            import structlog  # noqa: F401
        finally:
            del sys.modules["rich"]


def _flags(config: Path | None, host: str | None, upstream_url: str | None) -> list[str]:
    """Return the arguments that are passed on to workers."""
    given = {"--config": config, "--host": host, "--upstream-url": upstream_url}
    return [str(word) for name, value in given.items() if value is not None for word in (name, value)]
