"""Four gateways that count together in one Redis: real processes, real clients, and everything that may be killed.

The full minute and the wait for leases are marked `redis` (nox -s redis); the normal suite has a shorter window of the
same, at a higher rate.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.processes import ALIAS, Gateway, eventually, keys, running_gateway, running_simulator
from tests.e2e.test_wrong_keys import request, status
from tests.fakes.redis import RedisServer

GATEWAYS = 4
pytestmark = pytest.mark.timeout(180)  # four gateways start at once, perhaps on a busy machine
BODY = json.dumps({"model": ALIAS, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).encode()


@dataclass
class Fleet:
    """Gateways with one key file and one store. `key` makes a key of its own for a test."""

    gateways: list[Gateway]
    redis: RedisServer
    folder: Path

    def key(self, name: str, *options: str) -> str:
        """Make a key, and wait until every gateway knows it."""
        made = keys(self.folder, "create", name, *options)
        for gateway in self.gateways:
            eventually(lambda gateway=gateway: asyncio.run(ask(gateway, made, path="/v1/models")) == 200, 5)
        return made

    def up(self) -> bool:
        """Whether all of them are with the store."""
        return all(gateway.metric("aiaas_limit_store_up") == 1 for gateway in self.gateways)

    def all_counted(self) -> bool:
        """Whether each gateway knows of all, and so takes the right part of a limit when the store goes away."""
        return self.up() and all(
            gateway.metric("aiaas_limit_processes") == len(self.gateways) for gateway in self.gateways
        )

    def failures(self) -> float:
        """Failed calls to the store, of all gateways."""
        return sum(gateway.metric("aiaas_limit_store_failures_total") for gateway in self.gateways)


@contextmanager
def running_fleet(folder: Path, simulator_url: str, number: int, **limits: Any) -> Iterator[Fleet]:
    """`number` gateways behind a Redis of their own."""
    server = RedisServer(folder)
    server.start()
    keys(folder, "create", "first")
    sections = {
        "auth": {"keys_file": str(folder / "keys.yaml")},
        "rate_limit": {"store": server.url, **limits},
    }
    with ExitStack() as stack:
        stack.callback(server.end)
        folders = [folder / str(index) for index in range(number)]
        for each in folders:
            each.mkdir()
        starts = [running_gateway(each, {"url": simulator_url}, sections=sections, ready_within=90) for each in folders]
        with ThreadPoolExecutor() as pool:
            gateways = list(pool.map(stack.enter_context, starts))
        fleet = Fleet(gateways, server, folder)
        eventually(fleet.all_counted, 30)
        yield fleet


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Answers at once, unless a test asks for many tokens."""
    with running_simulator(tmp_path_factory.mktemp("simulator") / "log", "--ttft", "1ms", "--itl", "100ms") as url:
        yield url


