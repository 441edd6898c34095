"""aiaas.proxy.tasks: tasks end together and never die without a word."""

import asyncio
import json

from aiaas.proxy.log import JsonLog
from aiaas.proxy.tasks import end_tasks, first_of, report_crash


async def test_a_task_that_crashes_is_logged_and_one_that_is_cancelled_is_not() -> None:
    """With its name and the traceback."""
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


async def test_the_first_that_is_done_ends_the_waiting_for_all() -> None:
    """Or the time does."""
    event = asyncio.Event()
    event.set()
    async with asyncio.timeout(1):
        await first_of(event.wait(), asyncio.sleep(60), timeout=60)
        await first_of(asyncio.sleep(60), timeout=0.01)
    assert len(asyncio.all_tasks()) == 1
