"""The key file on disk: atomic, locked, private, and with a clear message for each error."""

import asyncio
import errno
import fcntl
import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from aiaas.errors import EnvironmentFault
from aiaas.keys import file as file_module
from aiaas.keys.file import (
    KeyFile,
    KeyFileAccessError,
    KeyFileError,
    KeyFileMissingError,
    edit_key_file,
    read_at_start,
    read_key_file,
)
from aiaas.keys.model import KeyLimits, KeyRecord
from aiaas.keys.records import render_records

HASH = "$argon2id$v=19$m=19456,t=2,p=1$EIKQUirlPMfYG+M8Z0ypVQ$ATyPSo0BDobFMGooFnTTOGdGszZtW1xnQfxn6aGP5jM"
ALICE = KeyRecord(id="aaaaaaaa", name="alice", hash=HASH, created=datetime(2026, 3, 1, tzinfo=UTC))
BOB = replace(ALICE, id="bbbbbbbb", name="bob")

EDITOR = """
import sys
from dataclasses import replace
from pathlib import Path
from aiaas.keys.file import edit_key_file, read_key_file
path, number = Path(sys.argv[1]), int(sys.argv[2])
template = read_key_file(path).records[0]
for step in range(8):
    with edit_key_file(path) as file:
        name = f"p{number}-{step}"
        file.records = (*file.records, replace(template, id=f"{number:04d}{step:04d}", name=name))
"""


def write(path: Path, *records: KeyRecord) -> Path:
    with edit_key_file(path) as file:
        file.records = records
    return path


def _clear_and_fail(file: KeyFile) -> None:
    file.records = ()
    raise ZeroDivisionError


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no mark", "byte order mark"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_a_file_from_an_editor_on_windows_is_read_and_edited(tmp_path: Path, mark: bytes, line_end: bytes) -> None:
    """A byte order mark and CR LF are read; an edit writes the file without them."""
    path = write(tmp_path / "keys.yaml", ALICE)
    path.write_bytes(mark + path.read_bytes().replace(b"\n", line_end))
    assert read_key_file(path).records == (ALICE,)
    with edit_key_file(path) as file:
        file.records = (*file.records, BOB)
    assert path.read_bytes() == render_records((ALICE, BOB)).encode()


def test_a_file_from_windows_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    """Its first line is known behind the mark, too."""
    path = write(tmp_path / "keys.yaml", ALICE)
    whole = path.read_bytes().replace(b"\n", b"\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + whole.removesuffix(b"...\r\n"))
    with pytest.raises(KeyFileError, match="cut short"):
        read_key_file(path)


@pytest.mark.parametrize(("umask", "of_lock"), [(0, 0o600), (0o277, 0o400)])
def test_a_new_file_is_private_and_whole(tmp_path: Path, umask: int, of_lock: int) -> None:
    """The first edit creates it with mode 0600 whatever the umask is, and only the lock file lies beside it."""
    before = os.umask(umask)
    try:
        path = write(tmp_path / "keys.yaml", ALICE)
    finally:
        os.umask(before)
    assert read_key_file(path).records == (ALICE,)
    modes = {entry.name: entry.stat().st_mode & 0o777 for entry in tmp_path.iterdir()}
    assert modes == {".keys.yaml.lock": of_lock, "keys.yaml": 0o600}


def test_a_failing_edit_changes_nothing(tmp_path: Path) -> None:
    """An exception inside the edit leaves the old file, byte for byte."""
    path = write(tmp_path / "keys.yaml", ALICE)
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), edit_key_file(path) as file:
        _clear_and_fail(file)
    assert path.read_bytes() == before


def test_an_edit_without_a_change_does_not_write(tmp_path: Path) -> None:
    """A comment that a person put there survives `revoke` of a revoked key."""
    path = tmp_path / "keys.yaml"
    path.write_text("# mine\n" + render_records([ALICE]))
    with edit_key_file(path):
        pass
    assert path.read_text().startswith("# mine\n")


