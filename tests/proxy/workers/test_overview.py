"""aiaas.proxy.workers.overview: one admin port for all workers. (Real workers: tests/cli/test_worker.py.)"""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import msgspec
import pytest

from aiaas.proxy.admin.port import Query
from aiaas.proxy.admin.rows import EncodedRow, Rows
from aiaas.proxy.workers.merge import Sums
from aiaas.proxy.workers.overview import Overview
from aiaas.proxy.workers.process import WorkerProcess
from tests.proxy.admin.test_merge import status


class Worker:
    """A worker that gives `found`, or never answers."""

    def __init__(self, number: int, found: object) -> None:
        self.number = number
        self.found = found
        self.serving = asyncio.Event()
        self.serving.set()

    async def look(self, _what: str, _query: Query) -> msgspec.Raw:
        if self.found is None:
            await asyncio.Event().wait()
        return msgspec.Raw(msgspec.msgpack.encode(self.found))


def overview(*workers: Worker) -> Overview:
    """The overview of these workers."""

    async def sums() -> Sums:
        return Sums()

    return Overview(lambda: cast(list[WorkerProcess], list(workers)), sums, lambda: status(workers=2, workers_up=1))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiaas.proxy.workers.overview.LOOK_PATIENCE", 0.1)


async def test_worker_that_hangs_is_left_out() -> None:
    """The others answer for it."""
    found = json.loads(await overview(Worker(1, status()), Worker(2, None)).status())
    assert (found["workers"], found["workers_up"], found["requests"]["in_flight"]) == (2, 1, 1)
    assert [note["text"] for note in found["attention"]] == ["1 of 2 workers are up."]


async def test_without_a_worker_the_lists_are_empty() -> None:
    """In the same form as ever."""
    alone = overview()
    assert json.loads(await alone.requests(Query())) == {"live": [], "ended": []}
    assert json.loads(await alone.refusals(Query())) == {"refusals": [], "by_code": {}}


async def test_rows_of_all_workers_are_merged() -> None:
    """And cut to the limit."""
    parts: list[Any] = [Rows({"live": [], "ended": [EncodedRow(number, b"%d" % number)]}) for number in (1, 2, 3)]
    found = await overview(*[Worker(number, part) for number, part in enumerate(parts)]).requests(Query(limit=2))
    assert json.loads(found) == {"live": [], "ended": [3, 2]}
