"""One run with errors, retries, a reload, aborts and broken answers, through two workers: the clients, the access log,
the metrics, the ledger, the engines and Prometheus count the same."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import SimulatorHandle, running_simulator
from tests.e2e.processes import ALIAS, MODEL, Gateway, keys, metric, running_gateway
from tests.fakes.redis import RedisServer
from tests.observe.clients import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Ask, Seen, ask_all
from tests.observe.prometheus import Prometheus, panels, running_prometheus
from tests.waiting import until

pytestmark = pytest.mark.observe

NAME = "api-router"
HELLO = [{"role": "user", "content": "Say hello, in a few words of several languages."}]
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
CLIENTS_ENDS = {"client_left", "client_too_slow"}
# `increase` adds for the time between the last sample and now: a second or two of this run's half minute.
EXTRAPOLATION = 1.2
# Of the tokens of cut streams: generated after the client had left, and before the engine knew.
CUT_SHORT = 0.1


@dataclass
class Site:
    """Everything of the run."""

    gateway: Gateway
    engines: list[SimulatorHandle]
    prometheus: Prometheus
    limited: str  # a key with a limit

    def log(self) -> list[dict[str, Any]]:
        """The lines of inference requests so far."""
        return self.gateway.requests()

    async def logged(self, number: int) -> list[dict[str, Any]]:
        """The lines, once there are `number` of them."""
        await until(lambda: len(self.log()) >= number, 30)
        lines = self.log()
        assert len(lines) == number
        return lines

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series, from the metrics port."""
        return await asyncio.to_thread(self.gateway.metric, name, **labels)

    async def engine(self, name: str) -> float:
        """The sum over both engines of a metric of vLLM."""
        found = [await asyncio.to_thread(metric, f"{each.url}/metrics", f"vllm:{name}") for each in self.engines]
        return sum(found)

    async def ledger(self) -> dict[str, int]:
        """The sums of `aiaas usage`."""
        config = str(self.gateway.folder / "aiaas.yaml")
        command = [sys.executable, "-m", "aiaas", "usage", "-c", config, "-o", "json"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True, timeout=60)
        rows = json.loads(done.stdout)
        names = ("requests", "input_tokens", "output_tokens", "estimated_input_tokens", "estimated_output_tokens")
        return {name: sum(row[name] for row in rows) for name in names}


@pytest.fixture
async def site(tmp_path: Path, redis_server: RedisServer) -> AsyncIterator[Site]:
    """Two simulators behind a gateway of two workers that shares limits and usage in Redis, and a Prometheus."""
    async with AsyncExitStack() as stack:
        options = SimulatorOptions(models=(MODEL,), ttft=0.05, itl=0.002, max_model_len=2048)
        engines = [await stack.enter_async_context(running_simulator(options)) for _ in range(2)]
        backend = {"urls": [each.url for each in engines], "max_inflight": 4, "balance": "round_robin"}
        sections = {"server": {"workers": 2}, "rate_limit": {"store": redis_server.url}}
        for folder in ("gateway", "prometheus"):
            (tmp_path / folder).mkdir()
        limited = await asyncio.to_thread(keys, tmp_path / "gateway", "create", "limited", "--rpm", "5")
        running = running_gateway(tmp_path / "gateway", backend, sections=sections)
        gateway = await asyncio.to_thread(stack.enter_context, running)
        prometheus = await asyncio.to_thread(stack.enter_context, running_prometheus(tmp_path / "prometheus", NAME))
        prometheus.target(NAME, "aaaaa", gateway.metrics_url)
        await until(lambda: prometheus.query("up == 1"), 60)
        yield Site(gateway, engines, prometheus, limited)


