"""aiaas.openai.guard: which requests it refuses, and which bytes it changes."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.engine_fields import FieldRule
from aiaas.openai.guard import MOST_WIDER, Guard
from aiaas.openai.peek import peek

DEFAULT = Guard({}, "pass")


def held(body: bytes, path: str = paths.CHAT, guard: Guard = DEFAULT, *, salted: bool = False) -> bytes:
    """The body as it goes on."""
    return guard.check(body, peek(body, path), path, salted=salted)


def refused(body: bytes, path: str = paths.CHAT, guard: Guard = DEFAULT, *, salted: bool = False) -> str | None:
    """The field in the refusal's `param`."""
    with pytest.raises(ClientError) as caught:
        held(body, path, guard, salted=salted)
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")
    return caught.value.param


@pytest.mark.parametrize(
    "written",
    ["-99", '"5"', "1.0", "true", '"\\u0035"', "1e400", '"x"', "[]", '"' + "0" * 200 + '"', "5e1"],
)
def test_priority_is_refused_in_every_form_that_vllm_reads(written: str) -> None:
    """And in forms that vLLM would refuse itself."""
    assert refused(b'{"model":"m","priority":%b}' % written.encode()) == "priority"


@pytest.mark.parametrize("written", ["null", "0", '"0"', "0.0", "false", "-0", '" 0 "'])
def test_default_priority_goes_on_as_it_was_written(written: str) -> None:
    """It changes nothing in the engine."""
    body = b'{"model":"m", "priority": %b}' % written.encode()
    assert held(body) == body


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (rb'{"model":"m","priorit\u0079":5}', "priority"),
        (rb'{"model":"m","\u0070\u0072\u0069\u006f\u0072\u0069\u0074\u0079":5}', "priority"),
        (rb'{"model":"m","priority":5,"priority":null}', "priority"),
        (rb'{"model":"m","priority":0,"priorit\u0079":0}', "priority"),
        (rb'{"model":"m","n":"1","cache_salt":"x"}', "cache_salt"),
        (rb'{"model":"m","n":"1","priority":1,"priority":0}', "priority"),
        (b'{"model":"m","pad":"' + b"x" * 300_000 + b'","priority":5}', "priority"),
        (b'{"model":"m","pad":"' + b"x" * 300_000 + b'","priority":0,"priority":0}', "priority"),
        (rb'{"model":"m","prompt_embeds":null,"kv_transfer_params":{"remote_host":"h"}}', "kv_transfer_params"),
        (rb'{"model":"m","chat_template_kwargs":{"chat_template":"{{x}}"}}', "chat_template_kwargs.chat_template"),
        (rb'{"model":"m","chat_template_kwargs":{"tok\u0065nize":true}}', "chat_template_kwargs.tokenize"),
    ],
)
def test_a_use_cannot_be_hidden(body: bytes, param: str) -> None:
    """Not by an escaped key, a repeated one, a large body, or a body that the strict decoder refuses."""
    assert refused(body) == param


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[{"role":"user","content":"\\"priority\\": 5"}]}',
        b'{"model":"m","metadata":{"priority":5,"cache_salt":"x"}}',
        b'{"model":"m","chat_template_kwargs":{"enable_thinking":false}}',
        b'{"model":"m","vllm_xargs":{ },"bad_words":[],"logprobs":true,"top_logprobs":20}',
        b'{"model":"m","tools":[{"type":"function","function":{"name":"priority"}}],"tool_choice":"auto"}',
        b'{"model":"m","response_format":{"type":"json_object"},"stop":["a"],"seed":1,"user":"u"}',
    ],
)
def test_ordinary_request_goes_on_as_it_was_written(body: bytes) -> None:
    """Names in texts and in other objects are data."""
    assert held(body) is body


