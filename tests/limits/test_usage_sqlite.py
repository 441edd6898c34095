"""The SQLite file of usage: the conformance suite, and what becomes of a file that cannot be used."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from aiaas.limits.usage import UsageStoreError
from aiaas.limits.usage_sqlite import BUSY, SqliteUsage
from tests.limits.usage_conformance import ALICE, UsageConformance, sums


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "usage db?.sqlite"  # characters that a URI has to hide


@pytest.fixture
def store(file: Path) -> Iterator[SqliteUsage]:
    with closing(SqliteUsage(file)) as store:
        yield store


class TestSqliteUsage(UsageConformance):
    """The suite that all stores of usage share."""

    @pytest.fixture
    def other(self, file: Path) -> Iterator[SqliteUsage]:
        with closing(SqliteUsage(file)) as store:
            yield store


def test_a_reader_works_while_a_writer_has_the_file(store: SqliteUsage, file: Path) -> None:
    """Also in the middle of a writer's transaction: it sees what was there before."""
    store.add("1", {ALICE: sums()})
    with closing(sqlite3.connect(file, isolation_level=None)) as busy:
        busy.execute("BEGIN IMMEDIATE")
        busy.execute("UPDATE usage SET requests = 99")
        assert SqliteUsage(file).read(0) == {ALICE: sums()}


def test_reading_changes_nothing(store: SqliteUsage, file: Path) -> None:
    """Not even where there is no file."""
    assert store.read(0) == {}
    assert not file.exists()


def test_what_was_added_outlasts_a_killed_writer(file: Path) -> None:
    """The process is gone the moment that `add` has returned."""
    code = (
        "import os, sys, pathlib; from aiaas.limits.usage import *; from aiaas.limits.usage_sqlite import SqliteUsage; "
        "SqliteUsage(pathlib.Path(sys.argv[1])).add('1', {UsageKey(1, 'k', 'm'): UsageSums('a', 7)}); "
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], timeout=30, check=False)
    assert done.returncode == -9
    assert [kept.requests for kept in SqliteUsage(file).read(0).values()] == [7]


def test_a_file_in_a_folder_that_may_not_be_written_is_read(store: SqliteUsage, file: Path) -> None:
    """A copy on a read-only mount, where SQLite cannot make the shared memory of its log."""
    store.add("1", {ALICE: sums()})
    store.close()
    file.chmod(0o400)
    file.parent.chmod(0o500)
    try:
        assert SqliteUsage(file).read(0) == {ALICE: sums()}
        if os.geteuid():  # nothing is read-only for root
            with pytest.raises(UsageStoreError, match=r"readonly|unable to open"):
                store.add("2", {ALICE: sums()})
    finally:
        file.parent.chmod(0o700)


def foreign(file: Path) -> None:
    """Another program's database."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE precious (x)")


def newer(file: Path) -> None:
    """One of a later version."""
    with closing(SqliteUsage(file)) as store:
        store.add("1", {ALICE: sums()})
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version=9")


def torn(file: Path) -> None:
    """A database whose pages were overwritten."""
    with closing(SqliteUsage(file)) as store:
        store.add("1", {ALICE: sums()})
    file.write_bytes(file.read_bytes()[:100] + b"\xff" * 8092)


def text(file: Path) -> None:
    """A file of something else."""
    file.write_text("# notes\n" * 100)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign, "another program"),
        (newer, "another version"),
        (torn, "damaged"),
        (text, "damaged or no database"),
        (Path.mkdir, r"unable to open|disk I/O error"),
    ],
    ids=["another program's", "newer", "torn", "text", "folder"],
)
def test_a_file_that_is_not_ours_is_refused_and_left_alone(
    make: Callable[[Path], None], message: str, store: SqliteUsage, file: Path
) -> None:
    """By writer and reader, with the file's name and what is wrong with it."""
    make(file)
    before = file.read_bytes() if file.is_file() else None
    for attempt in (lambda: store.add("1", {ALICE: sums()}), lambda: store.read(0), store.last_used):
        with pytest.raises(UsageStoreError, match=message) as raised:
            attempt()
        assert str(file) in str(raised.value)
    assert before == (file.read_bytes() if file.is_file() else None)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """The gateway makes a file, no folders."""
    with pytest.raises(UsageStoreError, match="unable to open"):
        SqliteUsage(tmp_path / "none" / "usage.db").add("1", {ALICE: sums()})


def test_a_full_disk_adds_nothing_and_is_over_when_there_is_room(store: SqliteUsage, file: Path) -> None:
    """A batch is in as a whole or not at all. (The size of the file is bounded here, as the disk's is.)"""
    full = {ALICE._replace(model=f"{number}" * 50): sums() for number in range(2000)}
    store.add("1", {ALICE: sums()})
    writer = vars(store)["_writer"]
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(UsageStoreError, match="full"):
        store.add("2", full)
    assert store.read(0) == {ALICE: sums()}
    store.add("2", full)  # on a new connection, which has no such bound
    assert len(store.read(0)) == 2001


def test_a_lock_that_stays_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bounded wait, and nothing was added."""
    monkeypatch.setattr("aiaas.limits.usage_sqlite.BUSY", BUSY / 100)
    with closing(SqliteUsage(file)) as store, closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UsageStoreError, match="locked"):
            store.add("1", {ALICE: sums()})
        holder.execute("ROLLBACK")
        store.add("1", {ALICE: sums()})
        assert store.read(0) == {ALICE: sums()}
