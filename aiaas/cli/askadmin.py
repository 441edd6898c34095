"""Ask the admin port of a running gateway."""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import typer

ADMIN_ADDRESS: Final = "http://127.0.0.1:9091"
_PATIENCE: Final = 10.0  # seconds

_AnswerT = TypeVar("_AnswerT")

AdminUrlOption = Annotated[
    str, typer.Option("--url", metavar="URL", help="The admin endpoint of the gateway (monitoring.admin_port).")
]


def ask_gateway(url: str, path: str, kind: type[_AnswerT]) -> _AnswerT:
    """The answer of a running gateway to one path. Raises EnvironmentFault, with what to do."""
    import asyncio

    import msgspec

    from aiaas.errors import EnvironmentFault
    from aiaas.httpclient.answer import PlainAnswer
    from aiaas.httpclient.client import BrokenError, HttpClient
    from aiaas.httpclient.target import parse_target

    target = parse_target(url)

    async def ask() -> PlainAnswer:
        answer, client = PlainAnswer(), HttpClient(target)
        try:
            await client.send(target.head("GET", path, None) + b"\r\n", answer, _PATIENCE)
        finally:
            client.close()
        return answer

    try:
        answer = asyncio.run(ask())
    except BrokenError as error:
        raise EnvironmentFault(f"{target.url}: {error}; {_HINT}") from error
    if answer.status is None:
        raise EnvironmentFault(f"{target.url}: {answer.detail}; {_HINT}")
    if answer.status != 200:
        said = answer.content.decode("utf-8", "replace").strip().partition("\n")[0][:160]
        raise EnvironmentFault(f"{target.url}{path.partition('?')[0]} answers {answer.status}: {said}")
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EnvironmentFault(
            f"{target.url} is not the admin endpoint of a gateway of this version ({error}); {_HINT}"
        ) from error


_HINT: Final = (
    "is `aiaas serve` running there, and monitoring.admin_port this port and not 0? "
    "A gateway in Kubernetes first needs: kubectl port-forward -n NAMESPACE pod/POD 9091"
)
