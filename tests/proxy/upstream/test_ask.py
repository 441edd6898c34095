"""aiaas.proxy.upstream.ask: the gateway's own small requests."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from aiaas.httpclient.mismatch import WRITE_HTTPS
from aiaas.proxy.upstream.ask import Fetched, fetch
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.connection import Failure, FailureKind
from tests.certificate import self_signed
from tests.fakes.vllm import STREAM_HEAD, Close, FakeVllm, Flood, Hang, Send, SendSlowly, Step, chunk, json_answer
from tests.proxy.conftest import config_of, plan_of
from tests.waiting import until


async def test_fetch(fake_vllm: FakeVllm) -> None:
    """A small resource comes with its status, on a connection of its own, with the backend's own key."""
    config = config_of([fake_vllm.url], {"api_key_env": "KEY"}, {})
    plan = plan_of(config, env={"KEY": "backend-secret"}).backends[0]
    (endpoint,) = BackendState(plan, lambda *_: None).endpoints
    fake_vllm.gets["/v1/models"] = (SendSlowly(json_answer({"data": [1]}), size=30),)
    dated = b"Mon, 23 Nov 2026 07:16:08 GMT"
    assert await fetch(endpoint, "/v1/models", 1.0) == Fetched(200, b"application/json", b'{"data":[1]}', dated)
    assert fake_vllm.got[0].headers["authorization"] == "Bearer backend-secret"
    await until(lambda: fake_vllm.open_connections == 0)


async def test_tls_behind_an_http_address_is_named(tmp_path: Path) -> None:
    """The server ends the plain request; a handshake shows the cause, for the log and for `aiaas doctor`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*self_signed(tmp_path))
    fake = await FakeVllm.start(context)
    plan = plan_of(config_of([fake.url], {}, {})).backends[0]
    (endpoint,) = BackendState(plan, lambda *_: None).endpoints
    failure = await fetch(endpoint, "/health", 20.0)
    await fake.stop()
    assert isinstance(failure, Failure)
    assert failure.detail == WRITE_HTTPS


async def test_a_fetch_can_send_a_body(fake_vllm: FakeVllm) -> None:
    """On the paths of requests: a POST with its length."""
    plan = plan_of(config_of([fake_vllm.url], {}, {})).backends[0]
    (endpoint,) = BackendState(plan, lambda *_: None).endpoints
    assert isinstance(await fetch(endpoint, "/v1/completions", 1.0, b'{"model":"m"}'), Fetched)
    assert (fake_vllm.posts[0].path, fake_vllm.posts[0].json) == ("/v1/completions", {"model": "m"})
    assert fake_vllm.posts[0].headers["content-type"] == "application/json"


async def test_the_connection_of_a_fetch_is_never_a_requests(fake_vllm: FakeVllm) -> None:
    """Not for a moment, though the backend would keep it: a request that took it was never answered."""
    plan = plan_of(config_of([fake_vllm.url], {}, {})).backends[0]
    (endpoint,) = BackendState(plan, lambda *_: None).endpoints
    fetching = asyncio.create_task(fetch(endpoint, "/health", 1.0))
    while not fetching.done():
        assert endpoint.pool.take_idle(asyncio.get_running_loop().time()) is None
        await asyncio.sleep(0)
    answer = fetching.result()
    assert isinstance(answer, Fetched)
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (Hang(), FailureKind.TIMEOUT),
        (Close(), FailureKind.RESET),
        (Flood(chunk(b"x" * 65536), 1000), FailureKind.MALFORMED),
    ],
    ids=["hangs", "closes", "never ends"],
)
async def test_fetch_that_fails(fake_vllm: FakeVllm, step: Step, kind: FailureKind) -> None:
    """A Failure, within the timeout and in bounded memory, and no connection is left."""
    plan = plan_of(config_of([fake_vllm.url], {}, {})).backends[0]
    (endpoint,) = BackendState(plan, lambda *_: None).endpoints
    fake_vllm.gets["/health"] = (Send(STREAM_HEAD), step) if isinstance(step, Flood) else (step,)
    result = await fetch(endpoint, "/health", 0.3)
    assert isinstance(result, Failure)
    assert result.kind is kind
    await until(lambda: fake_vllm.open_connections == 0)
