"""After any sequence of ends, aborts, errors and retries: no slot stays taken, each request is settled once, and
ledger, metrics and settlements have the same sums."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from aiaas.keys.model import KeyLimits
from aiaas.limits.memory import MemoryStore
from aiaas.limits.model import AdmissionResult, Lease, Limits
from tests.fakes.vllm import (
    DONE,
    STREAM_HEAD,
    Close,
    FakeVllm,
    Hang,
    Reset,
    Send,
    Sleep,
    Step,
    chunk,
    error_answer,
    json_answer,
    stream,
    token_event,
    usage_event,
)
from tests.proxy.conftest import Raw, Running, StartGateway, new_key
from tests.proxy.test_usage import ListStore

SLOTS = 6
ROUNDS = 25
# The client's view where an answer breaks off.
BROKEN = (asyncio.IncompleteReadError, ConnectionError)
USAGE = {"usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}}
CUT = (Send(STREAM_HEAD), Send(chunk(token_event())), Send(chunk(token_event())))

# An engine's possible answers to a request, whichever request meets them.
SCRIPTS: dict[str, tuple[Step, ...]] = {
    "answers": (Send(json_answer(USAGE)),),
    "answers without usage": (Send(json_answer({"tokens": [1, 2]})),),
    "streams": (Send(stream(token_event(), token_event(), usage_event(9, 2), DONE)),),
    "streams without usage": (Send(stream(token_event(), DONE)),),
    "streams in two parts": (*CUT, Sleep(0.02), Send(chunk(usage_event(3, 2))), Send(chunk(DONE)), Send(b"0\r\n\r\n")),
    "breaks a stream": (*CUT, Reset()),
    "ends a stream early": (*CUT, Close()),
    "hangs in a stream": (*CUT, Hang()),
    "says nothing": (Hang(),),
    "resets": (Reset(),),
    "closes": (Close(),),
    "refuses": (Send(error_answer(400, "no")),),
    "is busy": (Send(error_answer(503, "busy")),),
    "fails": (Send(error_answer(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")),),
    "talks nonsense": (Send(b"nonsense\r\n\r\n"),),
}
# A client's possible behaviour.
CLIENTS = ["waits", "waits, streaming", "leaves at once", "leaves soon", "leaves a stream", "resets a stream", "errs"]


class WatchedStore(MemoryStore):
    """The memory store, and what passed through it."""

    def __init__(self) -> None:
        super().__init__()
        self.admitted = self.tokens = self.ran = 0
        self.leases: dict[int, Lease] = {}
        self.settled: Counter[int] = Counter()

    async def admit(
        self, key: str, limits: Limits, tokens: int, now: float, wall: float, user: str = ""
    ) -> AdmissionResult:
        admission = await super().admit(key, limits, tokens, now, wall, user)
        if admission.lease is not None:
            self.leases[self.admitted] = admission.lease  # kept alive, so that no two have the same id
            self.admitted += 1
        return admission

    def settle(self, lease: Lease, used_tokens: int, now: float, wall: float, *, ran: bool = True) -> None:
        self.settled[id(lease)] += 1
        assert self.settled[id(lease)] == 1
        self.tokens += used_tokens
        self.ran += ran
        super().settle(lease, used_tokens, now, wall, ran=ran)


async def act(client: Raw, kind: str) -> None:
    """One request of one client, by its kind."""
    streaming = "stream" in kind
    body = {"messages": [{"role": "user", "content": "x" * 40}], "stream": streaming}
    client.send(client.request(body if kind == "errs" else body | {"model": "m"}))
    if kind.startswith(("waits", "errs")):
        await client.answer()
    elif streaming:
        head = await client.head()
        if head.status == 200 and head.header("transfer-encoding"):
            await client.chunk()
        (client.reset if kind.startswith("resets") else client.close)()
    else:
        await asyncio.sleep(0 if kind == "leaves at once" else 0.02)
        client.reset()


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_the_books_are_balanced(
    seed: int, gateway: StartGateway, fake_vllms: Callable[[], Awaitable[FakeVllm]]
) -> None:
    """Rounds of requests at once, before two endpoints that are soon full and soon too slow; retries cross over."""
    dice, store, ledger = random.Random(seed), WatchedStore(), ListStore()
    key = new_key("limited", limits=KeyLimits(max_concurrent=SLOTS, tokens_per_minute=10**9))
    backend = {"timeout": "100ms", "max_inflight": 2, "queue": {"size": 2, "max_wait": "50ms"}}
    fakes = [await fake_vllms(), await fake_vllms()]
    running = await gateway(*fakes, keys=(key,), store=store, usage=ledger, backend=backend)
    writing = asyncio.create_task(running.usage.run())
    for _ in range(ROUNDS):
        clients = [await running.client() for _ in range(dice.randint(1, 8))]
        for fake in fakes:
            fake.scripts.clear()
            for _ in clients:
                fake.play(*SCRIPTS[dice.choice(sorted(SCRIPTS))])
        for client in clients:
            client.key = key.text
        acts = [act(client, dice.choice(CLIENTS)) for client in clients]
        ends = await asyncio.gather(*acts, return_exceptions=True)
        assert [end for end in ends if end is not None and not isinstance(end, BROKEN)] == []
        for client in clients:
            client.reset()
        await running.quiet()
        assert store.settled.total() == store.admitted
        assert [state.slots for state in vars(store)["_states"].values() if state.slots] == []
        assert [endpoint.pool.inflight for endpoint in running.endpoints()] == [0, 0]
        for endpoint in running.endpoints():
            endpoint.set_up(True, "the next round begins")
    await running.usage.close()
    await writing

    kept = ledger.sums().values()
    assert store.admitted > ROUNDS
    assert sum(sums.requests for sums in kept) == store.ran
    estimated = sum(sums.estimated_input_tokens + sums.estimated_output_tokens for sums in kept)
    assert sum(sums.input_tokens + sums.output_tokens for sums in kept) + estimated == store.tokens > estimated > 0
    assert total(running, "tokens_processed_total") == store.tokens
    assert total(running, "aiaas_tokens_estimated_total") == estimated
    assert total(running, "aiaas_key_tokens_total") == store.tokens


def total(running: Running, name: str) -> float:
    """All samples of a metric."""
    lines = running.metrics.expose().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))