def whole_requests(limited: str) -> list[Ask]:
    """Requests that end by themselves: answers of every kind with their usage, and refusals of every kind."""
    chat = {"model": ALIAS, "messages": HELLO, "ignore_eos": True}
    text = {"model": MODEL, "prompt": "def main(", "ignore_eos": True}
    found = []
    for number in range(24):
        length = {"max_tokens": 5 + 3 * number}
        found += [
            Ask(CHAT, chat | length),
            Ask(CHAT, chat | length | USAGE),
            Ask(COMPLETIONS, text | length | USAGE),
            Ask(MESSAGES, {"model": ALIAS, "messages": HELLO, "max_tokens": 9}),
            Ask(RESPONSES, {"model": ALIAS, "input": "Say hello.", "max_output_tokens": 9}),
            Ask(CHAT, chat, key=f"sk-wrong{number}"),
            Ask(CHAT, chat | {"model": "unknown"}),
            Ask(CHAT, b"{"),
            Ask(CHAT, chat | {"max_tokens": 4000}),  # vLLM's own 400
            Ask(CHAT, chat | {"max_tokens": 3}, key=limited),
        ]
    return found


async def test_all_counts_of_a_run_agree(site: Site) -> None:
    """To the request and to the token for requests that ended, within CUT_SHORT for those that were cut."""
    seen = Seen()
    sent = await whole_run(site, seen)
    lines = await site.logged(sent)
    assert Counter(seen.statuses) == Counter(line["status"] for line in lines)
    assert seen.input_tokens == sum(line["input_tokens"] or 0 for line in lines)
    assert seen.output_tokens == sum(line["output_tokens"] or 0 for line in lines)
    assert await site.engine("prompt_tokens_total") == seen.input_tokens
    assert await site.engine("generation_tokens_total") == seen.output_tokens
    assert {200, 400, 401, 404, 429} <= set(seen.statuses)
    assert sum(line["retries"] for line in lines) > 0
    await same_everywhere(site, lines)

    generated = await site.engine("generation_tokens_total")
    sent += await cut_run(site, seen)
    lines = await site.logged(sent)
    ended_by_client = [line for line in lines if line["ended_by"] == "client"]
    broken = [line for line in lines if line["status"] == 200 and line["error_code"] == "upstream_error"]
    assert len(ended_by_client) == seen.left
    assert len(broken) == seen.broken > 0
    cut = sum(line["output_tokens"] or 0 for line in lines) - seen.output_tokens
    generated = await site.engine("generation_tokens_total") - generated
    assert cut <= generated <= cut * (1 + CUT_SHORT)
    await same_everywhere(site, lines)
    await in_prometheus(site, lines)


async def whole_run(site: Site, seen: Seen) -> int:
    """All requests that end by themselves, while one engine is full for a moment and the config changes."""
    requests = whole_requests(site.limited)
    half = len(requests) // 2
    await ask_all(site.gateway.url, site.gateway.key, requests[:half], seen)
    reload(site)
    site.engines[0].set_fault("busy")
    await ask_all(site.gateway.url, site.gateway.key, requests[half : half + 40], seen)
    site.engines[0].set_fault("none")
    await ask_all(site.gateway.url, site.gateway.key, requests[half + 40 :], seen)
    return len(requests)


def reload(site: Site) -> None:
    """Change the config, and have it read at once."""
    file = site.gateway.folder / "aiaas.yaml"
    config = yaml.safe_load(file.read_text())
    config["server"]["heartbeat"] = "14s"
    file.write_text(yaml.safe_dump(config))
    os.kill(site.gateway.pid, signal.SIGHUP)


async def cut_run(site: Site, seen: Seen) -> int:
    """Clients that leave before the answer, and in the middle of it; then engines that die in the middle."""
    stream = {"model": ALIAS, "messages": HELLO, "ignore_eos": True, "stream": True}
    long, short = stream | {"max_tokens": 900}, stream | {"max_tokens": 100}
    runs = {
        "hang-before-headers": [Ask(CHAT, long, leave=0)] * 8,
        "none": [Ask(CHAT, long, leave=events) for events in (100, 150, 200)] * 8,
        "engine-dies-mid-stream:50": [Ask(CHAT, short)] * 4,
    }
    for fault, requests in runs.items():
        for engine in site.engines:
            engine.set_fault(fault)
        await ask_all(site.gateway.url, site.gateway.key, requests, seen, at_once=8)
        for engine in site.engines:
            await engine.wait_for(lambda stats: stats.running == stats.waiting == 0, 30)
    return sum(map(len, runs.values()))


