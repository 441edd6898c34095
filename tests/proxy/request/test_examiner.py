"""aiaas.proxy.request.examiner: work on large bodies, beside the event loop."""

import asyncio
import threading

import pytest

from aiaas.errors import ClientError
from aiaas.proxy.request.examiner import Examiner


async def test_work_runs_in_another_thread_and_its_error_is_raised() -> None:
    """Any number of jobs at once."""
    examiner = Examiner(asyncio.get_running_loop())

    def refuse() -> None:
        raise ClientError(400, "invalid_json", "No.")

    threads = await asyncio.gather(*[examiner.run(threading.get_ident) for _ in range(5)])
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    with pytest.raises(ClientError, match="No"):
        await examiner.run(refuse)
    examiner.close()


async def test_caller_that_left_delays_nobody() -> None:
    """A client that leaves is gone at once; the next one gets its result."""
    examiner = Examiner(asyncio.get_running_loop())
    go = threading.Event()
    first = asyncio.create_task(examiner.run(go.wait))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(examiner.run(len, b"ab"))
    await asyncio.sleep(0)
    go.set()
    assert await second == 2
    examiner.close()
