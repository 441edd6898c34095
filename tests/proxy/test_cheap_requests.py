"""Requests that only count tokens, end to end: their bucket, their price, their errors."""

from __future__ import annotations

import asyncio

import pytest

from aiaas.keys.model import KeyLimits
from tests.fakes.vllm import FakeVllm, Hang, Send, error_answer, json_answer
from tests.proxy.conftest import StartGateway, new_key

COUNT = "/v1/messages/count_tokens"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
COUNTED = {"input_tokens": 18, "context_management": {"original_input_tokens": 18}}


async def test_counting_tokens_uses_up_no_real_request(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Claude Code's 14 counts leave a key its burst of ten; the headers tell of the bucket of each path."""
    running = await gateway(fake_vllm, rate_limit={"requests_per_minute": 1, "burst": 10, "tokens_per_minute": 999})
    client = await running.client()
    for number in range(14):
        fake_vllm.play(Send(json_answer(COUNTED)))
        got = await client.post(BODY, path=COUNT)
        assert (got.status, got.json) == (200, COUNTED)
        assert got.header("x-ratelimit-limit-requests") == "10"
        assert got.header("x-ratelimit-remaining-requests") == str(99 - number)
        assert got.header("x-ratelimit-remaining-tokens") == "999"
    got = await client.post(b"{")
    assert (got.header("x-ratelimit-limit-requests"), got.header("x-ratelimit-remaining-requests")) == ("1", "10")
    await running.quiet()
    lines = running.log_lines()
    assert [(line["input_tokens"], line["output_tokens"]) for line in lines[:14]] == [(None, None)] * 14


async def test_cheap_bucket_that_is_empty_refuses_counts_only(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The refusal has Anthropic's shape there, and names the limit; a real request is still let in."""
    key = new_key("one", limits=KeyLimits(requests_per_minute=1))
    running = await gateway(fake_vllm, keys=(key,), rate_limit={"cheap_factor": 2})
    client = await running.client()
    for path in (COUNT, "/tokenize"):
        assert (await client.post(BODY, path=path, key=key.text)).status == 200
    got = await client.post(BODY, path=COUNT, key=key.text)
    assert got.status == 429
    assert got.json["type"] == "error"
    error = got.json["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert error["message"].startswith("The limit is 2 requests a minute that only count tokens. Try again in ")
    assert got.header("x-ratelimit-limit-requests") == "2"
    assert got.header("retry-after") == "30"
    assert (await client.post(BODY, key=key.text)).status == 200


async def test_count_takes_the_slot_of_its_key(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """`max_concurrent` is one number for all requests of a key."""
    key = new_key("one", limits=KeyLimits(max_concurrent=1))
    running = await gateway(fake_vllm, keys=(key,))
    fake_vllm.play(Hang())
    client = await running.client()
    client.send(client.request(BODY, key=key.text, path=COUNT))
    while not fake_vllm.posts:
        await asyncio.sleep(0.005)
    got = await (await running.client()).post(BODY, key=key.text)
    assert (got.status, got.json["error"]["code"]) == (429, "concurrency_limit_exceeded")
    client.reset()


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_vllms_error_at_count_tokens_passes_unchanged(
    gateway: StartGateway, fake_vllm: FakeVllm, status: int
) -> None:
    """It has Anthropic's shape by itself."""
    running = await gateway(fake_vllm, backend={"max_retries": 0})
    fake_vllm.play(Send(error_answer(status, "no", "BadRequestError")))
    got = await (await running.client()).post(BODY, path=COUNT)
    assert got.status == status
    assert got.json["error"]["message"] == "no"


async def test_count_goes_upstream_as_it_came(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """An alias is spliced; a bound on the output is not, since vLLM does not know the field there."""
    model = {"name": "m", "aliases": ["alias"], "max_output_tokens": 5}
    running = await gateway(fake_vllm, backend={"models": [model]})
    client = await running.client()
    await client.post(b'{"model":"alias","messages":[]}', path=COUNT)
    assert (fake_vllm.posts[0].path, fake_vllm.posts[0].body) == (COUNT, b'{"model":"m","messages":[]}')


async def test_count_refuses_media_that_vllm_would_fetch(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """vLLM renders the conversation to count it, and fetches what it names."""
    running = await gateway(fake_vllm)
    image = {"type": "image", "source": {"type": "url", "url": "http://10.0.0.1/"}}
    body = {"model": "m", "messages": [{"role": "user", "content": [image]}]}
    got = await (await running.client()).post(body, path=COUNT)
    assert (got.status, got.json["error"]["param"]) == (400, "messages[0].content[0].source")
    assert not fake_vllm.posts
