"""The messages between the supervisor and a worker, over a pair of sockets that only those two have.

Each message is its length (LENGTH_BYTES bytes, big-endian) and msgpack. The end of the channel is a message, too: it
means that the process at the other end is gone.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Final

import msgspec

from aiaas.plan.model import EnginePlan
from aiaas.proxy.admin.port import Query
from aiaas.proxy.workers.merge import MetricFamily

LENGTH_BYTES: Final = 4
NO_SUMS: Final = msgspec.Raw(msgspec.msgpack.encode({}))


class EngineHealth(msgspec.Struct, tag=True, frozen=True):
    """To a worker: the health of the engine of `backend`, and the settings that it runs with."""

    backend: str
    up: bool
    reason: str
    engine: EnginePlan | None


class Begin(msgspec.Struct, tag=True, frozen=True):
    """To a worker, first: the config and the keys to start with.

    files    paths of the config's file and its overlays
    config   text of each file of the last valid config
    before   texts of the last config that was in force as a whole, without a field that waits for a restart
    keys     text of the last valid key file; None if there was none
    """

    files: tuple[str, ...]
    config: tuple[str, ...]
    before: tuple[str, ...]
    keys: str | None


class Reload(msgspec.Struct, tag=True, frozen=True):
    """To a worker: read config and keys now."""


class Report(msgspec.Struct, tag=True, frozen=True):
    """To a worker: report your metrics."""


class Describe(msgspec.Struct, tag=True, frozen=True):
    """To a worker: describe yourself for the admin port.

    number  of the question
    worker  the worker's own number, which its rows get
    what    "status", "requests" or "refusals"
    """

    number: int
    worker: int
    what: str
    query: Query


class Stop(msgspec.Struct, tag=True, frozen=True):
    """To a worker: drain and exit; if `now`, without waiting for open requests."""

    now: bool


class Serving(msgspec.Struct, tag=True, frozen=True):
    """From a worker: it listens, with this number of keys."""

    keys: int


class EngineSuspected(msgspec.Struct, tag=True, frozen=True):
    """From a worker: a request has timed out in the engine of `backend`."""

    backend: str


class Alive(msgspec.Struct, tag=True, frozen=True):
    """From a worker, every `pulse.BEAT_INTERVAL` seconds: its event loop runs."""


class Leaving(msgspec.Struct, tag=True, frozen=True):
    """From a worker: it got a signal to stop, and accepts no more connections."""


class Counted(msgspec.Struct, tag=True, frozen=True):
    """From a worker: its metrics.

    asked   whether this answers a Report
    by_key  a `dict[str, KeySums]`, encoded: 50,000 keys are encoded in a thread, and decoded only where they are needed
    """

    families: list[MetricFamily]
    asked: bool
    by_key: msgspec.Raw = NO_SUMS


class Description(msgspec.Struct, tag=True, frozen=True):
    """From a worker: the answer to the Describe of that number, a Status or Rows, encoded."""

    number: int
    found: msgspec.Raw


_ToWorker = Begin | EngineHealth | Reload | Report | Describe | Stop
Message = _ToWorker | Serving | EngineSuspected | Alive | Leaving | Counted | Description

_DECODER: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)
_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=dict)  # the mappings of a Plan are read-only views


class Channel:
    """One end of a channel."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Channel:
        """Open a channel over a connected socket, which the channel then owns."""
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, message: Message) -> None:
        """Send a message without waiting; do nothing if the other end is gone."""
        if not self._writer.is_closing():
            data = _ENCODER.encode(message)
            self._writer.write(len(data).to_bytes(LENGTH_BYTES) + data)

    @property
    def is_stuck(self) -> bool:
        """Whether earlier messages still wait for the other end to read them."""
        return bool(self._writer.transport.get_write_buffer_size())

    async def receive(self) -> Message | None:
        """Return the next message; None at the channel's end, and for an invalid message, so that a worker that sends
        one is replaced."""
        try:
            size = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES))
            return _DECODER.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError, msgspec.DecodeError):
            return None

    async def close(self) -> None:
        """Send the remaining messages, unless the other end is gone, and close the channel."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
