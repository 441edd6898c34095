"""Time and memory grow with the models of a config, not with their square. No absolute times: machines differ."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiaas.config.load import load_text
from aiaas.config.model import Config
from aiaas.keys.ring import EMPTY_RING
from aiaas.keys.verifier import Verifier
from aiaas.limits.memory import MemoryStore
from aiaas.plan.compile import compile_plan
from aiaas.plan.model import Plan
from aiaas.plan.read import read
from aiaas.proxy.gateway import Gateway
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.usage import UsageRecorder

FEW = 300
FEW_BACKENDS = 100  # a config of 2,400 is too long
TIMES = 8
# Of what is linear, TIMES times as much costs 8 times as much (up to 12 where caches are shared); of what is quadratic,
# 64 times as much.
MOST = 24.0


def text_of(count: int, *, backends: int = 1, long_form: bool = False, timeout: str = "100s") -> str:
    """A config with `count` models in each backend."""
    names = [f"org/model-{index}" for index in range(count)]
    models: list[Any] = [{"name": name} for name in names] if long_form else list(names)
    each = {"timeout": timeout, "models": models}
    return json.dumps(
        {"backends": {f"b{index}": {"url": f"http://h:{index + 1}", **each} for index in range(backends)}}
    )


def config_of(text: str) -> Config:
    """The config of a text without problems."""
    loaded = load_text(text, file="f", env={})
    assert loaded.config is not None, loaded.problems
    return loaded.config


def seconds(work: Callable[[], object]) -> float:
    """The CPU time of one call: the best of three."""

    def once() -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    return min(once() for _ in range(3))


def growth(cost: Callable[[str], float], **shape: Any) -> float:
    """How many times as much TIMES times the models cost."""
    return cost(text_of(TIMES * FEW, **shape)) / cost(text_of(FEW, **shape))


@pytest.mark.parametrize("long_form", [False, True])
def test_compiling_models_takes_linear_time(long_form: bool) -> None:
    """In one backend, in each way to write them; with the digest."""

    def cost(text: str) -> float:
        config = config_of(text)
        return seconds(lambda: compile_plan(config))

    assert growth(cost, long_form=long_form) < MOST


def test_compiling_models_takes_linear_memory() -> None:
    """At its peak, the text for the digest included."""

    def cost(text: str) -> float:
        config = config_of(text)
        tracemalloc.start()
        try:
            compile_plan(config)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert growth(cost) < MOST


def test_reading_models_takes_linear_time(tmp_path: Path) -> None:
    """Loaded, checked and compiled, as a reload does it."""
    file = tmp_path / "aiaas.yaml"

    def cost(text: str) -> float:
        file.write_text(text)
        plan = read(file, {}).plan
        assert plan is not None
        before = plan.config
        return seconds(lambda: read(file, {}, before=before))

    assert growth(cost) < MOST


@pytest.mark.parametrize("long_form", [False, True])
def test_comparing_equal_plans_takes_linear_time(long_form: bool) -> None:
    """A reload compares the Plans, and equal ones take longest."""

    def cost(text: str) -> float:
        one, other = compile_plan(config_of(text)), compile_plan(config_of(text))
        assert one == other
        return seconds(lambda: one == other)

    assert growth(cost, long_form=long_form) < MOST


def test_putting_models_in_force_hardly_grows() -> None:
    """On the event loop, where every stream waits for it."""
    assert growth(lambda text: swap_seconds([text, text.replace("100s", "101s")])) < TIMES / 2


def test_putting_backends_in_force_takes_linear_time() -> None:
    """Each keeps its endpoints."""

    def cost(backends: int) -> float:
        return swap_seconds([text_of(1, backends=backends, timeout=timeout) for timeout in ("100s", "101s")])

    assert cost(TIMES * FEW_BACKENDS) / cost(FEW_BACKENDS) < MOST


def swap_seconds(texts: list[str]) -> float:
    """The CPU time in which a gateway puts one of two Plans in force."""
    plans: list[Plan] = [compile_plan(config_of(text)) for text in texts]

    async def swap() -> float:
        log, metrics = JsonLog(lambda _lines: True, time.time, "info"), Metrics()
        usage = UsageRecorder(None, log, metrics)
        gateway = Gateway(plans[0], Verifier(EMPTY_RING), MemoryStore(), log, metrics, usage)

        def both() -> None:
            gateway.replace_plan(plans[1])
            gateway.replace_plan(plans[0])

        return seconds(both)

    return asyncio.run(swap())
