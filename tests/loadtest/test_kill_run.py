"""The command of a run: when it begins, how it ended, and that nothing of it stays."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path

import pytest

from aiaas.loadtest.kill_run import KillOrder, KillRun
from aiaas.loadtest.sample import Kill
from tests.waiting import until


def killing(command: str, after: float = 0.0) -> tuple[KillRun, list[Kill]]:
    """A run whose clock counts its looks, and what it reported."""
    ended: list[Kill] = []
    looks = count(10)
    return KillRun(KillOrder(command, after), lambda: float(next(looks)), ended.append), ended


@pytest.mark.parametrize(
    ("command", "code"), [("true", 0), ("exit 7", 7), ("kill -9 $$", -9), ("/nowhere/at/all", 127)], ids=str
)
async def test_the_shell_runs_it_and_its_exit_code_is_noted(command: str, code: int) -> None:
    """With the moments when it began and ended."""
    run, ended = killing(command)
    await run.run()
    assert run.record == Kill(command, at=10.0, ended=11.0, code=code)
    assert ended == [run.record]


async def test_nothing_is_noted_before_it_begins() -> None:
    """A run that ends before its moment has none."""
    run, ended = killing("true", after=60.0)
    task = asyncio.create_task(run.run())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (run.record, ended) == (None, [])


async def test_a_command_that_still_runs_is_ended_with_its_children(tmp_path: Path) -> None:
    """Its record has no end."""
    pid = tmp_path / "pid"
    run, ended = killing(f"sleep 60 & echo $! > {pid}; wait")
    task = asyncio.create_task(run.run())
    await until(lambda: pid.exists() and pid.read_text().endswith("\n"))
    child = Path("/proc") / pid.read_text().strip()
    assert child.exists()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (run.record, ended) == (Kill(run.record.command if run.record else "", at=10.0), [])
    await until(lambda: not child.exists() or "zombie" in (child / "status").read_text())
