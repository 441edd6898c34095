"""aiaas.proxy.usage: settled tokens are in the store within a second, whatever the store does meanwhile."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from aiaas.limits.usage import OTHER_USERS, KeptUsage, UsageKey, UsageStoreError, UsageSums, day_of
from aiaas.limits.usage_sqlite import SqliteUsage
from aiaas.proxy import usage as module
from aiaas.proxy.request.price import Charge
from aiaas.proxy.tasks import Keeper
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.telemetry.record import Record
from aiaas.proxy.usage import USAGE_FLUSH_INTERVAL, UsageRecorder, usage_store
from tests.fakes.vllm import FakeVllm, Send, json_answer
from tests.proxy.conftest import StartGateway, config_of, plan_of
from tests.waiting import until

NOON = 20_780 * 86400 + 43_200.0
REPORTED = Charge(3, 4, estimated=False, ran=True)


class ListStore:
    """Keeps the batches that it was given; fails as long as `fault` is set."""

    def __init__(self) -> None:
        self.batches: dict[str, KeptUsage] = {}
        self.attempts: list[str] = []
        self.fault: str | None = None
        self.closed = False
        self.wait = asyncio.Event()
        self.wait.set()

    async def add(self, batch: str, usage: KeptUsage) -> None:
        self.attempts.append(batch)
        await self.wait.wait()
        if self.fault is not None:
            raise UsageStoreError(self.fault)
        assert batch not in self.batches
        self.batches[batch] = usage

    async def read(self, first_day: int, *, by_user: bool = False) -> KeptUsage:
        return {at: sums for at, sums in self.sums().items() if bool(at.user) is by_user}

    def sums(self) -> KeptUsage:
        """All batches together."""
        whole: dict[UsageKey, UsageSums] = {}
        for batch in self.batches.values():
            for key, sums in batch.items():
                known = whole.setdefault(key, UsageSums(sums.name))
                for field in sums.__struct_fields__[1:-1]:
                    setattr(known, field, getattr(known, field) + getattr(sums, field))
                known.last_used = sums.last_used
        return whole

    async def last_used(self) -> Mapping[str, int]:
        return {}

    async def close(self) -> None:
        self.closed = True


class Bench:
    """A recorder in front of a ListStore, with its log and its metrics."""

    def __init__(self) -> None:
        self.store = ListStore()
        self.lines: list[bytes] = []
        self.log = JsonLog(self.lines.append, lambda: 0.0, "debug")
        self.metrics = Metrics()
        self.recorder = UsageRecorder(self.store, self.log, self.metrics, interval=0.001)

    def settle(self, charge: Charge = REPORTED, at: float = NOON, **facts: Any) -> None:
        facts = {"key_id": "k1", "user": "alice", "model": "m"} | facts
        self.recorder.settled(Record("id", "/p", 0.0, "1.2.3.4", **facts), charge, at)

    def events(self) -> list[str]:
        self.log.flush()
        return [json.loads(line)["event"] for block in self.lines for line in block.splitlines()]

    def metric(self, name: str) -> float:
        samples = (line.rpartition(" ") for line in self.metrics.expose().decode().splitlines())
        return sum(float(value) for sample, _, value in samples if sample == name)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.recorder.run())
        try:
            yield
        finally:
            await self.recorder.close()
            await task


async def test_requests_are_summed_by_day_key_and_model() -> None:
    """Reported and estimated tokens apart; the day is that of the admission."""
    bench = Bench()
    bench.settle()
    bench.settle(Charge(10, 2, estimated=True, ran=True), NOON + 5)
    bench.settle(Charge(0, 0, estimated=False, ran=True))
    bench.settle(model="n", at=NOON + 43_200)
    bench.settle(key_id="k2", user="bob")
    async with bench.running():
        pass
    assert bench.store.sums() == {
        UsageKey(20_780, "k1", "m"): UsageSums("alice", 3, 3, 4, 10, 2, int(NOON) + 5),
        UsageKey(20_781, "k1", "n"): UsageSums("alice", 1, 3, 4, 0, 0, int(NOON) + 43_200),
        UsageKey(20_780, "k2", "m"): UsageSums("bob", 1, 3, 4, 0, 0, int(NOON)),
    }


async def test_requests_are_summed_by_user_where_there_are_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all models; users beyond the bound share one sum, and take no room from the sums of keys."""
    monkeypatch.setattr(module, "MAX_SUMS", 2)
    bench = Bench()
    for user, model in (("", "m"), ("u1", "m"), ("u1", "n"), ("u2", "m"), ("u3", "m"), ("u4", "m")):
        bench.settle(key_user=user, model=model)
    await bench.recorder.close()
    day = day_of(NOON)
    assert {at: sums.requests for at, sums in bench.store.sums().items()} == {
        UsageKey(day, "k1", "m"): 5,
        UsageKey(day, "k1", "n"): 1,
        UsageKey(day, "k1", "", "u1"): 2,
        UsageKey(day, "k1", "", "u2"): 1,
        UsageKey(day, "k1", "", OTHER_USERS): 2,
    }
    assert len(bench.store.batches) == 1


