"""aiaas.proxy.request.classes, and what a class does to a request on its way to vLLM."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiaas.keys.model import PRIORITY_CLASSES, PriorityClass
from aiaas.openai import paths
from aiaas.proxy.request.classes import CLASS_WEIGHTS, ENGINE_PRIORITIES, class_of_request
from aiaas.proxy.upstream.fair_share import FairShare
from tests.fakes.vllm import FakeVllm
from tests.proxy.conftest import StartGateway, new_key

TIERS = (None, "auto", "default", "flex", "scale", "priority", "standard_only", "Flex", "")
PRIORITY = {"scheduling": "priority", "endpoints": list(paths.GENERATE)}
ENGINE = {"interactive": 0, "default": 10, "batch": 20}


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("own", PRIORITY_CLASSES)
def test_a_client_goes_down_and_never_up(own: PriorityClass, tier: str | None) -> None:
    """`flex` is batch for everybody; any other tier is the key's class."""
    assert class_of_request(own, tier) == ("batch" if tier == "flex" else own)


def test_weights_and_priorities_have_the_same_order() -> None:
    """100 to 10 to 1 in the queue; the lowest value goes first in vLLM."""
    weights = [CLASS_WEIGHTS[name] for name in PRIORITY_CLASSES]
    assert weights == [10.0, 1.0, 0.1]
    assert [int(ENGINE_PRIORITIES[name]) for name in PRIORITY_CLASSES] == [0, 10, 20]


@pytest.mark.parametrize("path", [path for path in paths.GENERATE if path not in paths.UPLOADS])
@pytest.mark.parametrize("own", PRIORITY_CLASSES)
async def test_priority_is_written_where_the_path_has_it(
    gateway: StartGateway, fake_vllm: FakeVllm, own: PriorityClass, path: str
) -> None:
    """Only there: the other request models of vLLM do not know it."""
    key = new_key("k", priority_class=own)
    running = await gateway(fake_vllm, backend=PRIORITY, keys=(key,))
    client = await running.client()
    client.key = key.text
    got = await client.post({"model": "m", "max_tokens": 5, "service_tier": "priority"}, path=path)
    assert (got.status, dict(got.headers)["x-aiaas-class"]) == (200, own)
    pooled = (paths.EMBEDDINGS, paths.V2_EMBED, paths.CLASSIFY, paths.POOLING)
    has_it = path in (paths.CHAT, paths.COMPLETIONS, paths.RESPONSES, *pooled)
    assert fake_vllm.posts[0].json.get("priority") == (ENGINE[own] if has_it else None)
    assert running.log_lines()[-1]["class"] == own


async def test_flex_makes_a_request_batch(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """In vLLM, in the answer and in the log; the next request is the key's class again."""
    running = await gateway(fake_vllm, backend=PRIORITY)
    client = await running.client()
    for body, name in (({"service_tier": "flex"}, "batch"), ({}, "default")):
        got = await client.post({"model": "m", "messages": []} | body)
        assert dict(got.headers)["x-aiaas-class"] == name
        assert fake_vllm.posts[-1].json["priority"] == ENGINE[name]
        assert running.log_lines()[-1]["class"] == name


@pytest.mark.parametrize("zero", [b"0", b"null", b"0.0", b'"0"', b"false", b" 0 "])
async def test_a_harmless_priority_does_not_replace_the_class(
    gateway: StartGateway, fake_vllm: FakeVllm, zero: bytes
) -> None:
    """0 is what an interactive request has."""
    running = await gateway(fake_vllm, backend=PRIORITY)
    got = await (await running.client()).post(b'{"model": "m", "messages": [], "priority": %b}' % zero)
    assert got.status == 200
    assert fake_vllm.posts[0].json["priority"] == 10


@pytest.mark.parametrize(("rule", "status", "seen"), [("reject", 400, None), ("strip", 200, 10), ("pass", 200, -99)])
async def test_the_operators_rule_decides_about_a_clients_priority(
    gateway: StartGateway, fake_vllm: FakeVllm, rule: str, status: int, seen: int | None
) -> None:
    """A value that is taken out is replaced by the class; a client that may set it keeps its own."""
    running = await gateway(fake_vllm, backend=PRIORITY, request={"fields": {"priority": rule}})
    got = await (await running.client()).post({"model": "m", "messages": [], "priority": -99})
    assert got.status == status
    assert [post.json["priority"] for post in fake_vllm.posts] == ([] if seen is None else [seen])


@pytest.mark.parametrize("tier", [b"", b', "service_tier": "flex"', b', "service_tier": 7'])
async def test_first_come_first_served_keeps_every_byte(
    gateway: StartGateway, fake_vllm: FakeVllm, tier: bytes
) -> None:
    """Such a vLLM refuses any other priority than 0."""
    running = await gateway(fake_vllm)
    body = b'{"model": "m", "messages": [] %b}' % tier
    assert (await (await running.client()).post(body)).status == 200
    assert fake_vllm.posts[0].body == body


async def test_a_repeated_tier_is_refused(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Two parsers could read two classes."""
    running = await gateway(fake_vllm)
    body = b'{"model": "m", "messages": [], "service_tier": "auto", "service\\u005ftier": "flex"}'
    got = await (await running.client()).post(body)
    assert (got.status, json.loads(got.body)["error"]["param"]) == (400, "service_tier")


async def test_each_class_of_a_key_has_a_share_of_its_own(
    gateway: StartGateway, fake_vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends batch requests does not hold up its other ones."""
    seen: list[Any] = []
    charge = FairShare.charge_ended

    def charged(self: Any, key: Any, input_tokens: int, output: int | None, weight: float = 1.0) -> None:
        seen.append((key, weight))
        charge(self, key, input_tokens, output, weight)

    monkeypatch.setattr(FairShare, "charge_ended", charged)
    client = await (await gateway(fake_vllm, backend={"max_inflight": 4})).client()
    for body in ({"service_tier": "flex"}, {}):
        assert (await client.post({"model": "m", "messages": []} | body)).status == 200
    (batch, light), (own, default) = seen
    assert (light, default) == (0.1, 1.0)
    assert batch != own
