"""The metrics port: GET /metrics in Prometheus' text format, and nothing else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aiaas.errors import ApiError
from aiaas.openai import paths
from aiaas.proxy.client.answers import answer
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.incoming import HttpRequest
from aiaas.proxy.client.open_side import OpenSide
from aiaas.proxy.client.refusal import ConnectionLimits
from aiaas.proxy.client.request_target import path_of

EXPOSITION = b"text/plain; version=0.0.4; charset=utf-8"
# Bounds of a scraper's request, in seconds and in bytes.
HEAD_TIMEOUT = 10.0
HEAD_SIZE = 32 * 1024


@dataclass(frozen=True, slots=True)
class FaultsOnly:
    """Reports internal errors only: a client of a port that is not for clients notices itself that it was refused."""

    internal_error: Callable[[BaseException | None], None]

    def refused_head(self, _peer: str, _error: ApiError, _origin: str | None) -> bytes:
        """Not counted among the gateway's answers."""
        return b""

    def dropped(self, _peer: str, _reason: str) -> None:
        """Not logged."""


async def serve_metrics(
    listener: socket.socket,
    expose: Callable[[], Awaitable[bytes]],
    internal_error: Callable[[BaseException | None], None],
    stack: AsyncExitStack,
) -> asyncio.Server:
    """Answer with the result of `expose`, until `stack` ends. Close the returned server to give the port up sooner.

    It uses the connection class of the client port, which does not reveal versions and bounds a slow head.
    """

    async def metrics(request: HttpRequest, client: ClientConnection) -> bool:
        found = path_of(request.raw_path) == paths.METRICS and request.method in ("GET", "HEAD")
        body = await expose() if found else b"Metrics are at GET /metrics.\n"
        whole = answer(
            200 if found else 404,
            EXPOSITION if found else b"text/plain",
            body,
            extra=b"",
            close=True,
            head_only=request.method == "HEAD",
        )
        if client.transport is not None:
            client.transport.write(whole)
        return False

    limits = ConnectionLimits(HEAD_TIMEOUT, HEAD_SIZE)
    open_side = OpenSide(metrics, limits, FaultsOnly(internal_error))
    server = await asyncio.get_running_loop().create_server(open_side, sock=listener, backlog=16)
    stack.push_async_callback(open_side.shutdown, 1.0)
    stack.callback(server.close)
    return server
