"""Ports for servers that are processes of their own, and so cannot be given port 0."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def free_port(also: int = 0) -> int:
    """A port that nobody listens on just now, and that the kernel gives to nobody else meanwhile.

    also  another one, so far above it, is to be free as well

    Not port 0's: those are also what any other program's connections and listeners are given, and one of them took such
    a port between here and the server's own bind.
    """
    lowest_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(10_000, lowest_given - also)
        with socket.socket() as probe, socket.socket() as other, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if also:
                other.bind(("127.0.0.1", port + also))
            return port


@contextmanager
def silent_port() -> Iterator[int]:
    """The port of a full listener at 127.0.0.1: it answers no SYN."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        crowd = [socket.socket() for _ in range(4)]
        for sock in crowd:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        yield full.getsockname()[1]
        for sock in crowd:
            sock.close()
