"""aiaas.proxy.watch: every way in which a file changes is seen."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aiaas.proxy.watch import WATCH_INTERVAL, FileLooks, FileWatch, Signature, signature


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


def test_missing_file_has_no_signature(tmp_path: Path) -> None:
    """No exception, whatever the error."""
    (tmp_path / "file").write_text("")
    assert signature(tmp_path / "none") is None
    assert signature(tmp_path / "file" / "below") is None
    (tmp_path / "loop").symlink_to("loop")
    assert signature(tmp_path / "loop") is None


def test_a_change_is_seen_soon_enough_for_two_seconds() -> None:
    """Which revoking a key may take. It takes two looks; reading 10,000 keys takes some of it."""
    assert 2 * WATCH_INTERVAL <= 1.0


# The file at each look, as "inode:size" ("-": no file), and the looks at which the file is taken; it begins as 1:10.
LOOKS = {
    "nothing changes": ("1:10 1:10 1:10", []),
    "renamed over": ("2:20 2:20 2:20", [1]),
    "written at once": ("1:20 1:20 1:20", [1]),
    "written slowly": ("1:3 1:7 1:9 1:12 1:12 1:12", [4]),
    "removed and written slowly": ("- 2:3 2:7 2:7", [3]),
    "written as a new file slowly": ("2:3 2:7 2:9 2:9", [3]),
    "gone": ("- - -", [1]),
    "gone for a moment": ("- 1:10 1:10", []),
    "gone and back": ("- - 1:10 1:10", [1, 3]),
    "changed and changed back": ("1:20 1:10 1:10", []),
    "changed twice": ("1:20 1:20 1:30 1:30", [1, 3]),
    "renamed over at every look": ("2:20 3:30 4:40 4:40", [1, 3]),
    "two looks apart": ("2:20 2:20 3:30 3:30", [1, 3]),
    "one look is as before": ("1:20 1:10 1:20 1:20", [3]),
    "removed at every second look": ("- 2:20 - 3:30 3:30", [4]),
}


@pytest.mark.parametrize(("looks", "taken"), LOOKS.values(), ids=LOOKS)
def test_a_file_is_taken_when_it_stands_still(looks: str, taken: list[int]) -> None:
    """Two equal looks; or one that finds it replaced once more."""

    def seen(look: str) -> Signature:
        inode, _, size = look.partition(":")
        return None if look == "-" else ("/file", int(inode), int(size), 0)

    watched = FileLooks(seen("1:10"))
    assert [at for at, look in enumerate(looks.split()) if watched.has_changed(seen(look))] == taken


def test_a_link_that_is_swapped_at_every_look_is_taken() -> None:
    """Also where the file system gives the same inode to each file."""
    watched = FileLooks(("/..1/file", 1, 10, 0))
    assert not watched.has_changed(("/..2/file", 1, 10, 0))
    assert watched.has_changed(("/..3/file", 1, 10, 0))


async def test_a_wake_reads_at_once(tmp_path: Path) -> None:
    """A second look would find nothing new."""
    path = tmp_path / "file"
    path.write_text("")
    calls = asyncio.Queue[int]()

    async def changed() -> None:
        calls.put_nowait(1)

    watch = FileWatch([path], changed, lambda _error: None, interval=0.02)
    task = asyncio.create_task(watch.run())
    path.write_text("x")
    watch.wake()
    await asyncio.wait_for(calls.get(), 10)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(calls.get(), 0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_wake_is_a_change_and_a_crash_does_not_end_watching(tmp_path: Path) -> None:
    """The exception is handed over, so that it is logged."""
    calls = asyncio.Queue[int]()
    crashes: list[BaseException] = []

    async def changed() -> None:
        calls.put_nowait(1)
        if not crashes:
            raise ZeroDivisionError

    watch = FileWatch([tmp_path / "file"], changed, crashes.append)
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


async def test_change_before_the_watch_begins_is_seen(tmp_path: Path) -> None:
    """The watch's owner read the file before, and starts other things first."""
    calls = asyncio.Queue[int]()

    async def changed() -> None:
        calls.put_nowait(1)

    path = tmp_path / "file"
    path.write_text("x")
    watch = FileWatch([path], changed, lambda _error: None, interval=0.02)
    path.write_text("xy")
    task = asyncio.create_task(watch.run())
    await asyncio.wait_for(calls.get(), 10)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(calls.get(), 0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_another_file_is_watched_from_its_present_state_on(tmp_path: Path) -> None:
    """A caller of `follow` has just read it."""
    calls = asyncio.Queue[int]()

    async def changed() -> None:
        calls.put_nowait(1)

    (tmp_path / "new").write_text("x")
    watch = FileWatch([tmp_path / "old"], changed, lambda _error: None, interval=0.02)
    watch.follow([tmp_path / "new"])
    task = asyncio.create_task(watch.run())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(calls.get(), 0.2)
    (tmp_path / "new").write_text("xy")
    await asyncio.wait_for(calls.get(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
