"""The metrics of a simulator and of a real vLLM give an endpoint its bound."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from pathlib import Path

from aiaas.proxy.upstream.vllm_load import vllm_load
from tests.e2e.conftest import Engine, StartGateway
from tests.e2e.processes import MODEL, Gateway, eventually, running_simulator
from tests.proxy.conftest import Raw


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


def test_a_crowd_shows_how_many_an_engine_runs(tmp_path: Path, start_gateway: StartGateway) -> None:
    """Sixty clients at eight seats: the bound becomes nine, and the others wait in the gateway."""
    with (
        running_simulator(tmp_path / "engine.log", "--max-num-seqs", "8", "--itl", "5ms") as url,
        start_gateway({"url": url}) as gateway,
    ):
        eventually(lambda: bound(gateway) == 64, 10)
        took = asyncio.run(crowd(gateway))
    assert took < 10


async def crowd(gateway: Gateway) -> float:
    """Sixty clients ask until the bound is found: the seconds until then. It must stay for three seconds."""
    port, began = int(gateway.url.rsplit(":", 1)[1]), time.monotonic()
    clients = [asyncio.create_task(asks(port, gateway.key)) for _ in range(60)]
    while await asyncio.to_thread(bound, gateway) > 10:
        assert time.monotonic() < began + 20
        await asyncio.sleep(0.1)
    took = time.monotonic() - began
    for _ in range(6):
        await asyncio.sleep(0.5)
        assert 8 <= await asyncio.to_thread(bound, gateway) <= 11
    for client in clients:
        client.cancel()
    results = await asyncio.gather(*clients, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    return took


async def asks(port: int, key: str) -> None:
    """One client that asks again as soon as it has its answer."""
    client = await Raw.connect(port, key)
    message = {"role": "user", "content": "How many are you?"}
    body = {"model": MODEL, "messages": [message], "stream": True, "max_tokens": 50, "ignore_eos": True}
    try:
        while True:
            client.send(client.request(body))
            await client.reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    finally:
        client.close()


def bound(gateway: Gateway) -> float:
    """The metric; 0 without one."""
    return gateway.metric("aiaas_endpoint_max_inflight", backend="vllm")
