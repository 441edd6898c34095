"""The SQLite file of usage: the conformance suite, and what becomes of a file that cannot be used."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import cast

import pytest

from aiaas.limits.usage import KeptUsage, UsageStoreError
from aiaas.limits.usage_sqlite import BUSY, SqliteUsage, switch_to_wal
from tests.limits.usage_conformance import ALICE, ANN, UsageConformance, sums


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "usage db?.sqlite"  # characters that a URI has to hide


@asynccontextmanager
async def opened(file: Path) -> AsyncIterator[SqliteUsage]:
    store = SqliteUsage(file)
    try:
        yield store
    finally:
        await store.close()


async def kept(file: Path) -> KeptUsage:
    """The rows that another reader finds."""
    async with opened(file) as store:
        return await store.read(0)


@pytest.fixture
async def store(file: Path) -> AsyncIterator[SqliteUsage]:
    async with opened(file) as store:
        yield store


class TestSqliteUsage(UsageConformance):
    """The suite that all stores of usage share."""

    @pytest.fixture
    async def other(self, file: Path) -> AsyncIterator[SqliteUsage]:
        async with opened(file) as store:
            yield store


async def test_a_reader_works_while_a_writer_has_the_file(store: SqliteUsage, file: Path) -> None:
    """Also in the middle of a writer's transaction: it sees what was there before."""
    await store.add("1", {ALICE: sums()})
    with closing(sqlite3.connect(file, isolation_level=None)) as busy:
        busy.execute("BEGIN IMMEDIATE")
        busy.execute("UPDATE usage SET requests = 99")
        assert await kept(file) == {ALICE: sums()}


class Switching:
    """A connection whose switch of the journal mode meets `errors` before it succeeds. SQLite says SQLITE_BUSY at once,
    without waiting, to one in 300 of the connections that open a new file together; nothing provokes that for sure."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.asked = 0

    def execute(self, statement: str) -> None:
        assert statement == "PRAGMA journal_mode=WAL"
        self.asked += 1
        if self.errors:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = self.errors.pop(0)
            raise error


def test_switch_to_wal_is_tried_again_while_the_file_is_busy() -> None:
    """Two gateways that made a new file at the same moment logged "database is locked"."""
    connection = Switching(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY)
    switch_to_wal(cast(sqlite3.Connection, connection))
    assert connection.asked == 3


def test_switch_to_wal_raises_any_other_error() -> None:
    """A full or read-only disk does not become a wait."""
    connection = Switching(sqlite3.SQLITE_READONLY)
    with pytest.raises(sqlite3.OperationalError):
        switch_to_wal(cast(sqlite3.Connection, connection))
    assert connection.asked == 1


async def test_file_of_an_earlier_version_gets_users(store: SqliteUsage, file: Path) -> None:
    """One without the table of users is read, and gets that table from the next writer."""
    await store.add("1", {ALICE: sums()})
    with closing(sqlite3.connect(file, isolation_level=None)) as earlier:
        earlier.execute("DROP TABLE usage_by_user")
    async with opened(file) as again:
        assert await again.read(0, by_user=True) == {}
        await again.add("2", {ALICE: sums(), ANN: sums()})
        assert await again.read(0, by_user=True) == {ANN: sums()}
        assert await again.read(0) == {ALICE: sums(2)}


async def test_reading_changes_nothing(store: SqliteUsage, file: Path) -> None:
    """Not even where there is no file."""
    assert await store.read(0) == {}
    assert not file.exists()


async def test_added_usage_outlasts_a_killed_writer(file: Path) -> None:
    """The process is gone the moment that `add` has returned."""
    code = (
        "import asyncio, os, sys, pathlib; from aiaas.limits.usage import *; "
        "from aiaas.limits.usage_sqlite import SqliteUsage; "
        "store = SqliteUsage(pathlib.Path(sys.argv[1])); "
        "asyncio.run(store.add('1', {UsageKey(1, 'k', 'm'): UsageSums('a', 7)})); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], timeout=30, check=False)
    assert done.returncode == -9
    assert [sums.requests for sums in (await kept(file)).values()] == [7]


async def test_a_file_in_a_folder_that_may_not_be_written_is_read(store: SqliteUsage, file: Path) -> None:
    """A copy on a read-only mount, where SQLite cannot make the shared memory of its log."""
    async with opened(file) as before:
        await before.add("1", {ALICE: sums()})
    file.chmod(0o400)
    file.parent.chmod(0o500)
    try:
        assert await kept(file) == {ALICE: sums()}
        if os.geteuid():  # nothing is read-only for root
            with pytest.raises(UsageStoreError, match=r"readonly|unable to open"):
                await store.add("2", {ALICE: sums()})
    finally:
        file.parent.chmod(0o700)


async def foreign(file: Path) -> None:
    """Another program's database."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE precious (x)")


