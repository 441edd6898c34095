"""An engine's port belongs to one aiaas at a time, from the first start of its engine to the end of the last process.

After a restart the old gateway's engine still finishes its streams, with the port and the GPU's memory. Its successor
has to wait for it, and neither to fail nor to take the port while the engine is just being restarted. So the owner of
an engine holds a name in the kernel: a socket in the abstract namespace, which reaches exactly as far as the port does
(a network namespace) and disappears with its process.
"""

from __future__ import annotations

import socket
import sys

from aiaas.engines.command import HOST


class Claim:
    """The right to run an engine on a port: one port at a time, so `take` gives up the port before."""

    def __init__(self) -> None:
        self._name: socket.socket | None = None
        self._port: int | None = None

    def take(self, port: int) -> bool:
        """Claim a port; False if another aiaas has claimed it. A program other than aiaas may still listen there."""
        if self._port == port:
            return True
        self.release()
        if sys.platform == "linux":
            name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                name.bind(f"\0aiaas-engine-{HOST}:{port}")
            except OSError:
                name.close()
                return False
            self._name = name
        self._port = port
        return True

    def release(self) -> None:
        """Give it up. Idempotent."""
        if self._name is not None:
            self._name.close()
        self._name = self._port = None


def port_is_free(port: int) -> bool:
    """Whether no program listens on the engine's address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