async def test_request_that_no_backend_saw_does_not_count() -> None:
    """Such a request was charged nothing."""
    bench = Bench()
    bench.settle(Charge(0, 0, estimated=False, ran=False))
    async with bench.running():
        pass
    assert bench.store.batches == {}


async def test_without_authentication_there_is_one_key() -> None:
    """Addresses would be any number of them, and are nobody's key."""
    bench = Bench()
    bench.settle(key_id="-", user="192.0.2.1")
    bench.settle(key_id="-", user="192.0.2.2")
    async with bench.running():
        pass
    assert [(key.key_id, sums.name, sums.requests) for key, sums in bench.store.sums().items()] == [("-", "-", 2)]


async def test_failed_batch_is_retried_and_counted_once() -> None:
    """Settlements made meanwhile follow it. One line says that the outage began, one that it has ended."""
    bench = Bench()
    bench.store.fault = "disk full"
    async with bench.running():
        bench.settle()
        await until(lambda: len(bench.store.attempts) > 3)
        bench.settle()
        assert len(set(bench.store.attempts)) == 1
        bench.store.fault = None
        await until(lambda: len(bench.store.batches) == 2)
    assert bench.store.sums()[UsageKey(20_780, "k1", "m")].requests == 2
    assert bench.events() == ["usage_not_written", "usage_written_again"]
    assert bench.metric('aiaas_usage_batches_total{result="failure"}') >= 3
    assert bench.metric('aiaas_usage_batches_total{result="success"}') == 2
    assert bench.metric("aiaas_usage_lost_requests_total") == 0


async def test_a_slow_store_holds_nobody_up() -> None:
    """While the store takes its time, requests settle."""
    bench = Bench()
    bench.store.wait.clear()
    async with bench.running():
        bench.settle()
        await until(lambda: bench.store.attempts)
        for _ in range(100):
            bench.settle()
            await asyncio.sleep(0)
        assert len(bench.store.attempts) == 1  # it waits for us
        bench.store.wait.set()
    assert bench.store.sums()[UsageKey(20_780, "k1", "m")].requests == 101


async def test_closing_writes_what_is_left() -> None:
    """And closes the store; the interval is not waited for."""
    bench = Bench()
    bench.recorder = UsageRecorder(bench.store, bench.log, bench.metrics, interval=3600)
    async with bench.running():
        await asyncio.sleep(0)
        bench.settle()
    assert bench.store.sums()[UsageKey(20_780, "k1", "m")].requests == 1
    assert bench.store.closed


async def test_failed_last_write_is_logged() -> None:
    """The line has the number of lost sums."""
    bench = Bench()
    bench.store.fault = "disk full"
    async with bench.running():
        bench.settle()
        await until(lambda: bench.store.attempts)
        bench.settle()
        bench.settle(model="n")
    assert bench.events() == ["usage_not_written", "usage_lost"]
    assert bench.metric("aiaas_usage_lost_requests_total") == 3


async def test_sums_that_no_store_can_take_stop_nobody() -> None:
    """They are given up, with their number and the reason; later sums are written, as the keeper of tasks
    begins anew."""
    bench = Bench()
    failing = bench.store.add
    poison = 2**63

    async def add(batch: str, usage: KeptUsage) -> None:
        if any(sums.input_tokens >= poison for sums in usage.values()):
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        await failing(batch, usage)

    bench.store.add = add  # type: ignore[method-assign]
    keeper = Keeper(bench.log, 0.001)
    async with AsyncExitStack() as stack:
        keeper.keep(bench.recorder.run, "usage", stack)
        bench.settle(Charge(poison, 1, estimated=False, ran=True))
        await until(lambda: "task_failed" in bench.events())
        bench.settle()
        await until(lambda: bench.store.batches)
        await bench.recorder.close()
    assert bench.events() == ["usage_lost", "task_failed"]
    assert bench.metric("aiaas_usage_lost_requests_total") == 1
    assert bench.store.sums()[UsageKey(20_780, "k1", "m")].requests == 1
    assert bench.store.closed


async def test_closing_in_the_pause_after_a_failure_writes_the_rest() -> None:
    """The pause is not waited for."""
    bench = Bench()
    good = bench.store.add

    async def add(batch: str, usage: KeptUsage) -> None:
        raise ZeroDivisionError

    bench.store.add = add  # type: ignore[method-assign]
    async with asyncio.timeout(5), AsyncExitStack() as stack:
        Keeper(bench.log, 30.0).keep(bench.recorder.run, "usage", stack)
        bench.settle()
        await until(lambda: "task_failed" in bench.events())
        bench.store.add = good  # type: ignore[method-assign]
        bench.settle(model="n")
        await bench.recorder.close()
    assert [key.model for key in bench.store.sums()] == ["n"]


