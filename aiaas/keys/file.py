"""The key file on disk: read it whole, or change it under a lock and replace it in one step.

Rules:
  1. A reader sees the old file or the new one, never a mixture: the new file is written beside it, flushed to the disk
     and renamed over it.
  2. Two editors lose nothing: each holds an exclusive lock while it reads, changes and writes. The lock is on a file
     of its own (`.keys.yaml.lock`, never deleted), since a rename would replace a locked key file.
  3. A link is followed: its target is replaced and the link stays. A mounted Secret's folder cannot be written, and the
  error says so.
  4. The file is written with mode 0600, and read whatever its mode is, since the gateway gets it mounted.
  5. Root keeps the file's owner and group: after `sudo aiaas keys create` the gateway can still read it.

All of this blocks. The gateway calls `read_key_file` in a thread: parsing releases the GIL often enough.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiaas.errors import EnvironmentFault
from aiaas.keys.model import KeyRecord
from aiaas.keys.records import each_record, parse_records
from aiaas.keys.rewrite import rewrite
from aiaas.keys.tree import KeyFileError
from aiaas.yamltree import Place

__all__ = [
    "KeyFile",
    "KeyFileAccessError",
    "KeyFileError",
    "KeyFileMissingError",
    "edit_key_file",
    "read_at_start",
    "read_key_file",
]

MAX_FILE_SIZE: Final = 64 * 1024 * 1024  # bytes; 10,000 keys take 3 MB
LOCK_PATIENCE: Final = 10.0  # seconds; an edit holds the lock for one read and one write
_LOCK_PAUSE: Final = 0.02  # seconds between two tries


class KeyFileAccessError(KeyFileError):
    """The file system refused access to the key file."""


class KeyFileMissingError(KeyFileAccessError):
    """The key file does not exist."""


@dataclass(slots=True)
class KeyFile:
    """The records of a key file, in its order. `edit_key_file` lets its body replace `records`."""

    path: Path
    records: tuple[KeyRecord, ...]


def read_key_file(path: Path) -> KeyFile:
    """Read a key file. Raises KeyFileMissingError, or KeyFileError for an unreadable or invalid file."""
    return KeyFile(path, parse_records(_read_text(path), str(path)))


def each_record_in(path: Path) -> Iterator[KeyRecord]:
    """Read the records one by one, as `each_record`. Raises as `read_key_file`."""
    return each_record(_read_text(path), str(path))


def read_at_start(path: Path) -> tuple[KeyRecord, ...] | None:
    """Read the records that a gateway starts with; None where the file does not exist yet.

    Raises EnvironmentFault for a file that cannot be used, and for a link to a file that does not exist.
    """
    try:
        return read_key_file(path).records
    except KeyFileMissingError:
        if path.is_symlink():
            raise EnvironmentFault(f"auth.keys_file: {path}: a link to a file that does not exist") from None
        return None
    except KeyFileError as error:
        raise EnvironmentFault(f"auth.keys_file: {error}") from error


@contextmanager
def edit_key_file(path: Path, *, patience: float = LOCK_PATIENCE) -> Iterator[KeyFile]:
    """Change a key file: the body replaces `records`, which are written when it ends.

    A missing file is created. Nothing is written where the body raises or changes nothing.
    patience  seconds to wait for another editor
    Raises KeyFileError where the file cannot be read, locked or written; the old file is then untouched.
    """
    real = Path(os.path.realpath(path))
    with _lock(real, str(path), patience):
        try:
            text = _read_text(path)
            before = parse_records(text, str(path))
        except KeyFileMissingError:
            text, before = "", ()
        file = KeyFile(path, before)
        yield file
        if file.records != before:
            _replace(real, rewrite(text, before, file.records, str(path)), str(path))


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_SIZE + 1)
    except FileNotFoundError:
        raise KeyFileMissingError(Place(str(path)), "file not found; `aiaas keys create NAME` creates it") from None
    except OSError as error:
        raise KeyFileAccessError(Place(str(path)), f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_SIZE:
        raise KeyFileError(Place(str(path)), f"larger than {MAX_FILE_SIZE >> 20} MiB; this is not a key file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
        place = Place(str(path), line, column)
        raise KeyFileError(place, "not UTF-8 text; this is not a key file, or it is damaged") from None


@contextmanager
def _lock(real: Path, source: str, patience: float) -> Iterator[None]:
    lock_path = real.with_name(f".{real.name}.lock")
    try:
        descriptor = _open_lock(lock_path, real)
    except OSError as error:
        raise _unwritable(source, error) from error
    try:
        _wait_for_lock(descriptor, lock_path, source, patience)
        yield
    finally:
        os.close(descriptor)  # this releases the lock


def _open_lock(lock_path: Path, real: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW
    try:
        descriptor = os.open(lock_path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(lock_path, flags)
    # Change the owner only of a lock file that we made: another could be a link that leads root to any file.
    _give_to_owner(descriptor, real)
    return descriptor


def _give_to_owner(descriptor: int, real: Path) -> None:
    """Give a new file the owner and the group of the key file, where we run as root."""
    if os.geteuid() == 0:
        with suppress(FileNotFoundError, PermissionError):
            status = real.stat()
            os.fchown(descriptor, status.st_uid, status.st_gid)


def _wait_for_lock(descriptor: int, lock_path: Path, source: str, patience: float) -> None:
    give_up = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise KeyFileAccessError(Place(source), f"cannot lock {lock_path}: {error.strerror}") from error
        if time.monotonic() >= give_up:
            raise KeyFileAccessError(Place(source), f"another command is changing it (lock {lock_path}); try again")
        time.sleep(_LOCK_PAUSE)


def _replace(real: Path, text: str, source: str) -> None:
    scratch = real.with_name(f".{real.name}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                os.fchmod(stream.fileno(), 0o600)  # whatever the umask says
                _give_to_owner(stream.fileno(), real)
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(scratch, real)
        except BaseException:
            with suppress(OSError):
                scratch.unlink()
            raise
        _flush_folder(real.parent)
    except OSError as error:
        raise _unwritable(source, error) from error


def _flush_folder(folder: Path) -> None:
    """Make the rename outlast a power cut. A file system that cannot flush a folder does not need it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(source: str, error: OSError) -> KeyFileAccessError:
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        hint = "; change a mounted Secret at its source" if error.errno == errno.EROFS else ""
        return KeyFileAccessError(Place(source), f"cannot be written here: {error.strerror}{hint}")
    if error.errno == errno.ENOENT:
        return KeyFileAccessError(Place(source), "cannot be written: its folder does not exist")
    return KeyFileAccessError(Place(source), f"cannot be written: {error.strerror}")
