"""aiaas.proxy.upstream.path_watch: the paths that engines list."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from aiaas.openai import paths
from aiaas.proxy.tasks import end_tasks
from aiaas.proxy.upstream.ask import Fetched
from aiaas.proxy.upstream.connection import Failure, FailureKind
from aiaas.proxy.upstream.lacking import learn
from aiaas.proxy.upstream.path_watch import PathWatch, lacking_paths
from tests.fakes.vllm import FakeVllm, Send, json_answer
from tests.waiting import until

SOON = 0.01


def described(*listed: str) -> bytes:
    return json.dumps({"openapi": "3.1.0", "paths": {path: {"post": {}} for path in listed}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "lacks"),
    [
        pytest.param(200, described(*paths.GENERATE), frozenset(), id="all"),
        pytest.param(200, described(*paths.GENERATE[1:], "/x"), frozenset({paths.CHAT}), id="all but one"),
        pytest.param(200, described("/pets", "/v1/models"), None, id="another service"),
        pytest.param(200, b'{"paths":[]}', None, id="no object"),
        pytest.param(200, b"<html>", None, id="a page"),
        pytest.param(404, b'{"detail":"Not Found"}', None, id="docs turned off"),
        pytest.param(200, b"\xff", None, id="no text"),
    ],
)
def test_list_of_paths_is_believed_only_from_an_engine(status: int, body: bytes, lacks: frozenset[str] | None) -> None:
    """Anything else tells nothing."""
    assert lacking_paths(Fetched(status, b"application/json", body)) == lacks
    assert lacking_paths(Failure(FailureKind.CONNECT, "refused")) is None


async def test_endpoint_is_asked_when_it_comes_up_and_each_interval(fake_vllm: FakeVllm, gateway: Any) -> None:
    """A list replaces what was known; without one, what 404s have shown is forgotten."""
    fake_vllm.gets["/openapi.json"] = (Send(json_answer(json.loads(described(paths.CHAT)))),)
    running = await gateway(fake_vllm)
    (endpoint,) = running.endpoints()
    watch = PathWatch(running.backend(), running.gateway.log, running.metrics, 0.05, SOON)
    task = asyncio.create_task(watch.run(), name="paths")
    await until(lambda: endpoint.lacks == frozenset(paths.GENERATE) - {paths.CHAT})
    fake_vllm.gets["/openapi.json"] = (Send(json_answer({"detail": "Not Found"})),)
    await until(lambda: endpoint.lacks == frozenset())
    learn(endpoint, frozenset({paths.SCORE}))
    await until(lambda: endpoint.lacks == frozenset())
    await end_tasks([task])
