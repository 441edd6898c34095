"""aiaas.proxy.inside: a gateway describes its requests and itself."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from aiaas.keys.ring import KeyRing
from aiaas.limits.fallback import FallbackStore
from aiaas.limits.memory import MemoryStore
from aiaas.limits.redis import RedisStore
from aiaas.limits.redis_url import parse_redis_url
from aiaas.proxy.admin.model import KeysView
from aiaas.proxy.admin.port import Query
from aiaas.proxy.inside import Inside
from aiaas.proxy.reload import Reloader
from tests.fakes.vllm import DONE, STREAM_HEAD, FakeVllm, Hang, Send, chunk, json_answer, stream, token_event
from tests.keymaterial import leaked_keys
from tests.proxy.conftest import Running, StartFake, StartGateway, new_key
from tests.waiting import until

BODY = {"model": "m", "messages": [{"role": "user", "content": "my secret prompt"}]}
STREAM = BODY | {"stream": True}


def inside(running: Running) -> Inside:
    """The state of a gateway of these tests."""
    gateway = running.gateway
    assert isinstance(gateway.store, MemoryStore | FallbackStore)
    reloader = Reloader(gateway, {}, lambda _engines: frozenset(), lambda _plan: None)
    return Inside(gateway, reloader, gateway.store, running.usage)


async def requests(running: Running, **asked: Any) -> dict[str, Any]:
    """The answer of `/requests`; none of its bytes is a key or of a prompt."""
    body = await inside(running).requests(Query(**asked))
    assert leaked_keys(body) == []
    assert b"secret prompt" not in body
    found: dict[str, Any] = json.loads(body)
    return found


async def status(running: Running) -> dict[str, Any]:
    """The answer of `/status`."""
    found: dict[str, Any] = json.loads(await inside(running).status())
    return found


async def test_ended_request_is_shown_with_its_limits(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """As its own headers stated them, with the one attempt."""
    running = await gateway(fake_vllm, rate_limit={"requests_per_minute": 60, "burst": 10})
    fake_vllm.play(Send(stream(token_event(), DONE)))
    client = await running.client()
    got = await client.post(STREAM)
    (row,) = (await requests(running))["ended"]
    assert (row["id"], row["status"], row["phase"]) == (got.header("x-request-id"), 200, "ended")
    assert (row["user"], row["model"], row["backend"], row["class"]) == ("alice", "m", "vllm", "default")
    assert row["limits"] == [{"limit": "requests", "of": 60, "remaining": 9, "resets_in": 1.0}]
    assert [attempt["endpoint"] for attempt in row["attempts"]] == [fake_vllm.url]
    assert (row["ended_by"], row["ttft"] <= row["duration"], row["events"]) == ("upstream", True, 1)


async def test_live_request_is_shown_by_its_phase(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """A stream, one that waits for its answer, and one in the queue; the oldest first."""
    running = await gateway(fake_vllm, backend={"max_inflight": 2})
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Hang())
    fake_vllm.play(Hang())
    for number, body in enumerate((STREAM, BODY, BODY), 1):
        client = await running.client()
        client.send(client.request(body))
        await until(lambda expected=number: running.gateway.in_flight == expected)
    await until(lambda: [r.phase for r in running.gateway.live] == ["streaming", "waiting", "queued"])
    found = await requests(running, live=True)
    assert found["ended"] == []
    assert [row["waiting_for"] for row in found["live"]] == [None, "the answer", "a slot of backend vllm"]
    assert [row["queue_position"] for row in found["live"]] == [0, 0, 1]
    assert (await status(running))["requests"] == {"in_flight": 3, "queued": 1, "output_tokens": 1}


async def test_retry_is_shown_with_the_reason(gateway: StartGateway, fake_vllms: StartFake) -> None:
    """The first attempt, why a second one was safe, and the second one."""
    busy, good = await fake_vllms(), await fake_vllms()
    running = await gateway(busy, good, backend={"balance": "round_robin"})
    busy.play(Send(json_answer({"error": {"message": "busy"}}, status=503)))
    client = await running.client()
    while not busy.posts:
        assert (await client.post(BODY)).status == 200
    row = (await requests(running))["ended"][0]
    first, second = row["attempts"]
    assert (first["endpoint"], first["status"], first["again"]) == (busy.url, 503, "busy")
    assert first["why_safe"] == "the engine refused the request and did not run it"
    assert (second["endpoint"], second["status"], row["retries"]) == (good.url, 200, 1)


async def test_dead_backend_is_the_failure_of_its_attempts(gateway: StartGateway) -> None:
    """Each attempt says how it failed; the gateway's own error ends the request."""
    running = await gateway("http://127.0.0.1:9", backend={"max_retries": 1})
    client = await running.client()
    assert (await client.post(BODY)).status == 503
    (row,) = (await requests(running))["ended"]
    assert [attempt["again"] for attempt in row["attempts"]] == ["connect", "connect"]
    assert all(attempt["failure"] for attempt in row["attempts"])
    assert (row["error_code"], row["ended_by"]) == ("no_healthy_backend", "gateway")