@pytest.fixture(scope="module")
def fleet(simulator: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Four gateways that count by themselves while the store is away."""
    with running_fleet(tmp_path_factory.mktemp("fleet"), simulator, GATEWAYS) as fleet:
        yield fleet


# -- clients ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One request: monotonic seconds of its begin and its end, and what it got."""

    began: float
    ended: float
    status: int
    gateway: int


async def ask(gateway: Gateway, key: str, path: str = "/v1/chat/completions", **fields: Any) -> int:
    """The status of one request."""
    async with asyncio.timeout(40):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        whole = request(key, "127.0.0.1")
        if path == "/v1/models":
            whole = f"GET {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
        elif fields:
            body = json.dumps({**json.loads(BODY), **fields}).encode()
            head = whole[: whole.index(b"Content-Length")]
            whole = head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        writer.write(whole)
        try:
            return await status(reader)
        finally:
            writer.close()


async def send(fleet: Fleet, index: int, key: str, per_second: float, samples: list[Sample]) -> None:
    """Requests to one gateway over one connection, on a schedule, until cancelled or the gateway is gone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(fleet.gateways[index].url.rpartition(":")[2]))
    due = time.monotonic() + index / per_second / GATEWAYS
    try:
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += 1 / per_second
            began = time.monotonic()
            writer.write(request(key, "127.0.0.1"))
            code = await status(reader)
            samples.append(Sample(began, time.monotonic(), code, index))
    except (ConnectionError, asyncio.IncompleteReadError):
        return
    finally:
        writer.close()


@asynccontextmanager
async def load(fleet: Fleet, key: str, per_second: float, each: int = 1) -> Any:
    """The samples of `each` connections to every gateway, `per_second` on each, as they come."""
    samples: list[Sample] = []
    tasks = [
        asyncio.create_task(send(fleet, index, key, per_second, samples))
        for index in range(len(fleet.gateways))
        for _ in range(each)
    ]
    try:
        yield samples
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# -- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "per_minute", "burst"),
    [
        pytest.param(5, 6000, 50, id="five seconds"),
        pytest.param(60, 600, 20, id="a minute", marks=[pytest.mark.redis, pytest.mark.timeout(300)]),
    ],
)
async def test_four_gateways_admit_the_configured_rate_together(
    fleet: Fleet, seconds: int, per_minute: int, burst: int
) -> None:
    """Burst subtracted, within 1 %: from the first admission to the last what the rate gives in that time."""
    rate = per_minute / 60
    for attempt in range(3):
        options = ("--rpm", str(per_minute), "--burst", str(burst))
        key = await asyncio.to_thread(fleet.key, f"rate-{seconds}-{attempt}", *options)
        before = fleet.failures()
        async with load(fleet, key, rate * 2 / GATEWAYS / 2, each=2) as samples:
            await asyncio.sleep(seconds)
        if fleet.failures() == before:  # else this machine stood still for so long that the store was given up
            break
    admitted = sorted(sample.ended for sample in samples if sample.status == 200)
    assert {sample.status for sample in samples} == {200, 429}
    expected = rate * (admitted[-1] - admitted[0])
    print(f"{len(admitted)} admitted, {len(admitted) - burst} without the burst, {expected:.1f} by the rate")
    assert abs(len(admitted) - burst - expected) <= max(0.01 * expected, 2)
    assert {sample.gateway for sample in samples if sample.status == 200} == set(range(GATEWAYS))


@pytest.mark.parametrize("fault", ["kill", "hang"])
async def test_store_outage_costs_one_wait_and_ends_by_itself(fleet: Fleet, fault: str) -> None:
    """Meanwhile each gateway admits its share, a quarter; nobody gets an error; then they count together again."""
    await asyncio.to_thread(eventually, fleet.all_counted, 30)
    key = await asyncio.to_thread(fleet.key, f"outage-{fault}", "--rpm", "2400", "--burst", "8")
    async with load(fleet, key, 20) as samples:
        await asyncio.sleep(1.5)
        calm = time.monotonic()
        (fleet.redis.kill if fault == "kill" else fleet.redis.hang)()
        await asyncio.sleep(2)
        over = time.monotonic()
        (fleet.redis.start if fault == "kill" else fleet.redis.go_on)()
        await asyncio.to_thread(eventually, fleet.up, 5)
        back = time.monotonic()
        await asyncio.sleep(1)
    assert {sample.status for sample in samples} <= {200, 429}
    usual, noise = pace([sample for sample in samples if sample.ended < calm])
    during = [sample for sample in samples if calm <= sample.ended and sample.began < over]
    slowest = max(sample.ended - sample.began for sample in during)
    print(f"usual {usual * 1000:.1f} ms, slowest {slowest * 1000:.1f} ms, back after {(back - over) * 1000:.0f} ms")
    assert slowest < usual + 4 * STORE_TIMEOUT + noise
    long = max(STORE_TIMEOUT, usual + noise)
    waited = Counter(sample.gateway for sample in during if sample.ended - sample.began > long)
    assert max(waited.values(), default=0) <= 3  # of 8, if each waited: one, and this machine may stand still
    for index in range(GATEWAYS):
        alone = [sample for sample in during if sample.gateway == index and sample.status == 200]
        assert len(alone) <= 2 + 10 * (over - calm) + 3
        assert len(alone) >= 10
    together = [sample for sample in samples if sample.began > back and sample.status == 200]
    assert len(together) <= 8 + 40 * (samples[-1].ended - back) + 2


# The default of rate_limit.store_timeout, which the first requests of an outage wait. Seconds.
STORE_TIMEOUT = 0.25


def pace(calm: list[Sample]) -> tuple[float, float]:
    """The usual time of a request, and the delay that the machine's other processes may add, from measured ones."""
    times = [sample.ended - sample.began for sample in calm]
    return statistics.median(times), 0.05 + 3 * max(times)


async def test_the_others_go_on_when_one_gateway_is_killed(simulator: str, tmp_path: Path) -> None:
    """The other gateways take over the whole rate at once."""
    with running_fleet(tmp_path, simulator, 2) as fleet:
        key = await asyncio.to_thread(fleet.key, "survivor", "--rpm", "1200", "--burst", "3")
        async with load(fleet, key, 60) as samples:
            await asyncio.sleep(0.7)
            psutil.Process(fleet.gateways[0].pid).kill()
            killed = time.monotonic()
            await asyncio.sleep(1.5)
        admitted = [sample.ended for sample in samples if sample.status == 200 and sample.ended > killed + 0.2]
        assert {sample.status for sample in samples} == {200, 429}
        expected = 20 * (admitted[-1] - admitted[0])
        moments = sorted(sample.ended for sample in samples if admitted[0] <= sample.ended <= admitted[-1])
        pauses = (later - earlier for earlier, later in pairwise(moments))
        unused = sum(max(0.0, 20 * pause - 3) for pause in pauses)  # of the rate, while this machine stood still
        assert expected - unused - 4 <= len(admitted) <= expected + 4


@pytest.mark.redis
@pytest.mark.timeout(120)
async def test_slots_of_a_killed_gateway_come_back(simulator: str, tmp_path: Path) -> None:
    """Within the 15 s that a lease lasts; those of a living one are kept for as long as its request."""
    with running_fleet(tmp_path, simulator, 2) as fleet:
        key = await asyncio.to_thread(fleet.key, "slots", "--rpm", "100000", "--concurrency", "2")
        dying, living = fleet.gateways
        slow = asyncio.create_task(ask(dying, key, max_tokens=600, ignore_eos=True))
        lasting = asyncio.create_task(ask(living, key, max_tokens=250, ignore_eos=True))  # 25 s
        await asyncio.sleep(0.5)
        assert await ask(living, key) == 429
        psutil.Process(dying.pid).kill()
        killed = time.monotonic()
        while await ask(living, key) == 429:
            assert time.monotonic() - killed < 16
            await asyncio.sleep(0.1)
        took = time.monotonic() - killed
        print(f"the slot was free after {took:.1f} s")
        assert took > 5
        first = asyncio.create_task(ask(living, key, max_tokens=30, ignore_eos=True))
        await asyncio.sleep(0.3)
        assert await ask(living, key) == 429  # the living one's slot was not lost meanwhile
        assert await first == 200
        assert await lasting == 200
        await asyncio.gather(slow, return_exceptions=True)


@pytest.mark.redis
@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", ["kill", "hang"])
@pytest.mark.parametrize(("mode", "statuses"), [("allow", {200}), ("deny", {503})])
async def test_an_outage_without_a_share(
    simulator: str, tmp_path: Path, mode: str, statuses: set[int], fault: str
) -> None:
    """Every request or none, and each waits at most `store_timeout` for it."""
    with running_fleet(tmp_path, simulator, 2, on_store_failure=mode) as fleet:
        key = await asyncio.to_thread(fleet.key, "outage", "--rpm", "60", "--burst", "1")
        async with load(fleet, key, 20) as samples:
            await asyncio.sleep(1)
            calm = time.monotonic()
            (fleet.redis.kill if fault == "kill" else fleet.redis.hang)()
            await asyncio.sleep(2)
            over = time.monotonic()
            (fleet.redis.start if fault == "kill" else fleet.redis.go_on)()
            await asyncio.to_thread(eventually, fleet.up, 5)
            await asyncio.sleep(1)
        usual, noise = pace([sample for sample in samples if sample.ended < calm])
        during = [sample for sample in samples if calm <= sample.began and sample.ended < over]
        assert {sample.status for sample in during if sample.began > calm + STORE_TIMEOUT + noise} == statuses
        slowest = max(sample.ended - sample.began for sample in during)
        print(f"usual {usual * 1000:.1f} ms, slowest {slowest * 1000:.1f} ms")
        assert slowest < usual + STORE_TIMEOUT + noise
        assert {sample.status for sample in samples if sample.began > over + 2.5} <= {200, 429}