async def test_counts_that_cannot_be_true_are_estimated(
    fake_vllm: FakeVllm, gateway: StartGateway, tmp_path: Path
) -> None:
    """`prompt_tokens: 2**63` of some backend ended the writing of usage until the next start."""
    running = await gateway(fake_vllm, usage=SqliteUsage(tmp_path / "usage.db"))
    task = asyncio.create_task(running.usage.run())
    client = await running.client()
    absurd = {"usage": {"prompt_tokens": 2**63, "completion_tokens": 5, "total_tokens": 2**63 + 5}}
    for usage in (absurd, {"usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}}):
        fake_vllm.play(Send(json_answer(usage)))
        assert (await client.post({"model": "m", "messages": [], "max_tokens": 9})).status == 200
    await running.usage.close()
    await task
    (sums,) = (await SqliteUsage(tmp_path / "usage.db").read(0)).values()
    assert (sums.requests, sums.input_tokens, sums.output_tokens) == (2, 7, 5)
    assert (0 < sums.estimated_input_tokens < 50, sums.estimated_output_tokens) == (True, 9)
    assert running.log_lines("internal_error") == running.log_lines("task_failed") == []


async def test_memory_is_bounded_while_the_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Existing sums go on; requests that need further ones are only counted."""
    monkeypatch.setattr(module, "MAX_SUMS", 2)
    bench = Bench()
    for model in ("a", "b", "c", "a", "d"):
        bench.settle(model=model)
    assert bench.metric("aiaas_usage_lost_requests_total") == 2
    async with bench.running():
        pass
    assert {key.model: sums.requests for key, sums in bench.store.sums().items()} == {"a": 2, "b": 1}


async def test_without_a_store_nothing_is_kept() -> None:
    """No sums, no thread, and closing does not wait."""
    bench = Bench()
    recorder = UsageRecorder(None, bench.log, bench.metrics)
    recorder.settled(Record("id", "/p", 0.0, "1.2.3.4"), REPORTED, NOON)
    async with asyncio.timeout(1):
        await recorder.run()
        await recorder.close()
    assert vars(recorder)["_sums"] == {}


def test_settling_costs_next_to_nothing() -> None:
    """A generous limit (settling takes 0.6 us): waiting or opening a file would be far beyond it."""
    bench = Bench()
    record = Record("id", "/p", 0.0, "1.2.3.4", key_id="k", user="u", model="m")
    took = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(10_000):
            bench.recorder.settled(record, REPORTED, NOON)
        took.append(time.perf_counter() - began)
    assert min(took) / 10_000 < 10e-6


def test_a_crash_loses_a_second_at_most() -> None:
    """Half of it is the interval, half is left for the disk."""
    assert USAGE_FLUSH_INTERVAL <= 0.5


async def test_gateway_request_is_counted_as_it_was_settled(
    fake_vllm: FakeVllm, gateway: StartGateway, tmp_path: Path
) -> None:
    """Under the key and the public model name; a refused request does not appear."""
    running = await gateway(fake_vllm, usage=SqliteUsage(tmp_path / "usage.db"))
    task = asyncio.create_task(running.usage.run())
    fake_vllm.play(Send(json_answer({"usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}})))
    client = await running.client()
    assert (await client.post({"model": "alias", "messages": []})).status == 200
    assert (await client.post({"model": "none", "messages": []})).status == 404
    await running.usage.close()
    await task
    with closing(sqlite3.connect(tmp_path / "usage.db")) as connection:
        rows = connection.execute("SELECT name, model, requests, input_tokens, output_tokens FROM usage").fetchall()
    assert rows == [("alice", "alias", 1, 7, 5)]
    (key,) = await SqliteUsage(tmp_path / "usage.db").read(0)
    assert key.day in (day_of(time.time()), day_of(time.time() - 60))


def test_the_plan_says_where_usage_is_kept() -> None:
    """In the shared store where there is one, else in the file that it names, else nowhere."""
    assert usage_store(plan_of(config_of(["http://127.0.0.1:1"], {}, {}))) is None
    named = config_of(["http://127.0.0.1:1"], {}, {"monitoring": {"usage_file": "u.db"}})
    assert repr(usage_store(plan_of(named))) == "SqliteUsage('u.db')"
    shared = {"rate_limit": {"store": "redis://redis:6379/1"}, "monitoring": {"usage_file": "u.db"}}
    assert (
        repr(usage_store(plan_of(config_of(["http://127.0.0.1:1"], {}, shared)))) == "RedisUsage(redis://redis:6379/1)"
    )
