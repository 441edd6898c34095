"""aiaas.proxy.limit_store: the shared store in a running gateway, its words in the log and its counts in the
metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from aiaas.errors import EnvironmentFault
from aiaas.limits.fallback import FallbackStore
from aiaas.proxy.limit_store import begin_shared_store, shared_store
from aiaas.proxy.tasks import Keeper
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from tests.fakes.redis import RedisServer
from tests.fakes.vllm import FakeVllm, Send, json_answer
from tests.proxy.conftest import Running, StartGateway, config_of, plan_of
from tests.waiting import until

BODY = {"model": "m", "messages": []}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own: it is killed."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.end()


@asynccontextmanager
async def begun(running: Running) -> AsyncIterator[FallbackStore]:
    """The shared store of a gateway's plan, connected as `serve` does it."""
    plan, log = running.gateway.active.plan, running.gateway.log
    store = shared_store(plan.limits, log)
    assert store is not None
    async with AsyncExitStack() as stack:
        await begin_shared_store(store, Keeper(log), running.metrics, stack)
        running.gateway.store = store
        running.gateway.replace_plan(plan)
        yield store


@pytest.mark.parametrize(
    ("mode", "statuses"),
    [("local", [200, 200, 429]), ("allow", [200, 200, 200]), ("deny", [503, 503, 503])],
)
async def test_without_the_store_it_does_as_configured(
    mode: str, statuses: list[int], fake_vllm: FakeVllm, gateway: StartGateway, server: RedisServer
) -> None:
    """The remaining budget of the key, all of it, or None with 503; Retry-After is a second then."""
    fake_vllm.play(*[Send(json_answer({}))] * 10)
    limits = {"store": server.url, "on_store_failure": mode, "requests_per_minute": 3}
    running = await gateway(fake_vllm, rate_limit=limits)
    async with begun(running) as store:
        client = await running.client()
        got = await client.post(BODY)
        assert (got.status, got.header("x-ratelimit-limit-requests")) == (200, "3")
        assert running.metric("aiaas_limit_store_up") == 1
        server.kill()
        await until(lambda: not store.shared.up)
        answers = [await client.post(BODY) for _ in range(3)]
        assert [got.status for got in answers] == statuses
        assert running.metric("aiaas_limit_store_up") == 0
        assert running.metric(f'aiaas_limit_decisions_total{{by="{mode}"}}') == 3
        if mode == "deny":
            assert b'"overloaded"' in answers[0].body
        for got in answers:
            expected = None if got.status == 200 else ("1", "1000")
            assert got.status == 200 or (got.header("retry-after"), got.header("retry-after-ms")) == expected
        server.start()
        await until(lambda: store.shared.up)
        assert (await client.post(BODY)).status == 200
        assert running.metric('aiaas_limit_decisions_total{by="shared"}') == 2
        answers = running.metric("aiaas_limit_store_seconds_count")
        await until(lambda: running.metric("aiaas_limit_store_seconds_count") > answers)  # with each beat
    away = running.log_lines("limit_store_away")
    assert [(line["store"], line["meanwhile"]) for line in away] == [(server.url, mode)]
    assert "connection" in away[0]["reason"]
    assert len(running.log_lines("limit_store_up")) == 2


async def test_a_store_that_is_not_there_does_not_keep_from_serving() -> None:
    """Logged once, and retried again and again."""
    lines: list[bytes] = []
    log = JsonLog(lines.append, lambda: 0.0, "info")
    config = config_of(["http://vllm"], {}, {"rate_limit": {"store": "redis://127.0.0.1:1"}})
    store = shared_store(plan_of(config).limits, log)
    assert store is not None
    async with AsyncExitStack() as stack:
        await begin_shared_store(store, Keeper(log), Metrics(), stack)
        failures = store.shared.failures
        await until(lambda: store.shared.failures > failures)  # as long as the store is away
    log.flush()
    text = b"".join(lines).decode()
    assert text.count("limit_store_away") == 1
    assert "cannot connect to redis://127.0.0.1:1/0" in text


def test_memory_needs_no_store_and_bad_files_are_reported() -> None:
    """Before anything listens."""
    log = JsonLog(lambda _lines: None, lambda: 0.0, "info")
    assert shared_store(plan_of(config_of(["http://vllm"], {}, {})).limits, log) is None
    limits = {"store": "rediss://redis?ssl_ca_certs=/nowhere/ca.pem"}
    with pytest.raises(EnvironmentFault, match=r"rate_limit\.store: /nowhere/ca\.pem does not exist"):
        shared_store(plan_of(config_of(["http://vllm"], {}, {"rate_limit": limits})).limits, log)