async def newer(file: Path) -> None:
    """One of a later version."""
    async with opened(file) as store:
        await store.add("1", {ALICE: sums()})
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version=9")


async def torn(file: Path) -> None:
    """A database whose pages were overwritten."""
    async with opened(file) as store:
        await store.add("1", {ALICE: sums()})
    file.write_bytes(file.read_bytes()[:100] + b"\xff" * 8092)


async def text(file: Path) -> None:
    """A file of something else."""
    file.write_text("# notes\n" * 100)


async def folder(file: Path) -> None:
    """No file at all."""
    file.mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign, "another program"),
        (newer, "another version"),
        (torn, "damaged"),
        (text, "damaged or not a database"),
        (folder, r"unable to open|disk I/O error"),
    ],
    ids=["another program's", "newer", "torn", "text", "folder"],
)
async def test_a_file_that_is_not_ours_is_refused_and_left_alone(
    make: Callable[[Path], Awaitable[None]], message: str, store: SqliteUsage, file: Path
) -> None:
    """By writer and reader, with the file's name and what is wrong with it."""
    await make(file)
    before = file.read_bytes() if file.is_file() else None
    for attempt in (lambda: store.add("1", {ALICE: sums()}), lambda: store.read(0), store.last_used):
        with pytest.raises(UsageStoreError, match=message) as raised:
            await attempt()
        assert str(file) in str(raised.value)
    assert before == (file.read_bytes() if file.is_file() else None)


async def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """The gateway makes a file, no folders."""
    with pytest.raises(UsageStoreError, match="unable to open"):
        await SqliteUsage(tmp_path / "none" / "usage.db").add("1", {ALICE: sums()})


@pytest.mark.parametrize("gone", ["file", "folder"])
async def test_removed_file_or_folder_is_noticed(tmp_path: Path, gone: str) -> None:
    """SQLite would go on writing into what nobody can read any more."""
    home = tmp_path / "usage"
    home.mkdir()
    async with opened(home / "usage.db") as store:
        await store.add("1", {ALICE: sums()})
        if gone == "folder":
            home.rename(tmp_path / "elsewhere")
            with pytest.raises(UsageStoreError, match="unable to open database file"):
                await store.add("2", {ALICE: sums()})
            home.mkdir()
        else:
            for file in home.iterdir():
                file.unlink()
        await store.add("2", {ALICE: sums()})
        await store.add("3", {ALICE: sums()})
        assert (await kept(home / "usage.db"))[ALICE].requests == 2 * sums().requests


async def test_other_file_in_its_place_is_written(file: Path, tmp_path: Path) -> None:
    """A backup that was moved back, say; it keeps its own log beside it."""
    async with opened(tmp_path / "backup.db") as backup:
        await backup.add("1", {ALICE: sums()})
    async with opened(file) as store:
        await store.add("1", {ALICE: sums()})
        (tmp_path / "backup.db").rename(file)
        await store.add("2", {ALICE: sums()})
    assert (await kept(file))[ALICE].requests == 2 * sums().requests


async def test_a_full_disk_adds_nothing_and_is_over_when_there_is_room(store: SqliteUsage, file: Path) -> None:
    """A batch is in as a whole or not at all. (The size of the file is bounded here, as the disk's is.)"""
    full = {ALICE._replace(model=f"{number}" * 50): sums() for number in range(2000)}
    await store.add("1", {ALICE: sums()})

    def bound() -> None:
        assert store._writer is not None
        (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
        store._writer.execute(f"PRAGMA max_page_count={pages}")

    await store._in_thread(bound)
    with pytest.raises(UsageStoreError, match="full"):
        await store.add("2", full)
    assert await store.read(0) == {ALICE: sums()}
    await store.add("2", full)  # on a new connection, which has no such bound
    assert len(await store.read(0)) == 2001


async def test_a_lock_that_stays_is_an_error(store: SqliteUsage, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bounded wait, and nothing was added."""
    monkeypatch.setattr("aiaas.limits.usage_sqlite.BUSY", BUSY / 100)
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UsageStoreError, match="locked"):
            await store.add("1", {ALICE: sums()})
        holder.execute("ROLLBACK")
        await store.add("1", {ALICE: sums()})
        assert await store.read(0) == {ALICE: sums()}
