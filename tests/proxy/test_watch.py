"""aiaas.proxy.watch: every way in which a file changes is seen."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aiaas.proxy.watch import POLL_INTERVAL, FileWatch, signature


def rewrite(path: Path) -> None:
    path.write_text("other")


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def replace(path: Path) -> None:
    path.with_name("new").write_text("same")
    os.utime(path.with_name("new"), ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    path.with_name("new").rename(path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [rewrite, touch, replace, remove])
def test_each_change_has_another_signature(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Also a file renamed over it with the same length and time."""
    path = tmp_path / "file"
    path.write_text("same")
    before = signature(path)
    assert before == signature(path)
    change(path)
    assert signature(path) != before


def test_a_swapped_link_has_another_signature(tmp_path: Path) -> None:
    """Even where both folders hold the very same file."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "file").write_text("x")
    os.link(tmp_path / "one" / "file", tmp_path / "two" / "file")
    data = tmp_path / "..data"
    data.symlink_to("one")
    before = signature(data / "file")
    data.unlink()
    data.symlink_to("two")
    assert signature(data / "file") != before


def test_what_is_not_there_has_none(tmp_path: Path) -> None:
    """No exception, whatever is in the way."""
    (tmp_path / "file").write_text("")
    assert signature(tmp_path / "none") is None
    assert signature(tmp_path / "file" / "below") is None
    (tmp_path / "loop").symlink_to("loop")
    assert signature(tmp_path / "loop") is None


def test_a_change_is_seen_soon_enough_for_two_seconds() -> None:
    """Which revoking a key may take; reading 10,000 keys takes some of it."""
    assert POLL_INTERVAL <= 0.5


async def test_a_wake_counts_as_a_change_and_a_crash_does_not_end_the_watching(tmp_path: Path) -> None:
    """The crash is handed over, so that it is logged."""
    calls = asyncio.Queue[int]()
    crashes: list[BaseException] = []

    async def changed() -> None:
        calls.put_nowait(1)
        if not crashes:
            raise ZeroDivisionError

    watch = FileWatch(tmp_path / "file", changed, crashes.append)
    task = asyncio.create_task(watch.run())
    for _ in range(2):
        watch.wake()
        await asyncio.wait_for(calls.get(), 10)
    assert [type(error) for error in crashes] == [ZeroDivisionError]
    (tmp_path / "file").write_text("x")
    await asyncio.wait_for(calls.get(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


async def test_another_file_is_watched_from_its_present_state_on(tmp_path: Path) -> None:
    """Whoever says `follow` has just read it."""
    calls = asyncio.Queue[int]()

    async def changed() -> None:
        calls.put_nowait(1)

    (tmp_path / "new").write_text("x")
    watch = FileWatch(tmp_path / "old", changed, lambda _error: None)
    watch.follow(tmp_path / "new")
    task = asyncio.create_task(watch.run())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(calls.get(), 0.7)
    (tmp_path / "new").write_text("xy")
    await asyncio.wait_for(calls.get(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
