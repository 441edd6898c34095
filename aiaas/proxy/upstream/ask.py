"""The gateway's own small requests: probes and lists of models, and spans for a collector."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from aiaas.httpclient.mismatch import WRITE_HTTPS, speaks_tls
from aiaas.proxy.client.answers import HeaderList, header_of
from aiaas.proxy.client.handler import with_pauses
from aiaas.proxy.upstream.attempt import retry_after
from aiaas.proxy.upstream.connection import Failure, FailureKind, Pool, UpstreamConnection
from aiaas.proxy.upstream.endpoint import EndpointState


class Fetched(msgspec.Struct, frozen=True):
    """A whole answer. `date` is the header, empty where there is none."""

    status: int
    content_type: bytes
    body: bytes
    date: bytes = b""
    retry_after: int | None = None


# How a server that speaks TLS ends a request in plain HTTP.
_MAY_BE_TLS: Final = (FailureKind.RESET, FailureKind.MALFORMED)


async def fetch(endpoint: EndpointState, path: str, timeout: float, body: bytes | None = None) -> Fetched | Failure:
    """Ask an endpoint for something small, as `ask`; a failure names a server that speaks TLS."""
    answer = await ask(endpoint.pool, path, timeout, body)
    plan = endpoint.plan
    may_be_tls = isinstance(answer, Failure) and answer.kind in _MAY_BE_TLS and not plan.tls
    if may_be_tls and await speaks_tls(plan.host, plan.port, timeout):
        return Failure(FailureKind.CONNECT, WRITE_HTTPS)
    return answer


async def ask(pool: Pool, path: str, timeout: float, body: bytes | None = None) -> Fetched | Failure:
    """Ask for something small on a connection of its own: the answer, or the failure.

    path  one for which the plan has heads: the backend's health path, `/v1/models`, and those of requests
    body  JSON, for the paths of requests
    Never raises; a probe on a reused connection would tell about the connection and not about the backend.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            connection = await with_pauses(pool.connect())
            if isinstance(connection, Failure):
                return connection
            collector = _Collector(connection, loop)
            try:
                request = pool.endpoint.heads[path] + b"Connection: close\r\n"
                if body is not None:
                    request += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
                connection.exchange(request + b"\r\n" + (body or b""), collector)
                return await collector.done
            finally:
                connection.abort()
    except TimeoutError:
        return Failure(FailureKind.TIMEOUT, f"no answer within {timeout:g} s")


class _Collector:
    """A Sink for small answers.

    It closes its connection with the answer. Otherwise, if a backend ignores `Connection: close`, the connection would
    be idle in the pool until `fetch` runs on, and a request that took it in between would lose it.
    """

    LIMIT = 1024 * 1024

    def __init__(self, connection: UpstreamConnection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self.done: asyncio.Future[Fetched | Failure] = loop.create_future()
        self._status = 0
        self._content_type = self._date = b""
        self._retry_after: int | None = None
        self._body = bytearray()

    def head(self, status: int, headers: HeaderList) -> None:
        self._status = status
        self._content_type = header_of(headers, b"content-type")
        self._date = header_of(headers, b"date")
        self._retry_after = retry_after(headers)

    def body(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self.LIMIT:
            self.failed(Failure(FailureKind.MALFORMED, "the answer is too long"))

    def end(self) -> None:
        self._connection.abort()
        if not self.done.done():
            self.done.set_result(
                Fetched(self._status, self._content_type, bytes(self._body), self._date, self._retry_after)
            )

    def failed(self, failure: Failure) -> None:
        if not self.done.done():
            self.done.set_result(failure)
