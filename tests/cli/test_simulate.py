"""`aiaas simulate`, as a process."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest


def simulate(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aiaas", "simulate", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ttft", "soon"), "--ttft 'soon': must be a duration; write a number with a unit"),
        (("--fault", "nope"), "unknown fault 'nope'"),
        (("--jitter", "2"), "jitter must be between 0 and 1"),
        (("--max-num-seqs", "0"), "max-num-seqs must be 1 or more"),
        (("--port", "70000"), "less than or equal to 65535"),
        (("--runner", "both"), "both"),
    ],
    ids=["duration", "fault", "jitter", "places", "port", "runner"],
)
def test_wrong_usage_is_one_line_and_exit_2(options: tuple[str, ...], message: str) -> None:
    """The fault and the allowed values, on stderr."""
    done = simulate("--port", "0", *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


def test_a_port_in_use_is_one_line_and_exit_3() -> None:
    """The line has advice."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = simulate("--port", str(port))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"aiaas: cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port\n"


def test_the_list_of_faults_is_on_stdout() -> None:
    """Each kind with its default argument; nothing is started."""
    done = simulate("--fault", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "reset-mid-stream:5 " in done.stdout
