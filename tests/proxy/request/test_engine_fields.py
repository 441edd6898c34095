"""aiaas.openai.guard through the real gateway: each field of the table on each path, refused or passed as it says."""

from __future__ import annotations

import hmac
import json
from typing import Any

import pytest

from aiaas.openai import paths
from aiaas.openai.engine_fields import ENGINE_FIELDS, FIXED, PARTS, EngineField
from aiaas.openai.guard import SALTED
from tests.fakes.vllm import FakeVllm
from tests.proxy.conftest import KnownKey, StartGateway, config_of, new_key, plan_of
from tests.proxy.forms import model_first, post

ENDPOINTS = {"endpoints": list(paths.GENERATE)}
CASES = [(field, path) for field in ENGINE_FIELDS for path in field.paths if field.name not in FIXED]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def use_of(field: EngineField) -> Any:
    """A value of the field that is a use; of a bound, one above it."""
    if field.action == "pass":
        return ["data:x"] if field.name == "images" else {"x": 1}
    if field.unit == "number":
        return field.most + 1 if field.most is not None else 0
    if field.unit == "entries":
        assert field.most is not None
        return list(range(field.most + 1))
    if field.unit == "members":
        return {"max_pattern_size": 101}
    if field.unit == "tools":
        assert field.most is not None
        return [{"type": "function", "strict": True, "parameters": {"enum": ["x" * field.most]}}]
    if field.unit == "grammar":
        assert field.most is not None
        return {"json": {"enum": ["x" * field.most]}}
    return 1


@pytest.mark.parametrize(("field", "path"), CASES, ids=[f"{field.name}-{path}" for field, path in CASES])
async def test_each_field_is_held_to_the_table(
    gateway: StartGateway, fake_vllm: FakeVllm, field: EngineField, path: str
) -> None:
    """Refused with its name, or sent on in a body of the same bytes."""
    client = await (await gateway(fake_vllm, backend=ENDPOINTS)).client()
    body = json.dumps({"model": "m", "max_tokens": 5, field.name: use_of(field)}).encode()
    if path in paths.UPLOADS:
        body = model_first(b"sound", "m", (field.name, json.dumps(use_of(field)).encode()))
        got = await post(client, body, path)
    else:
        got = await client.post(body, path=path)
    if field.action in ("reject", "bound"):
        error = got.json["error"]
        assert got.status == 400
        assert field.name in error["message"]
        assert fake_vllm.posts == []
        if path not in paths.ANTHROPIC:
            assert (error["code"], error["param"]) == ("invalid_request", field.name)
    else:
        assert got.status == 200, got.json
        store = b'"store": false' if field.action == "false" else b'"store":false,' if path == paths.RESPONSES else b""
        expected = body.replace(b'"store": 1', store) if field.name == "store" else body[:1] + store + body[1:]
        assert fake_vllm.posts[0].body == expected


@pytest.mark.parametrize("name", PARTS)
async def test_field_of_a_part_is_refused_by_its_place(gateway: StartGateway, fake_vllm: FakeVllm, name: str) -> None:
    """The engine does not see the request."""
    client = await (await gateway(fake_vllm)).client()
    got = await client.post({"model": "m", "messages": [{"content": [{"type": "image_url", name: "x"}]}]})
    assert (got.status, got.json["error"]["param"]) == (400, f"messages[0].content[0].{name}")
    assert "set by the operator" in got.json["error"]["message"]
    assert fake_vllm.posts == []


async def test_large_body_is_held_to_the_table(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """It is read on another thread."""
    client = await (await gateway(fake_vllm)).client()
    got = await client.post({"model": "m", "messages": [], "pad": "x" * 500_000, "priority": -99})
    assert (got.status, got.json["error"]["param"]) == (400, "priority")


async def test_reload_changes_the_rule_of_a_field(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Requests on an open connection are held to the new rule."""
    running = await gateway(fake_vllm)
    client = await running.client()
    body = b'{"model": "m", "messages": [], "priority": 5, "user": "u"}'
    assert (await client.post(body)).status == 400
    sections = {"request": {"fields": {"priority": "pass", "user": "strip"}}}
    running.gateway.replace_plan(plan_of(config_of([fake_vllm.url], {}, sections)))
    assert (await client.post(body)).status == 200
    assert fake_vllm.posts[0].body == b'{"model": "m", "messages": [], "priority": 5}'


SECRET = "s" * 32
ISOLATED = {"isolate_cache": "key", "isolate_cache_secret_env": "SALT", **ENDPOINTS}


@pytest.mark.parametrize("path", [path for path in paths.GENERATE if path not in paths.UPLOADS])
async def test_isolated_cache_gets_a_salt_for_each_key(
    gateway: StartGateway, fake_vllm: FakeVllm, known_key: KnownKey, path: str
) -> None:
    """Always the same for a key, another one for another key; on paths that do not know the field nothing changes."""
    other = new_key("bob")
    running = await gateway(fake_vllm, keys=(other,), backend=ISOLATED, env={"SALT": SECRET})
    client = await running.client()
    for size in (10, 200_000):
        fake_vllm.posts.clear()
        body = json.dumps({"model": "alias", "store": False, "pad": "x" * size}).encode()
        for key in (running.key, running.key, other.text):
            assert (await client.post(body, path=path, key=key)).status == 200
        sent = [post.body for post in fake_vllm.posts]
        if path not in SALTED:
            assert sent == [body.replace(b'"alias"', b'"m"')] * 3
            continue
        salts = [json.loads(each)["cache_salt"] for each in sent]
        assert len(set(salts)) == 2
        assert salts[0] == salts[1] == hmac.new(SECRET.encode(), known_key.record.id.encode(), "sha256").hexdigest()
        rest = body.replace(b'"alias"', b'"m"')[1:]
        assert sent[0] == b'{"cache_salt":"%b",' % salts[0].encode() + rest


async def test_salt_of_a_client_is_refused(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Whatever the config says about the field; null makes room for ours."""
    allowed = {"fields": {"cache_salt": "pass"}}
    client = await (await gateway(fake_vllm, backend=ISOLATED, request=allowed, env={"SALT": SECRET})).client()
    got = await client.post({"model": "m", "messages": [], "cache_salt": "x"})
    assert (got.status, got.json["error"]["param"]) == (400, "cache_salt")
    assert (await client.post({"model": "m", "messages": [], "cache_salt": None})).status == 200
    assert fake_vllm.posts[0].body.count(b"cache_salt") == 1
