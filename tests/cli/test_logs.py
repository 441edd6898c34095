"""`aiaas logs`: filters, pipes, and a file that is followed across its rotation."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from aiaas.cli.logs import followed, whole_lines
from aiaas.cli.main import run

REQUEST = {
    "time": "2026-11-23T07:16:08.250Z",
    "level": "info",
    "event": "inference_request",
    "request_id": "7be1c0ffee",
    "user": "alice",
    "key_id": "abcd1234",
    "model": "coder",
    "endpoint": "/v1/chat/completions",
    "status": 200,
    "duration_seconds": 0.5,
}
LINES = [
    REQUEST,
    REQUEST | {"user": "bob", "key_id": "bbbb0000", "model": "chat", "status": 429, "request_id": "1111"},
    REQUEST | {"user": None, "key_id": None, "status": 503, "request_id": "2222"},
    {"time": "2026-11-23T07:20:00.000Z", "level": "warning", "event": "endpoint_down", "reason": "refused"},
]
NOW = 1_795_418_460.0  # 07:21 on that day


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log with a line that is not the gateway's."""
    path = tmp_path / "gateway.log"
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in LINES) + b"a word of the kernel\n")
    return path


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], ["alice", "bob", "503", "endpoint_down", "a word of the kernel"]),
        (["--key", "alice"], ["alice"]),
        (["--key", "bbbb0000"], ["bob"]),
        (["--model", "coder"], ["alice", "503"]),
        (["--status", "429"], ["bob"]),
        (["--status", "4xx,5XX"], ["bob", "503"]),
        (["--id", "7be1"], ["alice"]),
        (["--since", "2m"], ["endpoint_down"]),
        (["--event", "endpoint_down"], ["endpoint_down"]),
        (["--key", "alice", "--status", "5xx"], []),
    ],
    ids=["all", "name", "key id", "model", "status", "classes", "id", "since", "event", "two"],
)
def test_filters_leave_only_matching_lines(
    log: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    found: list[str],
) -> None:
    """Each filter, and two of them together; a line of another program passes only without a filter."""
    monkeypatch.setattr("time.time", lambda: NOW)
    assert run(["logs", *options, str(log)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(found)
    assert all(word in line for word, line in zip(found, shown, strict=True))


def test_json_output_passes_the_lines_on(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For jq, byte for byte."""
    assert run(["logs", "--key", "alice", "-o", "json", str(log)]) == 0
    assert capsys.readouterr().out.encode() == msgspec.json.encode(REQUEST) + b"\n"


@pytest.mark.parametrize("status", ["999", "4x", "", "4xx,teapot"])
def test_a_status_that_is_none_is_wrong_usage(log: Path, capsys: pytest.CaptureFixture[str], status: str) -> None:
    """The message has the forms."""
    assert run(["logs", "--status", status, str(log)]) == 2
    assert "write for example 429, 4xx or 429,5xx" in capsys.readouterr().err


def test_a_pipe_is_read_from_stdin(log: Path) -> None:
    """`kubectl logs deploy/aiaas | aiaas logs`; no colours into a pipe."""
    command = [sys.executable, "-m", "aiaas", "logs"]
    done = subprocess.run(command, input=log.read_bytes(), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"11-23 07:16:08.250 200   alice")
    assert done.stdout.endswith(b"a word of the kernel\n")


def test_a_reader_that_leaves_makes_it_end_quietly(log: Path) -> None:
    """`aiaas logs FILE | head -1`: a closed pipe is not a fault."""
    log.write_bytes(log.read_bytes() * 5000)
    script = f"{sys.executable} -m aiaas logs {log} | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=60, check=False)
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""


def test_a_terminal_without_a_file_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for somebody to type a log."""
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    assert run(["logs"]) == 2
    assert "kubectl logs deploy/aiaas | aiaas logs" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3."""
    for options in ([], ["-f"]):
        assert run(["logs", *options, str(tmp_path / "none.log")]) == 3
        assert "none.log: No such file or directory" in capsys.readouterr().err


class Terminal(io.TextIOWrapper):
    """A stdout that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
    ids=["a terminal", "NO_COLOR", "empty NO_COLOR", "a dumb terminal"],
)
def test_colours_go_to_terminals_that_want_them(
    log: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], coloured: bool
) -> None:
    """And NO_COLOR holds."""
    for name, value in ({"TERM": "xterm"} | variables).items():
        monkeypatch.setenv(name, value)
    if "NO_COLOR" not in variables:
        monkeypatch.delenv("NO_COLOR", raising=False)
    stdout = Terminal(io.BytesIO())
    monkeypatch.setattr("sys.stdout", stdout)
    assert run(["logs", str(log)]) == 0
    assert (b"\x1b[32m200" in stdout.buffer.getvalue()) == coloured  # type: ignore[attr-defined]


def test_lines_are_whole_however_they_arrive() -> None:
    """Cut anywhere; the last one may lack its end."""
    text = b"one\n\ntwo\nthree"
    for size in range(1, len(text) + 1):
        chunks = [text[at : at + size] for at in range(0, len(text), size)]
        assert [line for lines in whole_lines(chunks) for line in lines] == [b"one", b"", b"two", b"three"]


def following(path: Path, *steps: Callable[[], object]) -> Iterator[bytes]:
    """The lines of a followed file; at each pause the next step happens, and behind the last one it ends."""
    left = iter(steps)

    def sleep(_seconds: float) -> None:
        step = next(left, None)
        if step is None:
            raise StopFollowing
        step()

    try:
        for lines in whole_lines(followed(path, sleep)):
            yield from lines
    except StopFollowing:
        return


class StopFollowing(Exception):
    """The test has seen enough."""


def test_a_followed_file_goes_on_with_what_is_written(tmp_path: Path) -> None:
    """A line is shown when it is whole."""
    path = tmp_path / "log"
    path.write_bytes(b"one\n")

    def append(text: bytes) -> None:
        with path.open("ab") as stream:
            stream.write(text)

    steps = (lambda: append(b"tw"), lambda: append(b"o\nthree\n"))
    assert list(following(path, *steps)) == [b"one", b"two", b"three"]


def test_a_followed_file_is_found_again_after_renaming(tmp_path: Path) -> None:
    """The last words in the old one come first; the new one may come later."""
    path = tmp_path / "log"
    path.write_bytes(b"one\n")

    def rename() -> None:
        with path.open("ab") as old:
            os.rename(path, tmp_path / "log.1")
            old.write(b"last of the old")

    assert list(following(path, rename, lambda: path.write_bytes(b"two\n"))) == [b"one", b"last of the old", b"two"]


def test_the_last_line_before_a_rotation_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was written between the last reading and the look that found another file."""
    path = tmp_path / "log"
    path.write_bytes(b"one\n")

    def rotated(file: Path) -> os.stat_result:
        if not (tmp_path / "log.1").exists():
            with path.open("ab") as old:
                old.write(b"two\n")
            os.rename(path, tmp_path / "log.1")
            path.write_bytes(b"three\n")
        return file.stat()

    monkeypatch.setattr("aiaas.cli.logs._stat", rotated)
    assert list(following(path)) == [b"one", b"two", b"three"]


def test_a_followed_file_that_is_cut_is_read_from_its_start(tmp_path: Path) -> None:
    """logrotate's `copytruncate`, in the middle of a line."""
    path = tmp_path / "log"
    path.write_bytes(b"one\nhal")
    assert list(following(path, lambda: path.write_bytes(b"two\n"))) == [b"one", b"hal", b"two"]
