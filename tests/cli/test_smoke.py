"""`aiaas smoke`, as a process against a simulator, which is not a gateway: its missing features fail."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.test_loadtest import aiaas, simulated

AIAAS = [sys.executable, "-m", "aiaas"]
KEYLESS = ("--only", "health,unknown-path")


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    """The URL of a simulator that asks for the key sk-right."""
    process, url = simulated("--api-key", "sk-right")
    yield url
    process.kill()
    process.communicate()


def test_the_checks_are_lines_on_stdout_where_piped(simulator: str, tmp_path: Path) -> None:
    """A failed check says the expected and the actual result and the usual cause; exit 1; no colour, no key."""
    (tmp_path / "k").write_text("sk-right\n")
    done = aiaas("smoke", simulator, "--api-key-file", str(tmp_path / "k"), "--skip", "ready,stream-pace")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("passed   health ")
    assert any(line.startswith("passed   completion ") for line in lines)
    place = next(at for at, line in enumerate(lines) if line.startswith("failed   unknown-path "))
    assert lines[place + 1].strip() == "expected  404 not_found"
    assert lines[place + 2].strip().startswith("hint ")
    assert not any("ready" in line.split()[:2] for line in lines)
    assert "passed, " in done.stderr.splitlines()[-1]
    assert "\x1b" not in done.stdout + done.stderr
    assert "sk-right" not in done.stdout + done.stderr


def test_json_and_junit_for_a_pipeline(simulator: str, tmp_path: Path) -> None:
    """JSON alone on stdout; the XML is well-formed and counts the same."""
    out = tmp_path / "smoke.xml"
    done = aiaas("smoke", simulator, "-o", "json", "--junit", str(out), *KEYLESS)
    found = json.loads(done.stdout)
    assert (done.returncode, found["held"], found["passed"], found["failed"]) == (1, False, 1, 1)
    suites = ElementTree.parse(out).getroot()
    assert (suites.get("tests"), suites.get("failures")) == ("2", "1")
    assert [case.get("name") for case in suites.iter("testcase")] == ["health", "unknown-path"]


def test_a_wrong_key_is_said_once(simulator: str) -> None:
    """One failure, the rest skipped; the key is not shown."""
    done = aiaas("smoke", simulator, "--only", "completion,stream", AIAAS_API_KEY="sk-wrong")
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines() if not line.startswith(" ")] == [
        ["failed", "models"],
        ["skipped", "completion"],
        ["skipped", "stream"],
    ]
    assert "sk-wrong" not in done.stdout + done.stderr


def test_nobody_there_is_exit_3_and_one_line() -> None:
    """The line has a hint."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        done = aiaas("smoke", f"http://127.0.0.1:{bound.getsockname()[1]}")
    assert (done.returncode, done.stdout) == (3, "")
    assert "connection refused; is the server running, and is the URL right?" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(("--only", "nonsense"), 2, "--only: unknown check 'nonsense'; --list", id="only"),
        pytest.param(("--skip", "nonsense"), 2, "--skip: unknown check 'nonsense'; --list", id="skip"),
        pytest.param(
            ("--only", "health", "--skip", "health"), 2, "--only and --skip leave nothing to check", id="none"
        ),
        pytest.param(("--body-size", "big"), 2, "--body-size: ", id="size"),
        pytest.param(("--timeout", "5"), 2, "--timeout '5': 5 has no unit", id="timeout"),
        pytest.param(("--timeout", "0"), 2, "--timeout must be longer than 0", id="no time"),
        pytest.param(("--api-key-file", "/no/such"), 3, "/no/such: No such file", id="key file"),
        pytest.param(("-c", "/no/such.yaml"), 3, "/no/such.yaml", id="config"),
        pytest.param(("--metrics", "ftp://x"), 2, "is not a server URL", id="metrics"),
    ],
)
def test_wrong_usage_is_one_line(arguments: tuple[str, ...], code: int, message: str) -> None:
    """Before anything is sent."""
    done = aiaas("smoke", "http://127.0.0.1:1", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_junit_file_that_cannot_be_written_is_exit_3(simulator: str) -> None:
    """The error follows the results, which are not lost."""
    done = aiaas("smoke", simulator, "--only", "health", "--junit", "/no/such/folder/x.xml")
    assert done.returncode == 3
    assert done.stdout.startswith("passed   health ")
    assert "/no/such/folder/x.xml: cannot be written" in done.stderr


def test_the_checks_are_listed() -> None:
    """Each check with its purpose; nothing is sent."""
    done = aiaas("smoke", "http://127.0.0.1:1", "--list")
    assert done.returncode == 0
    assert "rate-limit" in done.stdout
    assert [row["name"] for row in json.loads(aiaas("smoke", "--list", "--only", "health", "-o", "json").stdout)] == [
        "health"
    ]


def test_ctrl_c_shows_what_was_found() -> None:
    """Exit 130, as a shell reports any interrupted program."""
    process, url = simulated("--fault", "hang-before-headers")
    command = [*AIAAS, "smoke", url, "--only", "health,completion"]
    smoke = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whatever the test runner's parent ignores
    )
    try:
        assert smoke.stdout is not None
        assert smoke.stdout.readline().startswith("passed   health ")
        assert smoke.stdout.readline().startswith("passed   models ")
        time.sleep(0.2)
        smoke.send_signal(signal.SIGINT)
        _, stderr = smoke.communicate(timeout=60)
    finally:
        if smoke.poll() is None:
            smoke.kill()
            smoke.communicate()
        process.kill()
        process.communicate()
    assert smoke.returncode == 130, stderr
    assert "2 passed, 0 failed, 0 skipped; ended early (interrupted)" in stderr


def test_a_terminal_gets_a_table(simulator: str) -> None:
    """In colour, the title first."""
    ours, theirs = pty.openpty()
    command = [*AIAAS, "smoke", simulator, *KEYLESS]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=os.environ | {"TERM": "xterm"})
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 15)[0]:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # the other side has closed
            break
    process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 1
    for part in (simulator.encode(), "──".encode(), b"\x1b[32mpassed", b"\x1b[1;31mfailed", b"hint: "):
        assert part in seen, seen
