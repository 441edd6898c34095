"""Ask the admin endpoint of a running gateway."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from aiaas.cli.topscreen import GatewayLook
from aiaas.errors import EnvironmentFault
from aiaas.httpclient.answer import PlainAnswer
from aiaas.httpclient.client import BrokenError, HttpClient
from aiaas.proxy.admin.model import Requests, Status

ASK_ADMIN_TIMEOUT: Final = 5.0  # seconds; a gateway on the same machine answers in milliseconds
MOST_LIVE: Final = 2000  # rows of requests under way: 2 MB
_HINT: Final = "the admin endpoint is at monitoring.admin_port, by default 9091"

AnswerT = TypeVar("AnswerT")


async def ask_admin(client: HttpClient, path: str, kind: type[AnswerT]) -> AnswerT:
    """Return the answer of one path. Raises EnvironmentFault, with a message that does not name the gateway."""
    answer = PlainAnswer()
    try:
        await client.send(client.target.head("GET", path, None) + b"\r\n", answer, ASK_ADMIN_TIMEOUT)
    except BrokenError as error:
        raise EnvironmentFault(f"{error}; {_HINT}" if error.kind == "connect" else str(error)) from error
    if answer.status != 200:
        said = answer.content.decode("utf-8", "replace").strip().partition("\n")[0][:160]
        raise EnvironmentFault(f"answers {answer.status}: {said}" if answer.status else answer.detail)
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EnvironmentFault(
            f"does not answer as an admin endpoint of this version does ({error}); {_HINT}"
        ) from error


async def look_at(client: HttpClient) -> GatewayLook:
    """The gateway now, or why it cannot be seen."""
    try:
        status = await ask_admin(client, "/status", Status)
        requests = await ask_admin(client, f"/requests?live=1&limit={MOST_LIVE}", Requests)
    except EnvironmentFault as fault:
        return GatewayLook(client.target.url, error=fault.message)
    return GatewayLook(client.target.url, status, tuple(requests.live))
