"""aiaas.proxy.upstream.model_watch: which models the endpoints list, and what follows for requests, log, metrics and
lists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiaas.proxy.tasks import Keeper, end_tasks
from aiaas.proxy.upstream.model_watch import ModelWatch
from aiaas.proxy.upstream.probes import Probes
from aiaas.proxy.upstream.resolve import Resolver
from tests.fakes.vllm import FakeVllm, Hang, Send, Step, Wait, answer, json_answer
from tests.proxy.conftest import Running, config_of, plan_of
from tests.waiting import until

BASE = {"id": "base", "root": "/models/base", "parent": None, "max_model_len": 4096, "created": 1_795_736_373}
ADAPTER = {"id": "sql", "root": "/adapters/sql", "parent": "base", "max_model_len": None}
MODELS = {"models": ["base", "sql"]}
SOON = 0.01


def lists(*models: dict[str, Any]) -> tuple[Step, ...]:
    return (Send(json_answer({"object": "list", "data": list(models)})),)


@asynccontextmanager
async def watched(running: Running, interval: float = 60.0) -> AsyncIterator[None]:
    """Watch the models of all its backends."""
    tasks = [
        asyncio.create_task(
            ModelWatch(state, running.gateway.log, running.metrics, interval, SOON).run(), name="models"
        )
        for state in running.gateway.active.backends.values()
    ]
    yield
    for task in tasks:
        assert not task.done()
    await end_tasks(tasks)


async def model_sent(running: Running, fake: FakeVllm, name: str) -> str:
    """The model that the backend is asked for when a client asks for `name`."""
    assert (await (await running.client()).post({"model": name, "messages": []})).status == 200
    return str(fake.posts[-1].json["model"])


def wrong(running: Running, fake: FakeVllm) -> float | None:
    """The metric; None if it is missing."""
    sample = f'aiaas_models_wrong{{backend="vllm",endpoint="{fake.url}"}} '
    lines = running.metrics.expose().decode().splitlines()
    return next((float(line.removeprefix(sample)) for line in lines if line.startswith(sample)), None)


async def test_an_alias_that_is_a_model_there_is_not_rewritten(fake_vllm: FakeVllm, gateway: Any) -> None:
    """`models: [base, sql]` before a backend that lists both: requests for the adapter reach the adapter."""
    fake_vllm.gets["/v1/models"] = lists(BASE, ADAPTER)
    running = await gateway(fake_vllm, backend=MODELS)
    async with watched(running):
        await until(lambda: wrong(running, fake_vllm) == 1)
        assert await model_sent(running, fake_vllm, "sql") == "sql"
        assert await model_sent(running, fake_vllm, "base") == "base"
    (line,) = running.log_lines("models_disagree")
    assert (line["level"], line["own_models"], line["configured_but_not_served"]) == ("warning", ["sql"], [])
    assert "models: [{name: base}, {name: sql}]" in line["problem"]


@pytest.mark.parametrize("models", [(BASE,), (BASE, BASE | {"id": "sql"})], ids=["not listed", "a second served name"])
async def test_an_alias_is_rewritten_as_the_config_means_it(
    fake_vllm: FakeVllm, gateway: Any, models: tuple[dict[str, Any], ...]
) -> None:
    """If the backend does not list the alias, or lists it with the same root: vLLM's second `--served-model-name`."""
    fake_vllm.gets["/v1/models"] = lists(*models)
    running = await gateway(fake_vllm, backend=MODELS)
    async with watched(running):
        await until(lambda: wrong(running, fake_vllm) == 0)
        assert await model_sent(running, fake_vllm, "sql") == "base"
    assert running.log_lines("models_disagree") == []


async def test_each_endpoint_is_asked_for_what_it_lists(fake_vllms: Any, gateway: Any) -> None:
    """In the middle of a rollout one replica has the adapter already, and the other has not."""
    old, new = await fake_vllms(), await fake_vllms()
    old.gets["/v1/models"], new.gets["/v1/models"] = lists(BASE), lists(BASE, ADAPTER)
    running = await gateway(old, new, backend=MODELS | {"balance": "round_robin"})
    async with watched(running):
        await until(lambda: (wrong(running, old), wrong(running, new)) == (0, 1))
        client = await running.client()
        for _ in range(4):
            assert (await client.post({"model": "sql", "messages": []})).status == 200
    assert {post.json["model"] for post in old.posts} == {"base"}
    assert {post.json["model"] for post in new.posts} == {"sql"}


async def test_renamed_model_is_noticed_without_a_failed_probe(fake_vllm: FakeVllm, gateway: Any) -> None:
    """A vLLM that was restarted between two probes; logged once, and again when it is over."""
    fake_vllm.gets["/v1/models"] = lists(BASE)
    running = await gateway(fake_vllm, backend=MODELS)
    async with watched(running, interval=SOON):
        await until(lambda: wrong(running, fake_vllm) == 0)
        fake_vllm.gets["/v1/models"] = lists(BASE | {"id": "renamed"})
        await until(lambda: wrong(running, fake_vllm) == 1)
        seen = len(fake_vllm.got)
        await until(lambda: len(fake_vllm.got) > seen + 2)
        fake_vllm.gets["/v1/models"] = lists(BASE)
        await until(lambda: wrong(running, fake_vllm) == 0)
    (line,) = running.log_lines("models_disagree")
    assert (line["configured_but_not_served"], line["served"]) == (["base"], ["renamed"])
    assert "base: not served there; the backend lists renamed" in line["problem"]
    assert len(running.log_lines("models_agree")) == 1


