"""The key file on disk: read it whole, or change it under a lock and replace it in one step.

Rules:
  1. A reader sees the old file or the new one, never a mixture: the new one is written beside it, flushed to the disk
     and renamed over it.
  2. Two editors lose nothing: a change is read, made and written while an exclusive lock is held. The lock is on a file
     of its own (`.keys.yaml.lock`, it stays), since a rename replaces the file that one would have locked.
  3. A link is followed: the file that it leads to is replaced and the link stays. A mounted Secret is a folder that
     cannot be written, and says so.
  4. Written with mode 0600; read whatever its mode is, as the gateway gets it mounted.
  5. Root keeps the file's owner and group: after `sudo aiaas keys create` the gateway can still read it.

All of this blocks. The gateway calls `read_key_file` in a thread: parsing lets go of the GIL often enough.
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
from aiaas.keys.records import parse_records, render_records
from aiaas.keys.tree import KeyFileError

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
    """The file system was in the way, whatever the file may hold."""


class KeyFileMissingError(KeyFileAccessError):
    """There is no key file at that path."""


@dataclass(slots=True)
class KeyFile:
    """The records of a key file, in its order. While it is being edited, `records` may be replaced."""

    path: Path
    records: tuple[KeyRecord, ...]


def read_key_file(path: Path) -> KeyFile:
    """Read a key file. Raises KeyFileMissingError, or KeyFileError where it cannot be read or understood."""
    return KeyFile(path, parse_records(_read_text(path), str(path)))


def read_at_start(path: Path) -> tuple[KeyRecord, ...] | None:
    """The records that a gateway starts with, None where there is no file yet.

    Raises EnvironmentFault where there is one that cannot be used, or a link to a file that does not exist.
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
    """Change a key file: the body replaces `records`, and what it left there is written at its end.

    A missing file begins empty and is created. Nothing is written where the body raises or changes nothing.
    patience  seconds to wait for another editor
    Raises KeyFileError where the file cannot be read, locked or written; the old file is then untouched.
    """
    real = Path(os.path.realpath(path))
    with _lock(real, str(path), patience):
        try:
            file = read_key_file(path)
        except KeyFileMissingError:
            file = KeyFile(path, ())
        before = file.records
        yield file
        if file.records != before:
            text = render_records(file.records)
            parse_records(text, str(path))  # what cannot be read back (a limit of 10**20) never reaches the disk
            _replace(real, text, str(path))


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_SIZE + 1)
    except FileNotFoundError:
        raise KeyFileMissingError(str(path), None, "there is no such file; `aiaas keys create NAME` makes it") from None
    except OSError as error:
        raise KeyFileAccessError(str(path), None, f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_SIZE:
        raise KeyFileError(str(path), None, f"larger than {MAX_FILE_SIZE >> 20} MiB; this is no key file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = (data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start))
        raise KeyFileError(str(path), place, "not UTF-8 text; this is no key file, or a damaged one") from None


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
        os.close(descriptor)  # which gives the lock back


def _open_lock(lock_path: Path, real: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW
    try:
        descriptor = os.open(lock_path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(lock_path, flags)
    # Only a lock file of our own making changes hands: another could be a link that leads root to any file.
    _give_to_owner(descriptor, real)
    return descriptor


def _give_to_owner(descriptor: int, real: Path) -> None:
    """Give a new file the owner and the group of the key file, where we are root and may."""
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
                raise KeyFileAccessError(source, None, f"cannot lock {lock_path}: {error.strerror}") from error
        if time.monotonic() >= give_up:
            raise KeyFileAccessError(source, None, f"another command is changing it (lock {lock_path}); try again")
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
    """Make the rename itself outlast a power cut. Some file systems know no such thing; there it is done anyway."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(source: str, error: OSError) -> KeyFileAccessError:
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        hint = "; a mounted Secret is changed at its source, not here" if error.errno == errno.EROFS else ""
        return KeyFileAccessError(source, None, f"cannot be written here: {error.strerror}{hint}")
    if error.errno == errno.ENOENT:
        return KeyFileAccessError(source, None, "cannot be written: its folder does not exist")
    return KeyFileAccessError(source, None, f"cannot be written: {error.strerror}")
