"""Ask a gateway which models it offers, and send it the probes of `aiaas connect --check`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from aiaas.clients.client import KnownClient
from aiaas.clients.probes import ClientFinding, Probe, ProbeReply, judge_context, judge_path, judge_tokens, probes_of
from aiaas.errors import CheckFailed, EnvironmentFault
from aiaas.httpclient.answer import PlainAnswer
from aiaas.httpclient.client import BrokenError, HttpClient
from aiaas.httpclient.target import HttpTarget
from aiaas.loadtest.probe import why_silent, with_hint
from aiaas.openai.paths import MODELS

CHECK_TIMEOUT: Final = 60.0  # seconds: one token, behind a queue
_TOKENS_HEADER: Final = "x-ratelimit-limit-tokens"


class OfferedModel(msgspec.Struct, frozen=True):
    """One entry of the gateway's list of models."""

    id: str
    max_model_len: int | None = None


class _List(msgspec.Struct):
    data: list[OfferedModel]


@dataclass(frozen=True, slots=True)
class ClientCheck:
    """The findings for one client."""

    client: KnownClient
    findings: tuple[ClientFinding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is missing, and every request got a verdict."""
        return not any(finding.state in ("missing", "untried") for finding in self.findings)


@asynccontextmanager
async def connected(target: HttpTarget) -> AsyncIterator[HttpClient]:
    """Connections to the gateway, which are closed afterwards."""
    http = HttpClient(target)
    try:
        yield http
    finally:
        http.close()
        await asyncio.sleep(0)  # a transport closes its socket in the loop's next turn


async def offered_models(client: HttpClient, key: str | None, timeout: float) -> tuple[OfferedModel, ...]:
    """The models that this key may use.

    Raises:
        EnvironmentFault: the gateway does not answer, or not with a list of models.
        CheckFailed: it refuses the key.
    """
    answer = PlainAnswer()
    url = client.target.url
    try:
        await client.send(client.target.head("GET", MODELS, key) + b"\r\n", answer, timeout)
    except BrokenError as error:
        raise EnvironmentFault(f"{url}: {with_hint(error.kind, str(error))}") from error
    if answer.status is None:
        raise EnvironmentFault(f"{url}: {await why_silent(client.target, answer.detail)}")
    if answer.status in (401, 403):
        what = "refuses the key" if key is not None else "requires a key: --api-key-file or $AIAAS_API_KEY"
        raise CheckFailed(f"{url} {what}")
    if answer.status != 200:
        raise EnvironmentFault(f"{url}: GET {MODELS} returned {answer.status}: {answer.detail}")
    try:
        return tuple(msgspec.json.decode(answer.content, type=_List).data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EnvironmentFault(f"{url}: GET {MODELS} did not return a list of models; is the URL right?") from error


async def check_clients(
    http: HttpClient, clients: Sequence[KnownClient], model: OfferedModel, key: str | None
) -> tuple[ClientCheck, ...]:
    """The findings for each client. Each different probe is sent once.

    Raises EnvironmentFault if the first probe gets no answer from an engine: the others would only repeat it.
    """
    replies: dict[Probe, ProbeReply] = {}
    for client in clients:
        for probe in probes_of(client):
            if probe not in replies:
                reply = await _send(http, probe, model.id, key)
                if not replies and (reply.status is None or reply.status in (502, 503, 504)):
                    raise EnvironmentFault(f"{http.target.url}: no answer for model {model.id}: {reply.message}")
                replies[probe] = reply
    return tuple(ClientCheck(client, _findings(client, model, replies)) for client in clients)


def _findings(
    client: KnownClient, model: OfferedModel, replies: Mapping[Probe, ProbeReply]
) -> tuple[ClientFinding, ...]:
    probes = probes_of(client)
    found = [judge_path(client, probe, replies[probe]) for probe in probes]
    more = (
        judge_context(client, model.max_model_len),
        judge_tokens(client, tuple(replies[probe] for probe in probes)),
    )
    return (*found, *(finding for finding in more if finding is not None))


async def _send(http: HttpClient, probe: Probe, model: str, key: str | None) -> ProbeReply:
    body = probe.body(model)
    bearer = key if probe.key_in == "authorization" else None
    lines = [f"{name}: {value}" for name, value in probe.headers]
    if key is not None and bearer is None:
        lines.append(f"{probe.key_in}: {key}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    head = http.target.head("GET" if body is None else "POST", probe.path, bearer)
    request = head + "".join(f"{line}\r\n" for line in lines).encode("ascii") + b"\r\n" + (body or b"")
    answer = PlainAnswer()
    try:
        await http.send(request, answer, CHECK_TIMEOUT)
    except BrokenError as error:
        return ProbeReply(None, message=str(error))
    limit = answer.headers.get(_TOKENS_HEADER, "")
    return ProbeReply(answer.status, answer.code, answer.detail, int(limit) if limit.isdecimal() else None)
