"""Check the server before any load: is it reachable, does it accept the key, which models does it serve?

One request finds the problem before it fails ten thousand times. Each problem is reported in one line.
"""

from __future__ import annotations

from typing import Final

import msgspec

from aiaas.errors import CheckFailed, EnvironmentFault
from aiaas.httpclient.answer import PlainAnswer
from aiaas.httpclient.client import BrokenError, HttpClient
from aiaas.httpclient.mismatch import WRITE_HTTP, WRITE_HTTPS, speaks_tls
from aiaas.httpclient.target import HttpTarget

PROBE_TIMEOUT: Final = 10.0
_HINTS: Final = {
    "connect": "is the server running, and is the URL right?",
    "timeout": "is the URL right, or does a firewall drop the connection?",
    "reset": "is it an HTTP server?",
    "generator": "close some programs",
    "tls": "--ca FILE trusts the certificate's issuer, --insecure accepts any",
}


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_MODELS: Final[msgspec.json.Decoder[_Models]] = msgspec.json.Decoder(_Models)


def with_hint(kind: str, detail: str) -> str:
    """Why there is no connection (a kind of `aiaas.httpclient.answer`), and what to do."""
    return detail if detail == WRITE_HTTP else f"{detail}; {_HINTS[kind]}"  # which says itself what to do


async def why_silent(target: HttpTarget, detail: str) -> str:
    """Why a connection ended without an answer: that the server speaks TLS, or else `detail` with a hint."""
    if target.tls is None and await speaks_tls(target.host, target.port, PROBE_TIMEOUT):
        return WRITE_HTTPS
    return with_hint("reset", detail)


async def get(client: HttpClient, path: str, key: str | None) -> PlainAnswer:
    """Send one GET. Raises EnvironmentFault if the server does not answer."""
    answer = PlainAnswer()
    url = client.target.url
    try:
        await client.send(client.target.head("GET", path, key) + b"\r\n", answer, PROBE_TIMEOUT)
    except BrokenError as error:
        raise EnvironmentFault(f"{url}: {with_hint(error.kind, str(error))}") from error
    if answer.status is None:
        raise EnvironmentFault(f"{url}: {await why_silent(client.target, answer.detail)}")
    return answer


async def models_of(client: HttpClient, key: str | None) -> tuple[str, ...]:
    """Return the models that this key may use, or an empty tuple if the server does not list models (404).

    Raises:
        EnvironmentFault: the server is unreachable or does not speak OpenAI's API.
        CheckFailed: the server refuses the key.
    """
    answer = await get(client, "/v1/models", key)
    url = client.target.url
    if answer.status in (401, 403):
        what = "refuses the key" if key is not None else "requires a key; set --api-key-file or $AIAAS_API_KEY"
        raise CheckFailed(f"{url} {what}" + (f": {answer.detail}" if key is not None and answer.detail else ""))
    if answer.status == 404:
        return ()
    if answer.status != 200:
        raise EnvironmentFault(f"{url}: GET /v1/models returned {answer.status}: {answer.detail}")
    try:
        return tuple(model.id for model in _MODELS.decode(answer.content).data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        what = answer.headers.get("content-type") or "no content type"
        raise EnvironmentFault(
            f"{url}: GET /v1/models returned {what} instead of a list of models; is the URL right?"
        ) from error


def choose_model(url: str, wanted: str | None, listed: tuple[str, ...]) -> str:
    """Return the model to request: `wanted`, or else the first listed model.

    Raises CheckFailed if `wanted` is not listed, or if `wanted` is None and the list is empty.
    """
    if wanted is None:
        if not listed:
            raise CheckFailed(f"{url} lists no models; choose a model with --model")
        return listed[0]
    if listed and wanted not in listed:
        raise CheckFailed(f"{url} has no model {wanted!r} for this key; it lists {', '.join(listed[:10])}")
    return wanted
