"""The ledger against vLLM's own counters, to the token: `aiaas usage` after runs of mixed requests.

vLLM counts what its engine computed (`vllm:prompt_tokens_total`, `vllm:generation_tokens_total`), the ledger what
was settled. For requests that came with usage both are the same sums, but for one thing: with `n` choices vLLM counts
the prompt `n` times, and its usage, which the ledger uses, once.

Of a cut stream the streamed tokens are settled, and vLLM has computed at most CUT_SHORT tokens more: until it
learned of the abort, a second at the most (`test_vllm_aborts.py`). The input of such a request is an estimate, and is
told apart.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.processes import ALIAS, MODEL, Engine, Gateway, eventually, running_gateway

pytestmark = pytest.mark.vllm

HELLO = [{"role": "user", "content": "Say hello, in a few words of several languages."}]
ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize", "/v1/models"]
CHAT, COMPLETIONS, RESPONSES, MESSAGES, TOKENIZE = ENDPOINTS[:5]
# LLM tokens that vLLM computes for a cut stream beyond what was streamed: with this tiny model a second's worth. It is
# 0 to 5 on a quiet machine, and was 130 on one with eight times the work that it has cores for.
CUT_SHORT = 400


@pytest.fixture
def vllm(vllm_url: str) -> Engine:
    return Engine("vllm", vllm_url)


@pytest.fixture
def ledger_gateway(vllm: Engine, tmp_path: Path) -> Iterator[Gateway]:
    """A gateway that keeps usage."""
    sections = {"monitoring": {"usage_file": "usage.db"}}
    with running_gateway(tmp_path, {"url": vllm.url, "endpoints": ENDPOINTS}, sections=sections) as running:
        yield running


def ledger(gateway: Gateway) -> dict[str, int]:
    """The sums of `aiaas usage`."""
    command = [sys.executable, "-m", "aiaas", "usage", "-c", str(gateway.folder / "aiaas.yaml"), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    rows = json.loads(done.stdout)
    return {name: sum(row[name] for row in rows) for name in COUNTS}


COUNTS = ("requests", "input_tokens", "output_tokens", "estimated_input_tokens", "estimated_output_tokens")


def engine_counts(engine: Engine) -> tuple[float, float]:
    """(input, output) as vLLM has counted so far."""
    eventually(lambda: engine.metric("vllm:num_requests_running") == 0, 10)
    return engine.metric("vllm:prompt_tokens_total"), engine.metric("vllm:generation_tokens_total")


def mixed() -> list[tuple[str, dict[str, Any]]]:
    """Requests of every kind that come with usage: whole and streamed, with usage asked for and not, long and short."""
    chat = {"model": ALIAS, "messages": HELLO, "ignore_eos": True, "temperature": 0.7}
    text = {"model": MODEL, "prompt": "def main(", "ignore_eos": True}
    return [
        *[(CHAT, chat | {"max_tokens": 5 + 7 * n}) for n in range(4)],
        *[(CHAT, chat | {"max_tokens": 5 + 9 * n, "stream": True}) for n in range(8)],
        *[(CHAT, chat | {"max_tokens": 30, "stream": True, "stream_options": {"include_usage": True}})] * 4,
        (CHAT, chat | {"max_tokens": 20, "stream": True, "stream_options": {"continuous_usage_stats": True}}),
        (COMPLETIONS, text | {"max_tokens": 40, "stream": True}),
        (COMPLETIONS, text | {"max_tokens": 15}),
        (RESPONSES, {"model": ALIAS, "input": "Say hello.", "max_output_tokens": 16}),
        (RESPONSES, {"model": ALIAS, "input": "Say hello.", "max_output_tokens": 16, "stream": True}),
        (MESSAGES, {"model": ALIAS, "messages": HELLO, "max_tokens": 12}),
        (MESSAGES, {"model": ALIAS, "messages": HELLO, "max_tokens": 12, "stream": True}),
        (CHAT, chat | {"max_tokens": 5, "temperature": -1}),  # vLLM's 400
    ]


def run(gateway: Gateway, requests: list[tuple[str, dict[str, Any]]], *, cut_after: int | None = None) -> list[int]:
    """Send them all at once and read them to their ends, or leave after `cut_after` events; their statuses."""

    async def one(session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> int:
        async with session.post(gateway.url + path, json=body) as answer:
            events = 0
            async for line in answer.content:
                events += line.startswith(b"data:")
                if cut_after is not None and events >= cut_after:
                    answer.close()
                    break
            return answer.status

    async def all_of_them() -> list[int]:
        headers = {"Authorization": f"Bearer {gateway.key}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            return await asyncio.gather(*(one(session, path, body) for path, body in requests))

    with suppress(aiohttp.ClientConnectionError):
        return asyncio.run(all_of_them())
    raise AssertionError("a connection broke")


def settled(gateway: Gateway, requests: int) -> dict[str, int]:
    """The ledger once it has `requests` requests, at most a second after they ended."""
    eventually(lambda: ledger(gateway)["requests"] >= requests, 10)
    return ledger(gateway)


def test_the_ledger_is_vllms_own_count_to_the_token(vllm: Engine, ledger_gateway: Gateway) -> None:
    """Over mixed requests at once, all of which came with usage; a refused one costs no tokens on either side."""
    before = engine_counts(vllm)
    statuses = run(ledger_gateway, mixed())
    assert sorted(set(statuses)) == [200, 400]
    used = settled(ledger_gateway, len(statuses))
    after = engine_counts(vllm)
    assert used["requests"] == len(statuses)
    assert (used["input_tokens"], used["output_tokens"]) == (after[0] - before[0], after[1] - before[1])
    assert used["output_tokens"] > 500
    assert (used["estimated_input_tokens"], used["estimated_output_tokens"]) == (0, 0)
    assert ledger_gateway.metric("tokens_processed_total", type="output") == used["output_tokens"]
    assert ledger_gateway.metric("tokens_processed_total", type="input") == used["input_tokens"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_of_several_choices_the_prompt_is_charged_once(vllm: Engine, ledger_gateway: Gateway, stream: bool) -> None:
    """As in vLLM's usage; every choice's output counts."""
    before = engine_counts(vllm)
    body = {"model": ALIAS, "messages": HELLO, "max_tokens": 20, "ignore_eos": True, "n": 3, "stream": stream}
    assert run(ledger_gateway, [(CHAT, body)]) == [200]
    used = settled(ledger_gateway, 1)
    after = engine_counts(vllm)
    assert used["output_tokens"] == after[1] - before[1] == 60
    assert 3 * used["input_tokens"] == after[0] - before[0]


@pytest.mark.parametrize("cut_after", [1, 5, 40], ids=["at once", "early", "midway"])
def test_a_cut_stream_is_charged_no_more_than_vllm_computed(
    vllm: Engine, ledger_gateway: Gateway, cut_after: int
) -> None:
    """And vLLM computed at most CUT_SHORT more for each. The input is an estimate, and stands apart.

    Where the machine is so busy that whole answers arrive at once, some have come with usage before the client left.
    """
    before = engine_counts(vllm)
    body = {"model": ALIAS, "messages": HELLO, "max_tokens": 1900, "ignore_eos": True, "stream": True}
    run(ledger_gateway, [(CHAT, body)] * 8, cut_after=cut_after)
    used = settled(ledger_gateway, 8)
    after = engine_counts(vllm)
    computed = after[1] - before[1]
    charged = used["output_tokens"] + used["estimated_output_tokens"]
    assert used["requests"] == 8
    assert charged <= computed <= charged + 8 * CUT_SHORT
    whole = used["output_tokens"] // 1900
    assert used["output_tokens"] == whole * 1900
    assert used["input_tokens"] == whole * (after[0] - before[0]) / 8
    assert (used["estimated_input_tokens"] > 0) == (whole < 8)


def test_request_that_counts_tokens_costs_none(vllm: Engine, ledger_gateway: Gateway) -> None:
    """/tokenize costs no engine anything and reports no usage."""
    before = engine_counts(vllm)
    assert run(ledger_gateway, [(TOKENIZE, {"model": ALIAS, "prompt": "a few words"})]) == [200]
    used = settled(ledger_gateway, 1)
    assert engine_counts(vllm) == before
    assert (used["requests"], used["input_tokens"], used["output_tokens"]) == (1, 0, 0)
    assert (used["estimated_input_tokens"], used["estimated_output_tokens"]) == (0, 0)
