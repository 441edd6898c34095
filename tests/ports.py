"""Ports for servers that are processes of their own, and so cannot be given port 0."""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

LOWEST: Final = 10_000
ROOM: Final = 10_000  # above the highest one, for `also`
IN_A_ROW: Final = 4
PROCESSES: Final = 4


def free_port(*also: int) -> int:
    """A port that nobody listens on just now, and that nobody else is given meanwhile.

    also  those so far above it are free as well: the next `IN_A_ROW` - 1 as surely, others only just now

    Not port 0's: those are also what any other program's connections and listeners are given, and one of them took such
    a port between here and the server's own bind. Not drawn by chance each time either: two draws of one test were
    equal once, so that a gateway's port was also its metrics port.
    """
    for port in _TO_GIVE:
        with ExitStack() as probes, suppress(OSError):
            for offset in (0, *also):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            return port
    raise AssertionError("the ports never end")


def _walk(worker: str, begin: int) -> Iterator[int]:
    """The ports of one test process in turn, from the place `begin` on, so that one is given again after hundreds only.

    worker  pytest-xdist's name of the process (`gw1`): `PROCESSES` of them have no port in common
    """
    lowest_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    first = LOWEST + IN_A_ROW * (int("0" + worker.removeprefix("gw")) % PROCESSES)
    ports = range(first, lowest_given - ROOM, IN_A_ROW * PROCESSES)
    for step in itertools.count(begin):
        yield ports[step % len(ports)]


_TO_GIVE: Final = _walk(os.environ.get("PYTEST_XDIST_WORKER", ""), random.SystemRandom().randrange(100_000))


@contextmanager
def silent_port() -> Iterator[int]:
    """The port of a full listener at 127.0.0.1: it answers no SYN."""
    with ExitStack() as sockets:
        full, *crowd = [sockets.enter_context(socket.socket()) for _ in range(5)]
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for sock in crowd:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        yield full.getsockname()[1]
