"""aiaas.proxy.request.body: bounds on what one request may ask for, and on how slowly its body may come, over real
sockets.

How single bodies arrive is tested in test_app."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import pytest

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.peek import peek
from aiaas.plan.model import RequestPlan, Route
from aiaas.proxy.request.body import bound_output, refuse_harm
from aiaas.proxy.request.body_budget import SMALL_BODY
from aiaas.proxy.request.examiner import ON_LOOP
from tests.fakes.vllm import FakeVllm
from tests.proxy.conftest import StartGateway

URL = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/x"}}
DATA = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def route(most: int | None, over: Literal["reject", "clamp"] = "reject", default: int | None = None) -> Route:
    """A model's entry."""
    return Route("m", (), most, default, over)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (paths.CHAT, {"n": 8}, None),
        (paths.CHAT, {"n": 9}, "n"),
        (paths.COMPLETIONS, {"prompt": ["a"] * 8}, None),
        (paths.COMPLETIONS, {"prompt": ["a"] * 9}, "prompt"),
        (paths.COMPLETIONS, {"prompt": ["a"] * 4, "n": 2}, None),
        (paths.COMPLETIONS, {"prompt": ["a"] * 5, "n": 2}, "prompt"),
        (paths.COMPLETIONS, {"prompt": "a", "best_of": 9}, "n"),
        (paths.COMPLETIONS, {"prompt": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}, None),
        (paths.EMBEDDINGS, {"input": ["a"] * 1000}, None),
        (paths.RESPONSES, {"background": True}, "background"),
        (paths.RESPONSES, {"background": False}, None),
        (paths.CHAT, {"messages": [{"content": [URL]}]}, "messages[0].content[0].image_url"),
        (paths.CHAT, {"messages": [], "metadata": {"image_url": "http://x/"}}, None),
        (paths.CHAT, {"messages": [{"content": [DATA]}]}, None),
        (
            paths.RESPONSES,
            {"input": [{"content": [{"type": "input_image", "image_url": "http://x/"}]}]},
            "input[0].content[0].image_url",
        ),
    ],
    ids=[
        "n at the bound", "n", "prompts at the bound", "prompts", "n times prompts at the bound", "n times prompts",
        "best_of", "one prompt as token ids", "a batch to embed", "background", "no background", "media by URL",
        "a name elsewhere",
        "media inside", "media by URL in responses",
    ],
)  # fmt: skip
def test_value_that_would_hurt_others_is_refused(path: str, body: dict[str, Any], param: str | None) -> None:
    """The error names the field."""
    peeked = peek(json.dumps({"model": "m"} | body).encode(), path)
    rules = RequestPlan(media_urls="deny", max_choices=8)
    if param is None:
        refuse_harm(peeked, rules, path)
    else:
        with pytest.raises(ClientError) as caught:
            refuse_harm(peeked, rules, path)
        assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_request", param)


def test_media_by_url_may_be_allowed() -> None:
    """The config may allow it."""
    peeked = peek(json.dumps({"model": "m", "messages": [{"content": [URL]}]}).encode(), paths.CHAT)
    refuse_harm(peeked, RequestPlan(media_urls="allow", max_choices=8), paths.CHAT)


@pytest.mark.parametrize(
    ("path", "entry", "body", "sent", "bound"),
    [
        (paths.CHAT, route(None), b'{"a":1}', b'{"a":1}', None),
        (paths.CHAT, route(None, default=7), b'{"a":1}', b'{"a":1}', 7),
        (paths.CHAT, route(None, default=7), b'{"max_tokens":9}', b'{"max_tokens":9}', 9),
        (paths.CHAT, route(5), b'{"a":1}', b'{"max_tokens":5,"a":1}', 5),
        (paths.CHAT, route(5), b'{"max_tokens":null}', b'{"max_tokens":5}', 5),
        (paths.CHAT, route(5), b'{"max_tokens":3}', b'{"max_tokens":3}', 3),
        (paths.CHAT, route(5), b'{"max_completion_tokens":3}', b'{"max_completion_tokens":3}', 3),
        (paths.CHAT, route(5, "clamp"), b'{"max_tokens":9}', b'{"max_tokens":5}', 5),
        (
            paths.CHAT,
            route(5, "clamp"),
            b'{"max_tokens":1,"max_completion_tokens":9}',
            b'{"max_tokens":1,"max_completion_tokens":5}',
            5,
        ),
        (paths.RESPONSES, route(5), b'{"a":1}', b'{"max_output_tokens":5,"a":1}', 5),
        (paths.EMBEDDINGS, route(5), b'{"a":1}', b'{"a":1}', None),
    ],
    ids=[
        "no bound", "default reserves only", "asked", "spliced in", "null is absent", "asked less",
        "asked less in the new field", "clamped", "clamped in the field that vLLM obeys", "responses", "no output",
    ],
)  # fmt: skip
def test_the_output_is_bounded(path: str, entry: Route, body: bytes, sent: bytes, bound: int | None) -> None:
    """The request is changed only where it must be."""
    assert bound_output(body, peek(body, path), entry, path) == (sent, bound)


