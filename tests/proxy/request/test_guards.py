"""aiaas.proxy.request.guards: the rules of a request's fields by class and by key, in a running gateway."""

from __future__ import annotations

from typing import Any

import pytest

from aiaas.keys.model import PRIORITY_CLASSES
from aiaas.openai.engine_fields import FieldRule
from aiaas.plan.model import RequestPlan
from aiaas.proxy.request.examiner import ON_LOOP
from aiaas.proxy.request.guards import guards_of
from tests.fakes.vllm import FakeVllm
from tests.proxy.conftest import KnownKey, StartGateway, new_key

RULES = {
    "fields": {"seed": "reject", "min_p": "reject", "top_logprobs": {"max": 2}},
    "fields_by_class": {"batch": {"seed": "pass", "top_logprobs": {"max": 9}, "user": "reject"}},
}


def test_classes_without_rules_share_one_guard() -> None:
    """The rules are compiled once for each class that has its own."""
    plan = RequestPlan("deny", 8, fields_by_class={"batch": {"seed": FieldRule("reject")}, "default": {}})
    guards = guards_of(plan)
    assert list(guards) == list(PRIORITY_CLASSES)
    assert guards["interactive"] is guards["default"] is not guards["batch"]


@pytest.mark.parametrize(
    ("key", "fields", "status"),
    [
        pytest.param(new_key("k"), {"seed": 1}, 400, id="for all"),
        pytest.param(new_key("k"), {"user": "u"}, 200, id="another class is refused it"),
        pytest.param(new_key("k", priority_class="interactive"), {"seed": 1}, 400, id="a class without rules"),
        pytest.param(new_key("k", priority_class="batch"), {"seed": 1}, 200, id="passes for the class"),
        pytest.param(new_key("k", priority_class="batch"), {"top_logprobs": 9}, 200, id="bound of the class"),
        pytest.param(new_key("k", priority_class="batch"), {"top_logprobs": 10}, 400, id="above it"),
        pytest.param(new_key("k", priority_class="batch"), {"user": "u"}, 400, id="refused for the class"),
        pytest.param(new_key("k", priority_class="batch"), {"min_p": 0.1}, 400, id="refused for all"),
        pytest.param(new_key("k"), {"seed": 1, "service_tier": "flex"}, 400, id="flex does not change the rules"),
        pytest.param(new_key("k", allow_fields=("seed",)), {"seed": 1}, 200, id="passes for the key"),
        pytest.param(new_key("k", allow_fields=("seed",)), {"priority": 1}, 400, id="other fields do not"),
        pytest.param(
            new_key("k", priority_class="batch", allow_fields=("user",)), {"user": "u"}, 200, id="key before class"
        ),
    ],
)
@pytest.mark.parametrize("padding", [0, ON_LOOP], ids=["small", "in a thread"])
async def test_rules_of_the_class_and_the_key_hold(
    gateway: StartGateway, fake_vllm: FakeVllm, key: KnownKey, fields: dict[str, Any], status: int, padding: int
) -> None:
    """The key's own, then its class's, then everybody's, then the table's."""
    running = await gateway(fake_vllm, keys=(key,), request=RULES)
    client = await running.client()
    client.key = key.text
    got = await client.post({"model": "m", "messages": [], "pad": "x" * padding} | fields)
    assert got.status == status
    if status == 200:
        assert {name: fake_vllm.posts[0].json[name] for name in fields} == fields
    else:
        assert got.json["error"]["param"] == next(iter(fields))


async def test_only_an_allowed_key_sets_its_priority(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Its own value goes to vLLM in place of its class's; a request without one, and other keys, have their class's."""
    trusted, other = new_key("trusted", priority_class="batch", allow_fields=("priority",)), new_key("other")
    running = await gateway(fake_vllm, backend={"scheduling": "priority"}, keys=(trusted, other))
    client = await running.client()
    client.key = trusted.text
    for body, seen in (({"priority": -5}, -5), ({}, 20), ({"priority": 0}, 20)):
        got = await client.post({"model": "m", "messages": []} | body)
        assert dict(got.headers)["x-aiaas-class"] == "batch"
        assert fake_vllm.posts[-1].json["priority"] == seen
    client.key = other.text
    assert (await client.post({"model": "m", "messages": [], "priority": -5})).status == 400


async def test_allowed_salt_is_refused_where_aiaas_sets_it(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Otherwise the key could read whose prompts are cached under another key's salt."""
    key = new_key("k", allow_fields=("cache_salt",))
    backend = {"isolate_cache": "key", "isolate_cache_secret_env": "SECRET"}
    running = await gateway(fake_vllm, backend=backend, keys=(key,), env={"SECRET": "s" * 32})
    client = await running.client()
    client.key = key.text
    assert (await client.post({"model": "m", "messages": [], "cache_salt": "x"})).status == 400
