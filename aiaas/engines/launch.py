"""Start an engine and make sure that none of its processes outlives aiaas.

    python -I launch.py COMMAND...      stdin: a pipe whose other end only aiaas holds

vLLM is a small tree of processes (API server, engine core, workers). Killing only the root leaves the others running,
with the GPU's memory, and an aiaas that is killed with SIGKILL cannot clean up. So this launcher runs between the two:

1. The engine is a child of the launcher; the engine's orphans become its children too (PR_SET_CHILD_SUBREAPER), even
   those in a session of their own. The launcher ends only when it has no children left.
2. The launcher passes SIGTERM to the engine's root only. The engine core must not get it, since it would drop the
   requests in flight.
3. End of file on stdin (aiaas closed the pipe or died) makes the launcher kill every descendant with SIGKILL. A process
   that aiaas forked may hold a copy of the pipe's end, so the launcher also checks its parent every
   PARENT_CHECK_INTERVAL.
4. When the root ends, the launcher kills the remaining processes and exits with the root's exit code, 128 + N after
   signal N.
5. If the launcher itself is killed, the kernel kills the root (PR_SET_PDEATHSIG).

The launcher imports the standard library only and runs single-threaded, so that rule 5's preexec_fn is safe; in aiaas,
with its threads, it would not be.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PARENT_CHECK_INTERVAL = 1.0  # seconds
CANNOT_EXECUTE = 127  # the shell's exit code for a command that cannot be run
KILLED = 128 + signal.SIGKILL


def main(command: Sequence[str]) -> int:
    """Run `command` and return the launcher's exit code."""
    parent = os.getppid()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    woken = _signals_as_bytes(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
    try:
        root = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_launcher).pid  # rule 5
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return CANNOT_EXECUTE
    code = _watch(root, parent, woken)
    _kill_descendants()
    return code


def _watch(root: int, parent: int, woken: socket.socket) -> int:
    while True:
        ready, _, _ = select.select([sys.stdin.fileno(), woken], [], [], PARENT_CHECK_INTERVAL)
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096):
            return KILLED
        if os.getppid() != parent:
            return KILLED
        if woken in ready and set(woken.recv(4096)) - {signal.SIGCHLD}:
            os.kill(root, signal.SIGTERM)
        for pid, code in _reap():
            if pid == root:
                return code


def _reap() -> list[tuple[int, int]]:
    """(pid, exit code) of every child that has ended: the root and adopted processes."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        code = os.waitstatus_to_exitcode(status)
        ended.append((pid, code if code >= 0 else 128 - code))


def _kill_descendants() -> None:
    """Kill all children. Their own children then become ours (rule 1), so repeat until no child is left."""
    while True:
        for pid in _children(os.getpid()):
            os.kill(pid, signal.SIGKILL)  # the pid is still valid: an ended child stays a zombie until waitpid below
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children(parent: int) -> list[int]:
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The second field is the command's name in parentheses; the name may hold spaces, so count from its end.
            fields = stat.read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue  # the process ended meanwhile
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def _signals_as_bytes(*numbers: int) -> socket.socket:
    """A socket that becomes readable when one of the signals arrives, with its number as a byte."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    writer_fd = writer.detach()
    signal.set_wakeup_fd(writer_fd)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return reader


def _die_with_launcher() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
