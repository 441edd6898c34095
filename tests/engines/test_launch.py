"""aiaas.engines.launch: no process of an engine outlives the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from aiaas.engines import launch
from tests.engines.fake_vllm import alive, write_fake_vllm
from tests.ports import free_port


def launched(*command: str) -> subprocess.Popen[bytes]:
    """`command` under the launcher."""
    return subprocess.Popen(
        [sys.executable, "-I", launch.__file__, *command],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A folder for PATH with a `vllm` that is a small fake."""
    return write_fake_vllm(tmp_path / "bin")


@pytest.mark.parametrize(
    ("script", "code"),
    [("raise SystemExit(0)", 0), ("raise SystemExit(7)", 7), ("import os; os.abort()", 128 + signal.SIGABRT)],
    ids=["success", "failure", "a signal"],
)
def test_the_exit_code_is_passed_on(script, code):
    """As a shell would show it."""
    with launched(sys.executable, "-c", script) as launcher:
        assert launcher.wait(60) == code


def test_a_command_that_cannot_be_run_is_one_line_and_127(tmp_path):
    """One line, not a traceback."""
    with launched(str(tmp_path / "nothing")) as launcher:
        _, error = launcher.communicate(timeout=60)
    assert launcher.returncode == launch.CANNOT_EXECUTE
    assert error.decode() == f"cannot start {tmp_path}/nothing: No such file or directory\n"


def test_the_engine_cannot_read_the_launchers_stdin():
    """The engine's own stdin is empty: the launcher uses the pipe."""
    with launched(sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))") as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == b"''\n"


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM without a handler"])
def test_nothing_outlives_a_killed_aiaas(bin_folder, tmp_path, by):
    """The launcher notices, also when a forked worker still holds the pipe, and kills the whole tree."""
    script = tmp_path / "gateway.py"
    script.write_text(
        textwrap.dedent(f"""
        import asyncio, os, time
        from aiaas.engines.lifecycle import Healthy
        from aiaas.engines.supervisor import EngineSupervisor
        from aiaas.plan.model import EnginePlan

        async def main():
            plan = EnginePlan("vllm", "stubborn helper daemon", "m", (), {{}}, {free_port()}, 20)
            healthy = asyncio.Event()
            on_event = lambda event: healthy.set() if isinstance(event, Healthy) else None
            supervisor = EngineSupervisor("m", plan, drain_timeout=5, silence=1, on_event=on_event,
                                          on_line=lambda line: print(line, flush=True),
                                          environ={{"PATH": {str(bin_folder)!r}}})
            await supervisor.start()
            await healthy.wait()
            worker = os.fork()
            if worker == 0:
                os.closerange(0, 3)
                time.sleep(4)
                os._exit(0)
            print("launcher", supervisor.pid, flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """)
    )
    with subprocess.Popen([sys.executable, "-W", "ignore", script], stdout=subprocess.PIPE, text=True) as gateway:
        assert gateway.stdout is not None
        tree: list[int] = []
        for line in gateway.stdout:
            tree += [int(word) for word in line.split() if word.isdigit()]
            if line.startswith("launcher"):
                break
        assert len(tree) == 4
        assert all(map(alive, tree))
        gateway.send_signal(by)
    deadline = time.monotonic() + 3
    while any(map(alive, tree)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in tree if alive(pid)] == []


def test_root_process_dies_with_its_launcher():
    """The kernel kills it (PR_SET_PDEATHSIG)."""
    sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with launched(sys.executable, "-c", sleeper) as launcher:
        assert launcher.stdout is not None
        root = int(launcher.stdout.readline())
        launcher.kill()
        deadline = time.monotonic() + 5
        while alive(root) and time.monotonic() < deadline:
            time.sleep(0.02)
        survived = alive(root)
        if survived:
            os.kill(root, signal.SIGKILL)
    assert not survived