@pytest.mark.parametrize(
    ("path", "field", "fits", "beyond"),
    [
        (paths.CHAT, "top_logprobs", [20, "20", 20.0, 0, None], [21, "21", 21.0, -1, "9" * 200]),
        (paths.COMPLETIONS, "logprobs", [20, True], [21, -1]),
        (paths.COMPLETIONS, "prompt_logprobs", [20], [21, -1]),
        (paths.CHAT, "bad_words", [["a,b"] * 1000, None], [["a,b"] * 1001]),
        (paths.CHAT, "logit_bias", [{"1": 1}], [{str(n): 1 for n in range(10_001)}]),
        (paths.CHAT, "repetition_detection", [{"max_pattern_size": 100}], [{"max_pattern_size": "101"}]),
    ],
)
def test_bound_holds_at_its_edge(path: str, field: str, fits: list[Any], beyond: list[Any]) -> None:
    """A negative number means all to vLLM."""
    for value in fits:
        body = json.dumps({"model": "m", field: value}).encode()
        assert held(body, path) is body
    for value in beyond:
        assert refused(json.dumps({"model": "m", field: value}).encode(), path) == field


def test_tools_are_bounded_where_one_must_be_called() -> None:
    """Otherwise they are text in the prompt; descriptions are not part of a grammar."""
    large = [{"type": "function", "function": {"name": "f", "parameters": {"enum": ["x" * 70_000]}}}]
    told = [{"type": "function", "function": {"name": "f", "description": "x" * 70_000}}]
    for choice in (None, "auto", "none"):
        held(json.dumps({"model": "m", "tools": large, "tool_choice": choice}).encode())
    held(json.dumps({"model": "m", "tools": told, "tool_choice": "required"}).encode())
    for forced in ("required", {"type": "function", "function": {"name": "f"}}):
        assert refused(json.dumps({"model": "m", "tools": large, "tool_choice": forced}).encode()) == "tools"


@pytest.mark.parametrize("name", ["server_url", "connector_id", "headers", "authorization"])
def test_mcp_tool_that_names_a_host_is_refused(name: str) -> None:
    """However its type is written; other tools may have such a member."""
    value: Any = {"a": "b"} if name == "headers" else "x"
    body = json.dumps({"model": "m", "tools": [{"type": "mcp", "server_label": "s", name: value}]}).encode()
    assert refused(body, paths.RESPONSES) == f"tools[0].{name}"
    assert refused(body.replace(b'"mcp"', b'"\\u006dcp"'), paths.RESPONSES) == f"tools[0].{name}"
    held(body.replace(b'"mcp"', b'"function"'), paths.RESPONSES)
    held(body, paths.RESPONSES, Guard({"mcp_servers": FieldRule("pass")}, "pass"))


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{"model":"m"}', b'{"store":false,"model":"m"}'),
        (b'{"model":"m", "store" : true}', b'{"model":"m", "store" : false}'),
        (b'{"model":"m","store":null}', b'{"model":"m","store":false}'),
        (b'{"model":"m","store":false}', b'{"model":"m","store":false}'),
    ],
)
def test_responses_are_not_stored(body: bytes, sent: bytes) -> None:
    """vLLM's default is to store them; the operator may allow it."""
    assert held(body, paths.RESPONSES) == sent
    assert held(body, paths.RESPONSES, Guard({"store": FieldRule("pass")}, "pass")) is body


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{ "model": "m", "user": "u" , "n": 1 }', b'{ "model": "m" , "n": 1 }'),
        (b'{ "user": {"a":[1,2]}, "model":"m"}', b'{"model":"m"}'),
        (rb'{"model":"m","us\u0065r":"u"}', b'{"model":"m"}'),
        (b'{"model":"m","user":null}', b'{"model":"m","user":null}'),
    ],
)
def test_stripped_field_leaves_other_bytes(body: bytes, sent: bytes) -> None:
    """null is not a use."""
    assert held(body, guard=Guard({"user": FieldRule("strip")}, "pass")) == sent


def rules(**actions: Literal["pass", "strip", "reject"]) -> dict[str, FieldRule]:
    """Rules by name."""
    return {name: FieldRule(action) for name, action in actions.items()}


