"""Usage in an SQLite file that several processes share.

Rules:
  1. WAL: readers and the gateway never wait for each other. `synchronous=FULL`: committed usage outlasts a power cut.
  2. One transaction for each batch. A writer that finds the file locked waits BUSY seconds, also for the switch to
     WAL: there SQLite answers "database is locked" at once, as two gateways that opened a new file together saw.
  3. After any error the connection is dropped and the next call opens the file anew, so that a disk that has room
     again, or a file that was put in the place of a damaged one, is all it takes.
  4. Each batch looks whether the file that is open is still the one at its path: SQLite would go on writing into a file
     that was removed, or whose folder was, until the next start, and nobody could read it.
  5. Another program's database is refused, never written to (SQLite's application_id tells).

All of this blocks, so it runs in a thread of its own.

The tables are for people too: `sqlite3 usage.db 'SELECT * FROM usage'`, and `usage_by_user`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from aiaas.limits.usage import (
    MOST_USERS_A_DAY,
    OTHER_USERS,
    KeptUsage,
    UsageKey,
    UsageStoreError,
    UsageSums,
    day_from,
    day_text,
)

BUSY: Final = 2.0  # seconds; another worker's transaction takes milliseconds
BUSY_POLL: Final = 0.005  # seconds between two tries of what SQLite does not wait for by itself
APPLICATION_ID: Final = 0x61696173  # "aias"
TABLE_VERSION: Final = 1  # of the table; in user_version

_COUNTS: Final = "requests, input_tokens, output_tokens, estimated_input_tokens, estimated_output_tokens, last_used"
_SUM: Final = """ON CONFLICT (day, key_id, {of}) DO UPDATE SET
    name = excluded.name,
    requests = requests + excluded.requests,
    input_tokens = input_tokens + excluded.input_tokens,
    output_tokens = output_tokens + excluded.output_tokens,
    estimated_input_tokens = estimated_input_tokens + excluded.estimated_input_tokens,
    estimated_output_tokens = estimated_output_tokens + excluded.estimated_output_tokens,
    last_used = max(last_used, excluded.last_used)"""


class _Table(NamedTuple):
    """A table of sums by day, key and one thing more."""

    name: str
    of: str

    @property
    def create(self) -> str:
        return f"""CREATE TABLE IF NOT EXISTS {self.name} (
    day TEXT NOT NULL,
    key_id TEXT NOT NULL,
    {self.of} TEXT NOT NULL,
    name TEXT NOT NULL,
    requests INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    estimated_input_tokens INTEGER NOT NULL,
    estimated_output_tokens INTEGER NOT NULL,
    last_used INTEGER NOT NULL,
    PRIMARY KEY (day, key_id, {self.of})
) WITHOUT ROWID"""

    @property
    def add(self) -> str:
        into = f"INSERT INTO {self.name} (day, key_id, {self.of}, name, {_COUNTS})"
        return f"{into} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) {_SUM.format(of=self.of)}"

    @property
    def read(self) -> str:
        columns = f"day, key_id, {self.of}, name, {_COUNTS}"
        return f"SELECT {columns} FROM {self.name} WHERE day >= ? ORDER BY day, name, {self.of}"


_BY_MODEL: Final = _Table("usage", "model")
_BY_USER: Final = _Table("usage_by_user", "user")
_USERS_OF_DAY: Final = "SELECT user FROM usage_by_user WHERE day = ? AND key_id = ?"


class SqliteUsage:
    """`aiaas.limits.usage.UsageStore` in one file, which the first `add` makes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None  # the writer's file: device and inode
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aiaas-usage")

    def __repr__(self) -> str:
        return f"SqliteUsage({str(self._path)!r})"

    async def add(self, batch: str, usage: KeptUsage) -> None:
        """As in `UsageStore.add`; a transaction that failed was rolled back, so the batch's name is not needed."""
        del batch
        await self._in_thread(self._add, usage)

    async def read(self, first_day: int, *, by_user: bool = False) -> KeptUsage:
        """As in `UsageStore.read`. A file that is not there yet holds nothing, nor one without this table."""
        table = _BY_USER if by_user else _BY_MODEL
        there = "SELECT 1 FROM sqlite_master WHERE name = ?"
        if by_user and not await self._in_thread(self._query, there, (table.name,)):
            return {}
        return {
            UsageKey(day_from(day), key_id, *(("", of) if by_user else (of,))): UsageSums(name, *sums)
            for day, key_id, of, name, *sums in await self._in_thread(self._query, table.read, (day_text(first_day),))
        }

    async def last_used(self) -> Mapping[str, int]:
        """As in `UsageStore.last_used`."""
        query = "SELECT key_id, max(last_used) FROM usage GROUP BY key_id"
        return dict(await self._in_thread(self._query, query, ()))

    async def close(self) -> None:
        """As in `UsageStore.close`; closing the last connection puts the log back into the file."""
        try:
            await self._in_thread(self._drop_writer)
        finally:
            self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    # -- in the thread --------------------------------------------------------------------------------------------

    def _add(self, usage: KeptUsage) -> None:
        try:
            with self._translated():
                if self._writer is not None and self._opened != self._at_path():
                    self._drop_writer()
                if self._writer is None:
                    self._writer = self._open_to_write()
                    self._opened = self._at_path()
                with self._writer as transaction:
                    transaction.execute("BEGIN IMMEDIATE")
                    transaction.executemany(
                        _BY_MODEL.add, [_row(at, sums) for at, sums in usage.items() if not at.user]
                    )
                    transaction.executemany(_BY_USER.add, _rows_by_user(transaction, usage))
        except UsageStoreError:
            self._drop_writer()
            raise

    def _at_path(self) -> tuple[int, int] | None:
        """Device and inode of the file at the path; None where it does not exist."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._translated():
                writer.close()

    def _open_to_write(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=BUSY, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")  # two workers that start at once: one makes the table
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version={TABLE_VERSION}")
                connection.execute(_BY_MODEL.create)
            self._check_owner(connection)
            connection.execute(_BY_USER.create)  # a file of an earlier version has none
            connection.execute("COMMIT")
            switch_to_wal(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _query(self, query: str, parameters: tuple[str, ...]) -> list[Any]:
        """Run a query on a connection that cannot write."""
        with self._translated():
            if not self._path.exists() or not self._path.stat().st_size:  # or just being made
                return []
            # Beside a file whose log was put back and that lies in a folder that may not be written, SQLite cannot make
            # the shared memory that WAL needs; there nobody writes, so `immutable` holds.
            logged = self._path.with_name(self._path.name + "-wal").exists()
            for mode in ("ro",) if logged else ("ro", "ro&immutable=1"):
                try:
                    uri = f"file:{quote(str(self._path.absolute()))}?mode={mode}"
                    with closing(sqlite3.connect(uri, uri=True, timeout=BUSY)) as connection:
                        self._check_owner(connection)
                        return connection.execute(query, parameters).fetchall()
                except sqlite3.OperationalError as error:
                    failed = error
            raise failed

    def _check_owner(self, connection: sqlite3.Connection) -> None:
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if owner != APPLICATION_ID:
            raise UsageStoreError(f"{self._path} is the database of another program; name another file")
        if version != TABLE_VERSION:
            raise UsageStoreError(f"{self._path} was made by another version of aiaas; name another file")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # locked, full, read-only, not to be opened
            raise UsageStoreError(f"{self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            message = f"{self._path} is damaged or not a database ({error}); move it away to let aiaas create a new one"
            raise UsageStoreError(message) from error
        except OSError as error:
            raise UsageStoreError(f"{self._path}: {error.strerror}") from error


def _row(at: UsageKey, sums: UsageSums) -> tuple[str | int, ...]:
    return (
        day_text(at.day),
        at.key_id,
        at.user or at.model,
        sums.name,
        sums.requests,
        sums.input_tokens,
        sums.output_tokens,
        sums.estimated_input_tokens,
        sums.estimated_output_tokens,
        sums.last_used,
    )


def _rows_by_user(transaction: sqlite3.Connection, usage: KeptUsage) -> Iterator[tuple[str | int, ...]]:
    """The rows of users: those beyond MOST_USERS_A_DAY become OTHER_USERS."""
    known: dict[tuple[int, str], set[str]] = {}
    for at, sums in usage.items():
        if not at.user:
            continue
        users = known.get((at.day, at.key_id))
        if users is None:
            found = transaction.execute(_USERS_OF_DAY, (day_text(at.day), at.key_id)).fetchall()
            users = known[at.day, at.key_id] = {user for (user,) in found}
        if at.user not in users and len(users) >= MOST_USERS_A_DAY:
            at = at._replace(user=OTHER_USERS)
        else:
            users.add(at.user)
        yield _row(at, sums)


def switch_to_wal(connection: sqlite3.Connection) -> None:
    """Set the journal mode, and wait up to BUSY seconds for other connections. Nothing to wait for where it is set."""
    deadline = time.monotonic() + BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(BUSY_POLL)
