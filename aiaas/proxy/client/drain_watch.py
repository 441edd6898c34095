"""See that a client takes the last bytes of its answer.

`transport.close()` waits for them forever: once, a socket leaked for each client that had stopped reading. So a client
that takes none of the waiting bytes for `closing_silence` seconds is dropped. Under TLS these bytes lie below the
transport that we see; there `liveness.py` asks the kernel.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiaas.proxy.client.connection import ClientConnection


class DrainWatch:
    """The watch over one connection, which it does not refer to: TLS buffers must not wait for the collector."""

    __slots__ = ("_silence", "_timer")

    def __init__(self, silence: float) -> None:
        self._silence = silence
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, connection: ClientConnection, transport: asyncio.Transport | None) -> None:
        """Drop the client if it reads none of the bytes that wait for it now. Costs nothing if none wait."""
        waiting = transport.get_write_buffer_size() if transport is not None else 0
        if transport is None or not waiting:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = connection.loop.call_later(self._silence, self._look, connection, transport, waiting)

    def stop(self) -> None:
        """The connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, connection: ClientConnection, transport: asyncio.Transport, before: int) -> None:
        self._timer = None
        if connection.listener is not None:
            return  # the next answer is being written; its writer looks after the client
        if transport.get_write_buffer_size() >= before:
            connection.drop("it did not read the end of its answer")
        else:
            self.watch(connection, transport)
