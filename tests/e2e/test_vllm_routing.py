"""Fourteen sessions on two real vLLM find as many of their tokens cached as on one (nox -s routing; two minutes).

vLLM counts hits exactly, however busy the machine is. Each part has its own words, so that it begins with cold caches.
"""

from __future__ import annotations

import json
import os
import random
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.processes import MODEL, Gateway, metric, running_gateway, running_vllm
from tests.e2e.vllm.setup import Installation

pytestmark = [pytest.mark.routing, pytest.mark.timeout(900)]

SESSIONS, TURNS = 14, 6
SYSTEM_WORDS, TURN_WORDS, OUTPUT = 1_550, 225, 16  # 1.27 tokens a word: prompts of 2,260 to 3,800 tokens
OPTIONS = ("--max-model-len", "4096", "--max-num-batched-tokens", "1024", "--enable-prompt-tokens-details")
ENOUGH = 0.98  # of the hit rate that one vLLM has for all sessions
HITS, QUERIES = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"


@pytest.fixture(scope="module")
def urls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Two vLLM; $AIAAS_VLLM_ROUTING_URLS names two that run already, with OPTIONS."""
    if running := os.environ.get("AIAAS_VLLM_ROUTING_URLS"):
        yield running.split()
        return
    installation: Installation = request.getfixturevalue("vllm_installation")
    folder = tmp_path_factory.mktemp("routing")
    with ExitStack() as stack:
        logs = [folder / name for name in ("one", "two")]
        starts = [running_vllm(log, installation.model, installation.vllm, *OPTIONS) for log in logs]
        yield [stack.enter_context(start) for start in starts]


def words(dice: random.Random, count: int) -> str:
    """A text like no other."""
    return " ".join(dice.choice(("alpha", "beta", "file", "return", "import", "the", "of")) for _ in range(count))


def talk(gateway: Gateway, system: str, seed: str) -> int:
    """All turns of one session; how many tokens its last prompt had."""
    dice = random.Random(seed)
    messages = [{"role": "system", "content": system}]
    tokens = 0
    for _ in range(TURNS):
        messages.append({"role": "user", "content": words(dice, TURN_WORDS)})
        body = {"model": MODEL, "messages": messages, "max_tokens": OUTPUT, "ignore_eos": True}
        headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}
        url = f"{gateway.url}/v1/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=300) as answer:
            whole = json.load(answer)
        messages.append({"role": "assistant", "content": whole["choices"][0]["message"]["content"] or ""})
        tokens = whole["usage"]["prompt_tokens"]
        time.sleep(dice.uniform(0.0, 0.5))
    return tokens


def hit_rate(gateway: Gateway, urls: list[str], seed: str) -> float:
    """The cached part of the prompt tokens of all sessions, as vLLM counts it."""

    def counted(name: str) -> float:
        return sum(metric(f"{url}/metrics", name) for url in urls)

    seed = f"{seed} {time.time()}"  # engines that run already have the last run's prompts
    system = words(random.Random(seed), SYSTEM_WORDS)
    hits, queries = counted(HITS), counted(QUERIES)
    with ThreadPoolExecutor(SESSIONS) as pool:
        prompts = list(pool.map(lambda number: talk(gateway, system, f"{seed} {number}"), range(SESSIONS)))
    assert min(prompts) > 3_000
    return (counted(HITS) - hits) / (counted(QUERIES) - queries)


def test_sessions_find_their_cache_on_two_engines(urls: list[str], tmp_path: Path) -> None:
    """At least 98 of the 100 that they find on one; and nearly every turn stays where the one before was."""
    fields = {"max_inflight": None, "timeout": "300s"}
    for name in ("alone", "both"):
        (tmp_path / name).mkdir()
    with running_gateway(tmp_path / "alone", {"urls": urls[:1], **fields}) as gateway:
        alone = hit_rate(gateway, urls, "alone")
    with running_gateway(tmp_path / "both", {"urls": urls, **fields}) as gateway:
        both = hit_rate(gateway, urls, "both")
        turns = {
            result: gateway.metric("aiaas_session_turns_total", result=result) for result in ("first", "stayed", "load")
        }
        told = [gateway.metric("aiaas_prefix_cache_tokens_total", result=result) for result in ("hit", "miss")]
        places = [line["upstream"] for line in gateway.requests()]
    print(f"hit rate of one {alone:.3f}, of two {both:.3f}; turns {turns}; by usage {told[0] / sum(told):.3f}")
    assert both >= ENOUGH * alone
    assert turns["first"] == SESSIONS
    assert turns["stayed"] >= 0.95 * SESSIONS * (TURNS - 1)
    assert told[0] / sum(told) == pytest.approx(both, abs=0.01)
    assert min(places.count(url) for url in urls) >= 0.3 * len(places)
