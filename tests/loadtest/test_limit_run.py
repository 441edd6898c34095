"""The limit check against the real gateway, and against servers without limits."""

from __future__ import annotations

import pytest

from aiaas.errors import CheckFailed, EnvironmentFault
from aiaas.httpclient.target import parse_target
from aiaas.keys.model import KeyLimits
from aiaas.loadtest.limit_check import LimitCheck
from aiaas.loadtest.limit_run import check_limits
from tests.fakes.vllm import FakeVllm, Send, error_answer, json_answer
from tests.proxy.conftest import StartGateway, gateway, known_key, new_key

__all__ = ["gateway", "known_key"]

ANSWER = json_answer({"choices": [{}], "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}})


async def check(url: str, key: str | None = "sk-1") -> tuple[LimitCheck, ...]:
    """Run one check."""
    return await check_limits(parse_target(url), key, None, "chat")


async def test_the_gateways_limiter_does_what_it_says(fake: FakeVllm, gateway: StartGateway) -> None:
    """600 a minute and 10 at once: the burst, the rate, the 429s and the wait."""
    fake.default = (Send(ANSWER),)
    key = new_key("limited", limits=KeyLimits(requests_per_minute=600, burst=10))
    running = await gateway(fake, keys=(key,))
    for _attempt in range(3):  # a machine that stood still while it was measured is measured again
        checks = await check(f"http://127.0.0.1:{running.port}", key.text)
        if len(checks) == 4 and all(one.held for one in checks):
            break
    assert [(one.name, one.held) for one in checks] == [
        ("admitted under overload", True),
        ("admitted at once", True),
        ("429s with a Retry-After", True),
        ("request after the Retry-After", True),
    ]
    assert checks[0].expected.endswith("(600 a minute, 10 at once)")


async def test_a_bucket_that_is_not_full_is_waited_for(fake: FakeVllm, gateway: StartGateway) -> None:
    """Another client has just used the key."""
    fake.default = (Send(ANSWER),)
    key = new_key("limited", limits=KeyLimits(requests_per_minute=600, burst=5))
    running = await gateway(fake, keys=(key,))
    client = await running.client()
    client.key = key.text
    for _attempt in range(3):  # a machine that stood still while it was measured is measured again
        for _ in range(3):
            await client.post({"model": "m", "messages": []})
        checks = await check(f"http://127.0.0.1:{running.port}", key.text)
        if all(one.held for one in checks):
            break
    assert all(one.held for one in checks)
    assert "5 at once" in checks[0].expected


async def test_another_limit_that_comes_first_is_said(fake: FakeVllm, gateway: StartGateway) -> None:
    """With its code and message."""
    fake.default = (Send(ANSWER),)
    key = new_key("limited", limits=KeyLimits(requests_per_minute=600, burst=50, tokens_per_minute=40))
    running = await gateway(fake, keys=(key,))
    with pytest.raises(CheckFailed, match=r"another limit refused a request first .tokens_limit_exceeded"):
        await check(f"http://127.0.0.1:{running.port}", key.text)


async def test_a_server_without_limits_and_one_that_fails_are_said(fake: FakeVllm) -> None:
    """One line each."""
    fake.default = (Send(ANSWER),)
    with pytest.raises(CheckFailed, match="this key has no request limit"):
        await check(fake.url)
    fake.default = (Send(error_answer(500, "boom")),)
    with pytest.raises(EnvironmentFault, match=r"one of the check's requests failed .http_500.: boom"):
        await check(fake.url)
