"""Requests that make a backend hang up: they cost only the client that sends them.

vLLM 0.32 answers an exception that it does not handle with a 500 without `Connection: close`, and closes some
milliseconds later (docs/vllm.md). A client that provokes it as often as it can must not break another's requests, nor
take the endpoint down, whatever the answer was and however the connection ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import running_simulator
from tests.fakes.vllm import Close, FakeVllm, Reset, Send, Step, answer, error_answer, json_answer
from tests.proxy.conftest import Running, StartGateway

ATTACKERS = 8
INNOCENTS = 8
REQUESTS = 25  # of each innocent client
# One failure takes an endpoint down; a probe or a connect that a busy machine delays must not count.
STRICT = {
    "health": {"unhealthy_after": 1, "interval": "60s", "timeout": "30s"},
    "connect_timeout": "30s",
    "timeout": "60s",
}

_CALL = {"type": "function", "id": "c", "function": {"name": "f", "arguments": "[" * 5000}}
HELLO = {"role": "user", "content": "x"}
KILLER: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "assistant", "content": None, "tool_calls": [_CALL]}, HELLO],
}
INNOCENT: dict[str, Any] = {"model": "m", "messages": [HELLO], "max_tokens": 2}

ERROR = error_answer(500, "maximum recursion depth exceeded while decoding a JSON array from a unicode string")


class Sensitive(FakeVllm):
    """A scripted endpoint that plays `killed` for every killer body, and answers the others."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: tuple[Step, ...] = ()

    def script_for(self, method: str, path: str) -> Sequence[Step]:
        """Choose the answer to a request."""
        killer = method == "POST" and b"tool_calls" in self.got[-1].body
        return self.killed if killer else super().script_for(method, path)


async def under_attack(running: Running) -> tuple[Counter[int], Counter[int]]:
    """The statuses that the attackers get, and the innocent clients, which decide when it is over."""
    over = False
    attackers: Counter[int] = Counter()
    innocents: Counter[int] = Counter()

    async def attack(count: int) -> None:
        client = await running.client()
        while not over:
            attackers[(await client.post({**KILLER, "stream": count % 2 == 0})).status] += 1

    async def ask(count: int) -> None:
        client = await running.client()
        for turn in range(REQUESTS):
            innocents[(await client.post({**INNOCENT, "stream": (count + turn) % 2 == 0})).status] += 1

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for count in range(ATTACKERS):
            group.create_task(attack(count))
        await asyncio.gather(*[ask(count) for count in range(INNOCENTS)])
        over = True
    await running.quiet()
    assert running.log_lines("endpoint_down") == []
    return attackers, innocents


async def test_killer_body_breaks_no_other_clients_request(gateway: StartGateway) -> None:
    """Before a simulator that does as vLLM does: a 500 for its sender, and no endpoint is to blame."""
    async with running_simulator(SimulatorOptions(models=("m",), ttft=0.001, itl=0.001)) as backend:
        running = await gateway(backend.url, backend=STRICT)
        attackers, innocents = await under_attack(running)
    assert innocents == {200: INNOCENTS * REQUESTS}
    assert set(attackers) == {500}
    assert attackers.total() > ATTACKERS
    assert [(endpoint.up, endpoint.failures) for endpoint in running.endpoints()] == [(True, 0)]
    assert running.metric('aiaas_retries_total{reason="stale"}') == 0


# The backend's answer to a killer body; the status that the attacker gets.
HANGS_UP: dict[str, tuple[tuple[Step, ...], int]] = {
    "500, then FIN": ((Send(ERROR), Close()), 500),
    "500, then RST": ((Send(ERROR), Reset()), 500),
    "500 that announces it": ((Send(error_answer(500, "x", headers="connection: close\r\n")), Close()), 500),
    "a 503 of its own, then FIN": ((Send(error_answer(503, "x", headers="retry-after: 9\r\n")), Close()), 503),
    "400, then FIN": ((Send(error_answer(400, "no", "BadRequestError")), Close()), 400),
    "413 that announces it": ((Send(answer(413, b"", headers="connection: close\r\n")), Close()), 413),
    "200, then FIN": ((Send(json_answer({})), Close()), 200),
}


@pytest.mark.parametrize("endpoints", [1, 3])
@pytest.mark.parametrize(("killed", "status"), HANGS_UP.values(), ids=HANGS_UP)
async def test_hanging_up_behind_an_answer_breaks_no_other_request(
    gateway: StartGateway, killed: tuple[Step, ...], status: int, endpoints: int
) -> None:
    """With one endpoint and with several, each of which is still up afterwards."""
    fakes = [await Sensitive.start() for _ in range(endpoints)]
    try:
        for fake in fakes:
            assert isinstance(fake, Sensitive)
            fake.killed = killed
        running = await gateway(*fakes, backend={**STRICT, "balance": "round_robin"})
        attackers, innocents = await under_attack(running)
        assert innocents == {200: INNOCENTS * REQUESTS}
        assert set(attackers) == {status}
        assert [(endpoint.up, endpoint.failures) for endpoint in running.endpoints()] == [(True, 0)] * endpoints
    finally:
        for fake in fakes:
            await fake.stop()


async def test_backend_that_always_hangs_up_unannounced_serves(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """A request that finds its connection closed goes over a new one."""
    fake_vllm.default = (Send(json_answer({})), Close())
    running = await gateway(fake_vllm, backend=STRICT)
    attackers, innocents = await under_attack(running)
    assert (set(attackers), set(innocents)) == ({200}, {200})
    assert [(endpoint.up, endpoint.failures) for endpoint in running.endpoints()] == [(True, 0)]