def test_unreadable_record_is_not_written(tmp_path: Path) -> None:
    """A record that the reader would refuse never reaches the disk."""
    path = write(tmp_path / "keys.yaml", ALICE)
    with pytest.raises(KeyFileError, match="tokens_per_minute"), edit_key_file(path) as file:
        file.records = (replace(ALICE, limits=KeyLimits(tokens_per_minute=10**20)),)
    assert read_key_file(path).records == (ALICE,)


def test_a_disk_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while flushing is reported, and no scratch file stays behind."""
    path = write(tmp_path / "keys.yaml", ALICE)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileAccessError, match="No space left"):
        write(path, BOB)
    assert read_key_file(path).records == (ALICE,)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".keys.yaml.lock", "keys.yaml"]


def test_the_first_error_is_what_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the scratch file is gone when it is to be removed."""
    path = write(tmp_path / "keys.yaml", ALICE)

    def full(descriptor: int) -> None:
        for scratch in tmp_path.glob(".*.new"):
            scratch.unlink()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileAccessError, match="No space left"):
        write(path, BOB)


def test_folder_that_cannot_be_flushed_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems cannot; the file itself is flushed, and in its place by then."""
    path = write(tmp_path / "keys.yaml", ALICE)
    flushed: list[bool] = []

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        flushed.append(is_folder := stat.S_ISDIR(status.st_mode))
        assert status.st_size > 0
        if is_folder:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    write(path, BOB)
    assert (read_key_file(path).records, flushed) == ((BOB,), [False, True])


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    """Reading goes through a link, writing replaces the file behind it."""
    real = write(tmp_path / "real.yaml", ALICE)
    link = tmp_path / "keys.yaml"
    link.symlink_to(real)
    write(link, ALICE, BOB)
    assert link.is_symlink()
    assert read_key_file(real).records == (ALICE, BOB)


def test_a_missing_file_says_what_makes_one(tmp_path: Path) -> None:
    """A class of its own, since the gateway treats it apart."""
    with pytest.raises(KeyFileMissingError, match="aiaas keys create"):
        read_key_file(tmp_path / "keys.yaml")


def test_path_other_than_a_file_is_a_clear_error(tmp_path: Path) -> None:
    """A folder, a folder that does not exist, and bytes that are no text."""
    with pytest.raises(KeyFileAccessError, match="cannot be read: Is a directory"):
        read_key_file(tmp_path)
    with pytest.raises(KeyFileAccessError, match="its folder does not exist"):
        write(tmp_path / "none" / "keys.yaml", ALICE)
    for junk, place in ((b"version: 1\nkeys: \xff\xfe\n", "2:7"), (b"\n\xff", "2:1"), (b"\xff", "1:1")):
        (tmp_path / "junk").write_bytes(junk)
        with pytest.raises(KeyFileError, match=rf"junk:{place}: not UTF-8"):
            read_key_file(tmp_path / "junk")


def test_a_file_beyond_the_largest_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file named by mistake is not read to its end."""
    path = write(tmp_path / "keys.yaml", ALICE)
    size = path.stat().st_size
    monkeypatch.setattr(file_module, "MAX_FILE_SIZE", size)
    assert read_key_file(path).records == (ALICE,)
    monkeypatch.setattr(file_module, "MAX_FILE_SIZE", size - 1)
    with pytest.raises(KeyFileError, match=r"larger than \d+ MiB"):
        read_key_file(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
def test_a_file_without_permission_is_a_clear_error(tmp_path: Path) -> None:
    """Unreadable, and unwritable."""
    path = write(tmp_path / "keys.yaml", ALICE)
    path.chmod(0)
    with pytest.raises(KeyFileAccessError, match="Permission denied"):
        read_key_file(path)
    tmp_path.chmod(0o500)
    with pytest.raises(KeyFileAccessError, match="cannot be written here"):
        write(path, BOB)


def test_a_start_without_a_file_is_allowed(tmp_path: Path) -> None:
    """The first key may come later."""
    assert read_at_start(tmp_path / "keys.yaml") is None
    assert read_at_start(write(tmp_path / "keys.yaml", ALICE)) == (ALICE,)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("empty", "keys.yaml: it is empty"),
        ("broken", "keys.yaml:3:1: not YAML"),
        ("binary", "keys.yaml:2:4: not UTF-8"),
        ("folder", "keys.yaml: cannot be read: Is a directory"),
        ("dangling", "keys.yaml: a link to a file that does not exist"),
        ("loop", "keys.yaml: cannot be read: Too many levels"),
        ("below a file", "cannot be read: Not a directory"),
    ],
)
def test_a_start_with_an_unusable_file_is_refused(tmp_path: Path, damage: str, message: str) -> None:
    """Every valid key would get a 401. The message names the place of the fault."""
    path = tmp_path / "keys.yaml"
    match damage:
        case "empty":
            path.touch()
        case "broken":
            path.write_text("version: 1\nkeys: [\n")
        case "binary":
            path.write_bytes(b"version: 1\nab \xff")
        case "folder":
            path.mkdir()
        case "dangling":
            path.symlink_to("elsewhere.yaml")
        case "loop":
            path.symlink_to(path)
        case "below a file":
            path.touch()
            path = path / "keys.yaml"
    with pytest.raises(EnvironmentFault) as caught:
        read_at_start(path)
    assert message in caught.value.message
    assert caught.value.message.startswith("auth.keys_file: ")