async def test_an_endpoint_that_has_come_up_is_asked_at_once(fake_vllm: FakeVllm, gateway: Any) -> None:
    """Not after a minute; and an endpoint that is down is not asked."""
    fake_vllm.gets["/v1/models"] = lists(BASE)
    running = await gateway(fake_vllm, backend=MODELS)
    (endpoint,) = running.endpoints()
    endpoint.set_up(False, "test")
    async with watched(running):
        await asyncio.sleep(5 * SOON)
        assert fake_vllm.got == []
        endpoint.set_up(True, "test")
        await until(lambda: wrong(running, fake_vllm) == 0)
        endpoint.set_up(False, "test")
        await asyncio.sleep(5 * SOON)
        fake_vllm.gets["/v1/models"] = lists(BASE, ADAPTER)
        endpoint.set_up(True, "test")
        await until(lambda: wrong(running, fake_vllm) == 1)


async def test_address_without_a_vllm_is_reported(fake_vllm: FakeVllm, gateway: Any) -> None:
    """A web server answers its page to everything; clients get the gateway's error and never the page."""
    page = answer(404, b"<html>nginx</html>", content_type="text/html")
    fake_vllm.gets["/v1/models"] = (Send(page),)
    fake_vllm.default = (Send(answer(200, b"<html>Welcome</html>", content_type="text/html; charset=utf-8")),)
    running = await gateway(fake_vllm, backend=MODELS)
    async with watched(running):
        await until(lambda: wrong(running, fake_vllm) == 1)
        got = await (await running.client()).post({"model": "base", "messages": []})
    (line,) = running.log_lines("models_unknown")
    assert line["problem"] == "GET /v1/models answered 404 text/html; is this a vLLM?"
    assert (got.status, got.json["error"]["code"]) == (502, "upstream_error")
    assert b"html" not in got.body


async def test_silence_keeps_the_list_and_is_asked_again(fake_vllm: FakeVllm, gateway: Any) -> None:
    """With the next probe and not in a minute; probes report that a backend is away."""
    fake_vllm.gets["/v1/models"] = (Hang(),)
    health = {"health": {"interval": "20ms", "timeout": "20ms"}}
    running = await gateway(fake_vllm, backend=MODELS | health)
    async with watched(running):
        await until(lambda: len(fake_vllm.got) > 1)
        assert wrong(running, fake_vllm) is None
        fake_vllm.gets["/v1/models"] = lists(BASE, ADAPTER)
        await until(lambda: wrong(running, fake_vllm) == 1)
    async with watched(running, interval=SOON):
        fake_vllm.gets["/v1/models"] = (Hang(),)
        seen = len(fake_vllm.got)
        await until(lambda: len(fake_vllm.got) > seen + 1)
        assert await model_sent(running, fake_vllm, "sql") == "sql"


async def test_an_endpoint_that_left_meanwhile_is_not_shown(fake_vllm: FakeVllm, gateway: Any) -> None:
    """Its answer comes after the address has gone, and would leave a series in the metrics for ever."""
    fake_vllm.gets["/v1/models"] = (Wait(go := asyncio.Event()), *lists(BASE))
    running = await gateway(fake_vllm, backend=MODELS)
    (endpoint,) = running.endpoints()
    async with watched(running):
        await until(lambda: bool(fake_vllm.got))
        running.backend().endpoints = ()
        go.set()
        await until(lambda: fake_vllm.open_connections == 0)
    assert wrong(running, fake_vllm) is None
    running.backend().endpoints = (endpoint,)


async def test_lists_tell_what_agents_need(fake_vllms: Any, gateway: Any) -> None:
    """The context of each model, of aliases too, and of several replicas the smallest; nothing of the disk."""
    large, small = await fake_vllms(), await fake_vllms()
    large.gets["/v1/models"] = lists(BASE, ADAPTER)
    small.gets["/v1/models"] = lists(BASE | {"max_model_len": 2048, "created": 5}, ADAPTER)
    running = await gateway(large, small, backend={"models": ["base", "sql", "alias"]})
    client = await running.client()
    before = (await client.get("/v1/models/alias")).json
    assert before == {"id": "alias", "object": "model", "created": 0, "owned_by": "aiaas", "root": "base"}
    async with watched(running):
        await until(lambda: (wrong(running, large), wrong(running, small)) == (1, 1))
        listed = {entry["id"]: entry for entry in (await client.get("/v1/models")).json["data"]}
        assert (await client.get("/v1/models/alias")).json == listed["alias"]
    assert listed["alias"] == before | {"created": 5, "max_model_len": 2048}
    assert listed["base"] == listed["alias"] | {"id": "base"}
    assert listed["sql"] == before | {"id": "sql", "root": "sql", "max_model_len": 2048}


async def test_other_models_are_compared_at_once(fake_vllm: FakeVllm, gateway: Any) -> None:
    """Not when the endpoint has been down and up again."""
    fake_vllm.gets["/v1/models"] = (Send(json_answer({"data": [{"id": "m"}]})),)
    running = await gateway(fake_vllm)
    watching = Probes(
        running.gateway.log,
        running.metrics,
        Resolver(running.gateway.log, running.metrics),
        Keeper(running.gateway.log),
    )
    watching.follow(running.gateway.active.backends)
    await until(lambda: any(got.path == "/v1/models" for got in fake_vllm.got))
    models = [{"name": "m"}, {"name": "missing"}]
    running.gateway.replace_plan(plan_of(config_of([fake_vllm.url], {"models": models}, {})))
    watching.follow(running.gateway.active.backends)
    await until(lambda: bool(running.log_lines("models_disagree")))
    (line,) = running.log_lines("models_disagree")
    assert line["configured_but_not_served"] == ["missing"]
    await watching.close()
