"""aiaas.proxy.tasks: tasks end together, and survive unexpected errors."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest

from aiaas.proxy.tasks import LONGEST_RESTART_PAUSE, Keeper, end_tasks, report_crash
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics


class Kept:
    """A keeper, its log, and work that fails a given number of times; then it waits."""

    def __init__(self, failures: int, error: Exception | None = None, first_pause: float = 0.001) -> None:
        self.lines: list[bytes] = []
        self.log = JsonLog(self.lines.append, lambda: 0.0, "info")
        self.keeper = Keeper(self.log, first_pause)
        self.left = failures
        self.error = error or OverflowError("Python int too large to convert to SQLite INTEGER")
        self.runs = 0
        self.waiting = asyncio.Event()
        self.cancelled = False

    async def work(self) -> None:
        """One run of the work."""
        self.runs += 1
        if self.left:
            self.left -= 1
            raise self.error
        self.waiting.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    def told(self) -> list[dict[str, Any]]:
        """The log's lines."""
        self.log.flush()
        return [json.loads(line) for line in b"".join(self.lines).splitlines()]


async def test_task_goes_on_after_what_nobody_foresaw() -> None:
    """Each failure is one line without a traceback, and is counted under the task's name."""
    kept, metrics = Kept(3), Metrics()
    metrics.register(kept.keeper)
    async with asyncio.timeout(5), AsyncExitStack() as stack:
        kept.keeper.keep(kept.work, "usage", stack)
        await kept.waiting.wait()
        assert 'aiaas_task_failures_total{task="usage"} 3.0' in metrics.expose().decode()
    told = kept.told()
    assert [(line["event"], line["level"], line["task"]) for line in told] == [("task_failed", "error", "usage")] * 3
    assert told[0]["error"] == "OverflowError('Python int too large to convert to SQLite INTEGER')"
    assert told[0]["at"].startswith("test_tasks.py:")
    assert "Traceback" not in json.dumps(told)
    assert (kept.runs, kept.cancelled) == (4, True)
    assert len(asyncio.all_tasks()) == 1


async def test_pauses_between_failures_grow() -> None:
    """Pauses double, up to a limit: a task that always fails takes no CPU and fills no disk."""
    kept = Kept(6, first_pause=0.001)
    async with asyncio.timeout(5), AsyncExitStack() as stack:
        kept.keeper.keep(kept.work, "lag", stack)
        await kept.waiting.wait()
    assert [line["again_in"] for line in kept.told()] == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032]
    kept = Kept(1, first_pause=LONGEST_RESTART_PAUSE)
    task = kept.keeper.start(kept.work, "lag")
    while not kept.told():
        await asyncio.sleep(0)
    await end_tasks([task])  # also in the middle of a pause
    assert kept.runs == 1


async def test_task_that_ends_or_is_cancelled_is_left_alone() -> None:
    """Neither is a failure."""
    kept = Kept(0)

    async def ends() -> None:
        pass

    async with asyncio.timeout(5):
        await kept.keeper.start(ends, "short")
        task = kept.keeper.start(kept.work, "long")
        await kept.waiting.wait()
        await end_tasks([task])
    assert task.cancelled()
    assert kept.told() == []


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), MemoryError(), OSError(28, "full")], ids=repr)
async def test_every_exception_is_survived(error: Exception) -> None:
    """Exceptions of every kind."""
    kept = Kept(1, error)
    async with asyncio.timeout(5), AsyncExitStack() as stack:
        kept.keeper.keep(kept.work, "watch", stack)
        await kept.waiting.wait()
    assert kept.runs == 2


async def test_crashed_task_is_logged_and_a_cancelled_one_is_not() -> None:
    """The line has its name and the traceback."""
    lines: list[bytes] = []
    log = JsonLog(lines.append, lambda: 0.0, "info")

    async def crash() -> None:
        raise ZeroDivisionError("oh")

    tasks = [asyncio.create_task(crash(), name="the one"), asyncio.create_task(asyncio.sleep(60), name="the other")]
    for task in tasks:
        task.add_done_callback(report_crash(log))
    await asyncio.wait(tasks[:1])
    await end_tasks(tasks)
    log.flush()
    (line,) = [json.loads(line) for line in b"".join(lines).splitlines()]
    assert (line["event"], line["task"]) == ("internal_error", "the one")
    assert "ZeroDivisionError: oh" in line["traceback"]
