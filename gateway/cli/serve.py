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
    host: Annotated[str | None, typer.Option(metavar="H", help="Clients' address.  \\[127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(metavar="P", help="Clients' port, 0 for a free one.  \\[8080]")
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option(metavar="P", help="Operator's port, 0 for a free one.  \\[8081]")
    ] = None,
    upstream_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where OpenAI is.  \\[https://api.openai.com/v1]")
    ] = None,
) -> None:
    """Run the gateway. OpenAI's key is taken from OPENAI_API_KEY."""
    from gateway.upstream.codecs import leave_out

    leave_out()
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
    sys.exit(run(serve_until_told(settings)))
