"""Ask one gateway's admin port, and end the command with what to do if it does not answer."""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import typer

ADMIN_ADDRESS: Final = "http://127.0.0.1:9091"
_HINT: Final = (
    "is `aiaas serve` running there? A gateway in Kubernetes first needs: "
    "kubectl port-forward -n NAMESPACE pod/POD 9091"
)

_AnswerT = TypeVar("_AnswerT")

AdminUrlOption = Annotated[
    str, typer.Option("--url", metavar="URL", help="The admin endpoint of the gateway (monitoring.admin_port).")
]


def ask_gateway(url: str, path: str, kind: type[_AnswerT]) -> _AnswerT:
    """The answer of a running gateway to one path. Raises EnvironmentFault, with what to do."""
    import asyncio

    from aiaas.cli.adminlook import ask_admin
    from aiaas.errors import EnvironmentFault
    from aiaas.httpclient.client import HttpClient
    from aiaas.httpclient.target import parse_target

    target = parse_target(url)

    async def ask() -> _AnswerT:
        client = HttpClient(target)
        try:
            return await ask_admin(client, path, kind)
        finally:
            client.close()

    try:
        return asyncio.run(ask())
    except EnvironmentFault as fault:
        raise EnvironmentFault(f"{target.url}: {fault.message}; {_HINT}") from fault