def test_operator_changes_the_rule_of_a_field() -> None:
    """A field that has a rule, one that has none, and one that the table does not know."""
    guard = Guard(
        rules(priority="pass", seed="reject", new_field="reject") | {"top_logprobs": FieldRule("bound", 2)}, "pass"
    )
    assert held(b'{"model":"m","priority":5}', guard=guard) == b'{"model":"m","priority":5}'
    assert refused(b'{"model":"m","seed":5}', guard=guard) == "seed"
    assert refused(b'{"model":"m","new_field":5}', guard=guard) == "new_field"
    assert refused(b'{"model":"m","seed":null,"seed":5}', guard=guard) == "seed"
    assert refused(b'{"model":"m","top_logprobs":3}', guard=guard) == "top_logprobs"
    assert refused(b'{"model":"m","cache_salt":"x"}', guard=guard) == "cache_salt"


def test_key_sets_the_fields_that_it_is_allowed() -> None:
    """Whatever the operator's rule for others is; its other fields are held as theirs."""
    guard = Guard(rules(new_field="reject", user="strip"), "reject")
    bodies = (
        (paths.CHAT, "priority", b'{"model":"m","messages":[],"priority":5}'),
        (paths.CHAT, "new_field", b'{"model":"m","new_field":5}'),
        (paths.CHAT, "user", b'{"model":"m","user":"u"}'),
        (paths.CHAT, "top_logprobs", b'{"model":"m","top_logprobs":1000}'),
        (paths.CHAT, "chat_template", b'{"model":"m","chat_template_kwargs":{"chat_template":"x"}}'),
        (paths.CHAT, "uuid", b'{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","uuid":"u"}]}]}'),
        (paths.RESPONSES, "mcp_servers", b'{"model":"m","tools":[{"type":"mcp","server_url":"h"}],"store":false}'),
        (paths.RESPONSES, "store", b'{"model":"m","store":true}'),
    )
    for path, name, body in bodies:
        assert held(body, path, guard.allowing(frozenset({name}))) is body, name
        assert guard.allowing(frozenset({name})).lets(name, path)
        other = guard.allowing(frozenset({"vllm_xargs"}))
        if name in ("user", "store"):
            assert held(body, path, other) != body
        else:
            assert refused(body, path, other) is not None
        assert refused(b'{"model":"m","cache_salt":"x"}', guard=guard.allowing(frozenset({name}))) == "cache_salt"


def test_rules_of_allowed_fields_are_made_once() -> None:
    """For each set of names, and the number of them that are kept is bounded."""
    guard = Guard({}, "pass")
    first = guard.allowing(frozenset({"priority"}))
    assert guard.allowing(frozenset({"priority"})) is first
    for number in range(MOST_WIDER):
        guard.allowing(frozenset({f"f{number}"}))
    assert guard.allowing(frozenset({"priority"})) is not first


def test_unknown_fields_are_refused_where_the_operator_says_so() -> None:
    """A field that another path knows is unknown here, unless the operator named it."""
    guard = Guard(rules(suffix="pass"), "reject")
    assert refused(b'{"model":"m","foo":null}', guard=guard) == "foo"
    assert refused(b'{"model":"m","prompt":"x"}', guard=guard) == "prompt"
    held(b'{"model":"m","messages":[],"seed":1,"suffix":"x"}', guard=guard)
    held(b'{"model":"m","foo":1}')


def test_salt_of_a_client_is_refused_where_aiaas_sets_one() -> None:
    """Even if clients may set it elsewhere; null makes room."""
    guard = Guard(rules(cache_salt="pass"), "pass")
    body = b'{"model":"m","cache_salt":"x"}'
    assert held(body, guard=guard) is body
    assert refused(body, guard=guard, salted=True) == "cache_salt"
    assert held(b'{"model":"m","cache_salt":null}', salted=True) == b'{"model":"m"}'