async def test_refusals_are_shown_with_the_clients_message(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The newest first; a request that was refused before it counted is found by its id as well."""
    running = await gateway(fake_vllm, rate_limit={"requests_per_minute": 1, "burst": 1})
    client = await running.client()
    await client.post(BODY)
    limited = await client.post(BODY)
    await client.post(BODY, key="sk-none")
    lost = await client.get("/v2/models")
    found = json.loads(await inside(running).refusals(Query()))
    refused = found["refusals"]
    assert [each["error_code"] for each in refused] == ["not_found", "invalid_api_key", "rate_limit_exceeded"]
    assert found["by_code"] == {"not_found": 1, "invalid_api_key": 1, "rate_limit_exceeded": 1}
    assert [each["reason"] for each in refused] == [None, "malformed", None]
    assert refused[2]["message"] == limited.json["error"]["message"]
    assert len(json.loads(await inside(running).refusals(Query(limit=1)))["refusals"]) == 1
    (row,) = (await requests(running, id=limited.header("x-request-id")))["ended"]
    assert (row["message"], row["limits"][0]["remaining"]) == (limited.json["error"]["message"], 0)
    (row,) = (await requests(running, id=lost.header("x-request-id")))["ended"]
    assert (row["status"], row["path"]) == (404, "/v2/models")


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        ({}, 3),
        ({"limit": 2}, 2),
        ({"limit": 0}, 0),
        ({"status": 404}, 1),
        ({"model": "m"}, 2),
        ({"model": "n"}, 0),
        ({"key": "alice"}, 3),
        ({"key": "bob"}, 0),
        ({"id": "no such id"}, 0),
    ],
    ids=str,
)
async def test_requests_are_found_by(
    gateway: StartGateway, fake_vllm: FakeVllm, asked: dict[str, Any], number: int
) -> None:
    """Each filter alone."""
    running = await gateway(fake_vllm)
    client = await running.client()
    for model in ("m", "m", "unknown"):
        await client.post(BODY | {"model": model})
    assert len((await requests(running, **asked))["ended"]) == number


async def test_status_names_its_faults(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """In words, for the page; a healthy gateway has none."""
    running = await gateway(fake_vllm)
    assert (await status(running))["attention"] == []
    running.gateway.draining = True
    (note,) = (await status(running))["attention"]
    assert note["text"].startswith("The gateway drains")


async def test_status_counts_and_names_the_config(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The figures of the metrics, the digest of the Plan, and the keys."""
    running = await gateway(fake_vllm)
    client = await running.client()
    await client.post(BODY)
    found = await status(running)
    assert found["totals"]["requests"] == found["models"][0]["requests"] == 1
    assert found["config"]["digest"] == running.gateway.active.plan.digest
    assert (found["keys"], found["certificate"]) == (
        {"enabled": True, "loaded": 1, "expired": 0, "next_expiry": None},
        None,
    )
    assert found["store"] == {"kind": "memory", "up": None, "on_failure": "local", "processes": 1}
    assert found["usage_store"] == {"kind": "none", "ok": None}
    assert (found["workers"], found["workers_up"], found["draining"]) == (1, 1, False)
    assert found["started"] <= found["now"]


async def test_key_near_its_limit_is_named(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """From four fifths of the burst on; a key that has used less is not."""
    running = await gateway(fake_vllm, rate_limit={"requests_per_minute": 1, "burst": 5})
    client = await running.client()
    for _ in range(3):
        await client.post(BODY)
    assert (await status(running))["keys_near"] == []
    await client.post(BODY)
    (near,) = (await status(running))["keys_near"]
    assert (near["user"], near["limit"], near["used"], near["of"]) == ("alice", "requests", 4, 5)
    assert 230 < near["resets_in"] <= 240


async def test_store_that_is_away_is_a_fault(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The keys near their limits are then those that this process counts alone."""
    url = "redis://127.0.0.1:1"
    store = FallbackStore(RedisStore(parse_redis_url(url)), "local", 2)
    running = await gateway(fake_vllm, store=store, rate_limit={"requests_per_minute": 2, "burst": 2, "store": url})
    await (await running.client()).post(BODY)
    found = await status(running)
    assert (found["store"]["kind"], found["store"]["up"], found["store"]["processes"]) == ("redis", False, 2)
    assert [(near["user"], near["used"], near["of"]) for near in found["keys_near"]] == [("alice", 1, 1)]


async def test_keys_are_counted_again_when_one_expires(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """And when there are other keys; not at each question, since there may be 50,000."""
    running = await gateway(fake_vllm)
    asked, plan, ring = inside(running), running.gateway.active.plan, running.gateway.verifier.ring
    soon = datetime(2030, 1, 1, tzinfo=UTC)
    ends = soon.timestamp()
    other = KeyRing.from_records([replace(new_key("bob").record, expires=soon), new_key("carol").record])
    assert asked._keys(plan, ring, ends) == KeysView(True, 1, 0, None)
    assert asked._keys(plan, other, ends - 1) is asked._keys(plan, other, ends - 0.5)
    assert asked._keys(plan, other, ends - 0.5) == KeysView(True, 2, 0, ends)
    assert asked._keys(plan, other, ends) == KeysView(True, 2, 1, None)
