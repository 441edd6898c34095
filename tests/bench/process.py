"""Processes on a core of their own, and what each has cost so far, as the kernel accounts it."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

# The process under test has the first core to itself, everything else shares the second.
TESTED_CORE = 0
OTHER_CORE = 1
START_SECONDS = 60.0


class NotStartedError(Exception):
    """A process under test did not come up; says what it wrote."""


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process, ended ones included, and of its living children, in seconds.

    By the process's own CPU clock (clock_getcpuclockid(3)), which counts nanoseconds where /proc/PID/stat counts 10 ms.
    """
    pids = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return sum(time.clock_gettime((~each << 3) | 2) for each in pids)


def core_busy_seconds(core: int) -> float:
    """Seconds that a core has worked for anybody since the machine started (/proc/stat, in units of 10 ms)."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return 0.0


def resident(pid: int) -> int:
    """Resident memory of a process and its children, in bytes."""
    process = psutil.Process(pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


def pin(core: int) -> None:
    """Keep this process on one core, where the machine has it."""
    if core < (os.cpu_count() or 1):
        os.sched_setaffinity(0, {core})


def raise_file_limit(needed: int) -> None:
    """Allow `needed` open files to this process and to what it starts. Raises NotStartedError where that is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))
    except (ValueError, OSError) as error:
        raise NotStartedError(f"{needed} open files are needed and {hard} allowed: raise `ulimit -Hn`") from error


@contextlib.contextmanager
def started(
    command: Sequence[str], core: int, folder: Path, name: str, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process on `core`; what it writes goes to files in `folder`. Ended with the block."""
    with (folder / f"{name}.out").open("wb") as out, (folder / f"{name}.err").open("wb") as err:
        process = _spawn(command, core, environment, out, err)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def on_core(core: int) -> list[str]:
    """The prefix that keeps a command to one core; empty where the machine does not have that core."""
    pinned = shutil.which("taskset") is not None and core < (os.cpu_count() or 1)
    return ["taskset", "--cpu-list", str(core)] if pinned else []


def _spawn(
    command: Sequence[str], core: int, extra: Mapping[str, str], out: IO[bytes], err: IO[bytes]
) -> subprocess.Popen[bytes]:
    command = [*on_core(core), *command]
    # Bytecode that was written once is used from the second start on, whatever the environment says.
    without = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    environment = {name: value for name, value in os.environ.items() if name not in without} | dict(extra)
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)


def wait_for_answer(port: int, request: bytes, process: subprocess.Popen[bytes], folder: Path, name: str) -> float:
    """Try until the first 200 comes; the seconds that it took. Raises NotStartedError after 60 s, or if it ended."""
    began = time.perf_counter()
    while time.perf_counter() - began < START_SECONDS:
        if process.poll() is not None:
            break
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                sock.sendall(request)
                if sock.recv(65536).startswith(b"HTTP/1.1 200"):
                    return time.perf_counter() - began
        except OSError:
            pass
        time.sleep(0.002)
    wrote = (
        "".join((folder / f"{name}.{end}").read_text(errors="replace") for end in ("out", "err")).strip() or "nothing"
    )
    raise NotStartedError(f"{name} did not answer; it wrote: {wrote[-1000:]}")


def backend_command(port: int, *stream: str) -> list[str]:
    """The scripted backend of `backend.py`; `stream` for requests that do not ask for one."""
    return [sys.executable, "-m", "tests.bench.backend", str(port), *stream]
