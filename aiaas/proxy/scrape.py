"""The metrics port: GET /metrics in Prometheus' text format, and nothing else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from aiohttp.web_request import BaseRequest

from aiaas.proxy.connection import ConnectionLimits, InternalErrorHook, OpenSide
from aiaas.proxy.respond import Answered, answer

EXPOSITION = b"text/plain; version=0.0.4; charset=utf-8"
# What a scraper's request may take, in seconds and in bytes.
HEAD_TIMEOUT = 10.0
HEAD_SIZE = 32 * 1024


async def serve_metrics(
    listener: socket.socket,
    expose: Callable[[], Awaitable[bytes]],
    internal_error: InternalErrorHook,
    stack: AsyncExitStack,
) -> None:
    """Answer with what `expose` gives, until `stack` ends.

    On the same open side as everything else: it says nothing of versions and bounds a slow head.
    """

    async def metrics(request: BaseRequest) -> Answered:
        found = request.raw_path.partition("?")[0] == "/metrics" and request.method in ("GET", "HEAD")
        body = await expose() if found else b"Metrics are at GET /metrics.\n"
        whole = answer(
            200 if found else 404,
            EXPOSITION if found else b"text/plain",
            body,
            extra=b"",
            close=True,
            head_only=request.method == "HEAD",
        )
        if request.transport is not None:
            request.transport.write(whole)
        return Answered(keep_alive=False)

    limits = ConnectionLimits(HEAD_TIMEOUT, HEAD_SIZE)
    open_side = OpenSide(metrics, limits, internal_error, lambda _status, _code: None)
    server = await asyncio.get_running_loop().create_server(open_side, sock=listener, backlog=16)
    stack.push_async_callback(open_side.shutdown, 1.0)
    stack.callback(server.close)
