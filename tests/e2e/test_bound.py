"""The metrics of a simulator and of a real vLLM give an endpoint its bound."""

from __future__ import annotations

import urllib.request

from aiaas.proxy.upstream.vllm_load import vllm_load
from tests.e2e.conftest import Engine
from tests.e2e.processes import Gateway, eventually


def test_its_metrics_are_read(engine: Engine) -> None:
    """A real vLLM also reports the size of its KV cache and the time of its start."""
    with urllib.request.urlopen(f"{engine.url}/metrics", timeout=20) as answer:
        load = vllm_load(answer.read())
    assert load is not None
    assert 0 <= load.kv_usage <= 1
    assert (load.kv_tokens > 0, load.started > 0) == ((True, True) if engine.kind == "vllm" else (False, False))


def test_an_endpoint_is_bounded_by_default(gateway: Gateway) -> None:
    """Nobody wrote `max_inflight`."""
    eventually(lambda: 2 <= gateway.metric("aiaas_endpoint_max_inflight", backend="vllm") <= 256, 20)
