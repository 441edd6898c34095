"""aiaas.proxy.client.metrics_port: the metrics port as a scraper sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from aiaas.proxy.client.metrics_port import serve_metrics
from aiaas.proxy.client.ports import bind
from tests.proxy.conftest import Raw


@pytest.fixture
async def scraper() -> AsyncIterator[Raw]:
    """A connection to a metrics port that exposes `up 1`."""

    async def expose() -> bytes:
        return b"up 1\n"

    async with AsyncExitStack() as stack:
        listener = stack.enter_context(bind("127.0.0.1", 0, "x"))
        await serve_metrics(listener, expose, lambda error: pytest.fail(repr(error)), stack)
        client = await Raw.connect(listener.getsockname()[1], "")
        stack.callback(client.reset)
        yield client


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        pytest.param("GET", "/metrics", 200, b"up 1\n", id="scrape"),
        pytest.param("GET", "/metrics?name=x", 200, b"up 1\n", id="with a query"),
        pytest.param("HEAD", "/metrics", 200, b"", id="only the head"),
        pytest.param("GET", "/metrics/", 200, b"up 1\n", id="with a slash"),
        pytest.param("POST", "/metrics", 404, b"Metrics are at GET /metrics.\n", id="wrong method"),
        pytest.param("GET", "/", 404, b"Metrics are at GET /metrics.\n", id="wrong path"),
    ],
)
async def test_metrics_are_at_one_path(scraper: Raw, method: str, path: str, status: int, body: bytes) -> None:
    """Another path gets a hint at the right one; each connection ends with its answer."""
    got = await scraper.get(path, method=method)
    assert (got.status, got.body, got.header("connection")) == (status, body, "close")
    if status == 200:
        assert got.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    assert await scraper.ended() == b""