def test_an_edit_through_a_dangling_link_makes_its_file(tmp_path: Path) -> None:
    """`keys create` can still fix a file that a start refuses."""
    path = tmp_path / "keys.yaml"
    path.symlink_to("elsewhere.yaml")
    write(path, ALICE)
    assert read_at_start(path) == (ALICE,)
    assert path.is_symlink()


def owners(folder: Path) -> set[tuple[int, int]]:
    """The owners and groups of all files in the folder."""
    return {(status.st_uid, status.st_gid) for status in (entry.stat() for entry in folder.iterdir())}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_keeps_the_files_owner_and_group(tmp_path: Path) -> None:
    """`sudo aiaas keys create`: the gateway can still read the file, and its user can still lock it."""
    path = write(tmp_path / "keys.yaml", ALICE)
    assert owners(tmp_path) == {(0, 0)}
    (tmp_path / ".keys.yaml.lock").unlink()
    os.chown(path, 12345, 23456)
    write(path, ALICE, BOB)
    assert owners(tmp_path) == {(12345, 23456)}
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_gives_no_file_away_that_it_did_not_make(tmp_path: Path) -> None:
    """The folder's owner could have put a link to root's file in the place of the lock."""
    path = write(tmp_path / "keys.yaml", ALICE)
    secret = tmp_path / "shadow"
    secret.touch()
    os.chown(path, 12345, 23456)
    lock = tmp_path / ".keys.yaml.lock"
    lock.unlink()
    lock.symlink_to(secret)
    with pytest.raises(KeyFileAccessError):
        write(path, ALICE, BOB)
    lock.unlink()
    lock.hardlink_to(secret)
    write(path, ALICE, BOB)
    assert secret.stat().st_uid == 0


