"""Ask the admin port of a running gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

if TYPE_CHECKING:
    from aiaas.httpclient.client import HttpClient

ADMIN_ADDRESS: Final = "http://127.0.0.1:9091"
ASK_ADMIN_TIMEOUT: Final = 5.0  # seconds; a gateway on the same machine answers in milliseconds
_PORT_HINT: Final = "the admin endpoint is at monitoring.admin_port, by default 9091"
_HINT: Final = (
    "is `aiaas serve` running there? A gateway in Kubernetes first needs: "
    "kubectl port-forward -n NAMESPACE pod/POD 9091"
)

AnswerT = TypeVar("AnswerT")

AdminUrlOption = Annotated[
    str, typer.Option("--url", metavar="URL", help="The admin endpoint of the gateway (monitoring.admin_port).")
]


def ask_gateway(url: str, path: str, kind: type[AnswerT]) -> AnswerT:
    """The answer to one path, for a command that ends without it. Raises EnvironmentFault, with what to do."""
    import asyncio

    from aiaas.clients.check import connected
    from aiaas.errors import EnvironmentFault
    from aiaas.httpclient.target import parse_target

    target = parse_target(url)

    async def ask() -> AnswerT:
        async with connected(target) as client:
            return await ask_admin(client, path, kind)

    try:
        return asyncio.run(ask())
    except EnvironmentFault as fault:
        raise EnvironmentFault(f"{target.url}: {fault.message}; {_HINT}") from fault


async def ask_admin(client: HttpClient, path: str, kind: type[AnswerT]) -> AnswerT:
    """The answer to one path. Raises EnvironmentFault, with a message that does not name the gateway."""
    import msgspec

    from aiaas.errors import EnvironmentFault
    from aiaas.httpclient.answer import PlainAnswer
    from aiaas.httpclient.client import BrokenError

    answer = PlainAnswer()
    try:
        await client.send(client.target.head("GET", path, None) + b"\r\n", answer, ASK_ADMIN_TIMEOUT)
    except BrokenError as error:
        raise EnvironmentFault(f"{error}; {_PORT_HINT}" if error.kind == "connect" else str(error)) from error
    if answer.status != 200:
        said = answer.content.decode("utf-8", "replace").strip().partition("\n")[0][:160]
        raise EnvironmentFault(f"answers {answer.status}: {said}" if answer.status else answer.detail)
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EnvironmentFault(
            f"does not answer as an admin endpoint of this version does ({error}); {_PORT_HINT}"
        ) from error
