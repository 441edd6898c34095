"""One aiaas at a time owns an engine's port, from the first start of the engine to the end of its last process.

After a restart of aiaas the old gateway's engine still finishes its streams and holds the port and the GPU's memory.
The new gateway must wait for that engine: it must not fail, and must not take the port while the old gateway is only
restarting the engine. So the owner of an engine holds a name in the kernel: a socket in the abstract namespace, which
has the same scope as the port (a network namespace) and disappears with its process.
"""

from __future__ import annotations

import socket
import sys

from aiaas.engines.command import HOST


class Claim:
    """The right to run an engine on a port. `take` first releases the previous port."""

    def __init__(self) -> None:
        self._name: socket.socket | None = None
        self._port: int | None = None

    def take(self, port: int) -> bool:
        """Claim a port; False if another aiaas has claimed it. The claim does not exclude other programs."""
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
        """Release the claimed port. Idempotent."""
        if self._name is not None:
            self._name.close()
        self._name = self._port = None


def port_is_free(port: int) -> bool:
    """Whether the engine's address can be bound, so that no other program listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