async def same_everywhere(site: Site, lines: list[dict[str, Any]]) -> None:
    """The log's counts are those of the metrics and of the ledger."""
    gathered = [await site.metric("inference_requests_total", status=status) for status in ("success", "error")]
    whole = [line for line in lines if line["status"] < 400 and line["error_code"] is None]
    assert gathered == [len(whole), len(lines) - len(whole)]
    for status, number in Counter(line["status"] for line in lines).items():
        assert await site.metric("aiaas_responses_total", code=str(status)) == number, status
    assert await site.metric("aiaas_aborts_total") == sum(line["ended_by"] == "client" for line in lines)
    assert await site.metric("aiaas_retries_total") == sum(line["retries"] for line in lines)
    assert await site.metric("aiaas_refused_total", limit="requests") == sum(line["status"] == 429 for line in lines)
    assert await site.metric("aiaas_connections_accepted_total") >= len(lines)
    bad = [line for line in lines if is_bad(line)]
    assert await site.metric("aiaas_availability_requests_total", result="good") == len(whole)
    assert await site.metric("aiaas_availability_requests_total", result="bad") == len(bad)
    broken = [line for line in bad if line["status"] < 400]
    assert await site.metric("aiaas_answers_broken_total", by="backend") == len(broken)
    ledger: dict[str, int] = {}

    async def ledger_has_all() -> None:
        nonlocal ledger
        while (ledger := await site.ledger())["requests"] < sum(line["upstream"] is not None for line in lines):
            await asyncio.sleep(0.2)

    await asyncio.wait_for(ledger_has_all(), 40)
    for kind in ("input", "output"):
        tokens = sum(line[f"{kind}_tokens"] or 0 for line in lines)
        assert await site.metric("tokens_processed_total", type=kind) == tokens
        assert await site.metric("aiaas_key_tokens_total", type=kind) == tokens
        assert ledger[f"{kind}_tokens"] + ledger[f"estimated_{kind}_tokens"] == tokens
        assert ledger[f"estimated_{kind}_tokens"] == await site.metric("aiaas_tokens_estimated_total", type=kind)
        left = sum(line[f"{kind}_tokens"] or 0 for line in lines if line["ended_by"] == "client")
        assert await site.metric("aiaas_aborted_tokens_total", type=kind) == left


def is_bad(line: dict[str, Any]) -> bool:
    """Whether the service failed a request."""
    if line["status"] >= 500:
        return True
    return line["status"] < 400 and line["error_code"] is not None and line["error_code"] not in CLIENTS_ENDS


async def in_prometheus(site: Site, lines: list[dict[str, Any]]) -> None:
    """The last sample is exact; an increase over the run lacks nothing, since the series begin at 0; every panel of the
    dashboard has data."""
    prometheus = site.prometheus
    await until(lambda: prometheus.value("sum(inference_requests_total)") == len(lines), 30)
    counts = {
        "inference_requests_total": len(lines),
        'aiaas_availability_requests_total{result="bad"}': sum(map(is_bad, lines)),
        "aiaas_answers_broken_total": sum(is_bad(line) and line["status"] < 400 for line in lines),
        "aiaas_aborts_total": sum(line["ended_by"] == "client" for line in lines),
        "aiaas_refused_total": sum(line["status"] == 429 for line in lines),
    }
    for name, number in counts.items():
        assert prometheus.value(f"sum(max_over_time({name}[10m]) - min_over_time({name}[10m]))") == number, name
        assert number <= prometheus.value(f"sum(increase({name}[10m]))") <= number * EXTRAPOLATION, name
    for panel in panels(NAME):
        for target in panel["targets"]:
            assert prometheus.query(target["expr"]), panel["title"]