def test_without_the_right_to_it_the_owner_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root in a container without CAP_CHOWN can still edit; other users do not even try to chown."""

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refused)
    path = write(tmp_path / "keys.yaml", ALICE)
    write(path, BOB)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "fchown", lambda *_: pytest.fail("asked without need"))
    write(path, ALICE)
    assert read_key_file(path).records == (ALICE,)


def test_a_broken_file_is_never_overwritten(tmp_path: Path) -> None:
    """An edit of a file that cannot be understood fails and leaves it for a person to fix."""
    path = tmp_path / "keys.yaml"
    path.write_text("version: 1\nkeys: [")
    with pytest.raises(KeyFileError):
        write(path, ALICE)
    assert path.read_text() == "version: 1\nkeys: ["


def test_an_editor_waits_for_another_no_longer_than_told(tmp_path: Path) -> None:
    """While another process holds the lock, the message says so."""
    path = write(tmp_path / "keys.yaml", ALICE)
    with (tmp_path / ".keys.yaml.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(KeyFileAccessError, match="another command"), edit_key_file(path, patience=0):
            pass
    with edit_key_file(path, patience=0) as file:
        assert file.records == (ALICE,)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOLCK, r"cannot lock .*/\.keys\.yaml\.lock: No locks"),
        (errno.EAGAIN, "another command is changing it"),
        (errno.EACCES, "another command is changing it"),
    ],
    ids=["no locks", "taken", "taken, of a network file system"],
)
def test_a_lock_that_is_not_had_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    """Without locks the error comes at once: waiting would not help."""

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = write(tmp_path / "keys.yaml", ALICE)
    monkeypatch.setattr(fcntl, "flock", refused)
    patience = 60.0 if number == errno.ENOLCK else 0.0
    with pytest.raises(KeyFileAccessError, match=message), edit_key_file(path, patience=patience):
        pytest.fail("it had the lock")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EROFS, "cannot be written here: Read-only file system; change a mounted Secret at its source"),
        (errno.EACCES, "cannot be written here: Permission denied"),
        (errno.EPERM, "cannot be written here: Operation not permitted"),
        (errno.ENOENT, "cannot be written: its folder does not exist"),
        (errno.ENOSPC, "cannot be written: No space left on device"),
    ],
    ids=["mounted read-only", "no permission", "forbidden", "no folder", "full"],
)
def test_a_file_that_cannot_be_replaced_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    """In one line, with a hint where the folder is the wrong one."""

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = write(tmp_path / "keys.yaml", ALICE)
    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(KeyFileAccessError) as caught:
        write(path, BOB)
    assert str(caught.value).removeprefix(f"{path}: ").partition(", not here")[0] == message
    assert read_key_file(path).records == (ALICE,)


def test_edits_leave_no_descriptor_open(tmp_path: Path) -> None:
    """Neither for the lock nor the file nor its folder."""
    path = write(tmp_path / "keys.yaml", ALICE)
    before = psutil.Process().num_fds()
    for records in ((BOB,), (ALICE,), (ALICE, BOB)):
        write(path, *records)
    assert psutil.Process().num_fds() == before


def test_processes_that_edit_at_once_lose_nothing(tmp_path: Path) -> None:
    """Four real processes add eight keys each; all are there, and a reader never saw half a file."""
    path = write(tmp_path / "keys.yaml", ALICE)
    editors = [subprocess.Popen([sys.executable, "-c", EDITOR, str(path), str(number)]) for number in range(4)]
    readings = 0
    while any(editor.poll() is None for editor in editors):
        assert read_key_file(path).records[0] == ALICE
        readings += 1
    assert [editor.returncode for editor in editors] == [0] * 4
    assert len(read_key_file(path).records) == 1 + 4 * 8
    assert readings > 5


async def test_reading_in_a_thread_leaves_the_loop_alone(tmp_path: Path) -> None:
    """While 3,000 records are read in a thread, the event loop's typical pause is a small part of that time."""
    path = tmp_path / "keys.yaml"
    path.write_text(render_records(replace(ALICE, id=f"{n:08d}", name=f"u{n}") for n in range(3000)))
    reading = asyncio.create_task(asyncio.to_thread(read_key_file, path))
    pauses = []
    while not reading.done():
        begin = time.perf_counter()
        await asyncio.sleep(0)
        pauses.append(time.perf_counter() - begin)
    assert len((await reading).records) == 3000
    assert sorted(pauses)[len(pauses) * 9 // 10] < sum(pauses) / 10
