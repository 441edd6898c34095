"""Starts an engine and sees to it that nothing of it outlives aiaas.

    python -I launch.py COMMAND...      stdin: a pipe whose other end only aiaas holds

vLLM is a small tree (API server, engine core, workers). Killing only its root leaves the rest, with the GPU's memory;
and an aiaas that is killed with SIGKILL can no longer do anything. So this process stands between the two:

1. The engine is its child; orphans of the engine become its children too (PR_SET_CHILD_SUBREAPER), even those that made
   a session of their own. It ends only when it has no child left.
2. SIGTERM is passed to the engine's root alone. The engine core must not get it: it would drop what is in flight.
3. End of file on stdin means "now", whether aiaas closed the pipe or died: SIGKILL for every descendant.
   A process that aiaas forked may hold a copy of the pipe's end, so once a second it also looks whether its parent
   is still the same.
4. When the root ends, the rest is killed, and the root's exit code is passed on: 128 + N after signal N.
5. If this process is killed itself, the kernel kills the root (PR_SET_PDEATHSIG).

It imports the standard library only and runs single-threaded, so that rule 5's preexec_fn is safe here; in aiaas, with
its threads, it would not be.
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
CANNOT_EXECUTE = 127  # the shell's exit code for it
KILLED = 128 + signal.SIGKILL


def main(command: Sequence[str]) -> int:
    """Run `command` and return the exit code to leave with."""
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
    """(pid, exit code) of every child that has ended; the root and adopted ones."""
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
    """Kill the children; theirs become ours by rule 1, so repeat until there is none."""
    while True:
        for pid in _children(os.getpid()):
            os.kill(pid, signal.SIGKILL)  # cannot be gone: an ended child stays until it is waited for, below
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children(parent: int) -> list[int]:
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The second field is the command's name in parentheses and may hold anything, so count from its end.
            fields = stat.read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
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