def test_more_than_the_model_allows_is_refused_by_name() -> None:
    """Unless the model's entry says clamp."""
    body = b'{"max_completion_tokens":9}'
    with pytest.raises(ClientError, match="at most 5") as caught:
        bound_output(body, peek(body, paths.CHAT), route(5), paths.CHAT)
    assert caught.value.param == "max_completion_tokens"


# -- bodies over real sockets ----------------------------------------------------------------------------------------


def padded(size: int, **fields: Any) -> bytes:
    """A chat request of `size` bytes."""
    body = json.dumps({"model": "m", "messages": [], "pad": ""} | fields).encode()
    return body.replace(b'"pad": "', b'"pad": "' + b"x" * (size - len(body)))


@pytest.mark.parametrize("model", ["m", "alias"])
@pytest.mark.parametrize("size", [SMALL_BODY, SMALL_BODY + 1, ON_LOOP, ON_LOOP + 1, 3_000_000])
async def test_a_body_of_any_size_goes_through_whole(
    gateway: StartGateway, fake_vllm: FakeVllm, size: int, model: str
) -> None:
    """Whether it is sent in one part or two, and read on the loop or beside it."""
    client = await (await gateway(fake_vllm)).client()
    body = padded(size, model=model)
    assert (await client.post(body)).status == 200
    assert fake_vllm.posts[0].body == body.replace(b'"alias"', b'"m"')
    assert (await client.post(body[:-1])).json["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ({"body_timeout": "100ms"}, "stopped for more than 0.1 s"),
        ({"body_timeout": "2s", "body_total_timeout": "300ms"}, "did not arrive within 0.3 s"),
        ({"body_timeout": "150ms", "min_body_rate": "1MiB"}, "arrived at less than 1048576 bytes a second"),
    ],
    ids=["silent", "whole time", "rate"],
)
async def test_a_body_that_comes_too_slowly_gets_408(
    gateway: StartGateway, fake_vllm: FakeVllm, bounds: dict[str, str], says: str
) -> None:
    """Though a byte comes every 20 ms in two of the cases."""
    running = await gateway(fake_vllm, server=bounds)
    client = await running.client()
    headers = {"Content-Type": "application/json", "Content-Length": "100000"}
    client.send(client.request(None, headers=headers) + b"{")

    async def drip() -> None:
        while "stopped" not in says:
            await asyncio.sleep(0.02)
            client.send(b" ")

    dripping = asyncio.create_task(drip(), name="drip")
    got = await client.answer()
    dripping.cancel()
    assert (got.status, got.json["error"]["code"]) == (408, "request_timeout")
    assert says in got.json["error"]["message"]


async def test_a_body_that_keeps_the_rate_is_read_to_its_end(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The body takes longer than `body_timeout`, but without a silence of that length."""
    running = await gateway(fake_vllm, server={"body_timeout": "100ms", "min_body_rate": "10B"})
    client = await running.client()
    body = padded(1000)
    headers = {"Content-Type": "application/json", "Content-Length": "1000"}
    client.send(client.request(None, headers=headers))
    for at in range(0, 1000, 100):
        await asyncio.sleep(0.02)
        client.send(body[at : at + 100])
    assert (await client.answer()).status == 200
