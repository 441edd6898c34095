"""`aiaas status`: what a running gateway says about itself, on one screen."""

from __future__ import annotations

from typing import Annotated

import typer

from aiaas.cli.askadmin import ADMIN_ADDRESS, ask_gateway
from aiaas.cli.common import Output, OutputOption, new_app, print_json

app = new_app()


@app.command(
    epilog="""Examples:

\b
  aiaas status                              the gateway on this machine
  aiaas status http://127.0.0.1:9191        another monitoring.admin_port
  aiaas status -o json | jq .attention

\b
  kubectl port-forward -n system pod/api-router-service-5d8f7c6b9-x2x4q 9091 &
  aiaas status                              one pod

Exit codes: 0 nothing is down, 1 something is (each with what to do), 3 the gateway cannot be reached.
"""
)
def status(
    url: Annotated[
        str, typer.Argument(metavar="[URL]", help="The admin endpoint of the gateway (monitoring.admin_port).")
    ] = ADMIN_ADDRESS,
    output: OutputOption = Output.text,
) -> None:
    """Show the state of a running gateway, and what to do where something is down."""
    import msgspec

    from aiaas.cli.statusview import status_screen
    from aiaas.proxy.admin.model import Status

    found = ask_gateway(url, "/status", Status)
    if output is Output.json:
        print_json(msgspec.to_builtins(found))
    else:
        print(status_screen(found))
    raise typer.Exit(1 if any(note.down for note in found.attention) else 0)
