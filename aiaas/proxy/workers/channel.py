"""What the supervisor and a worker say to each other, over a pair of sockets that only those two have.

Each message is its length (four bytes, big-endian) and msgpack. The end of the channel is a message, too: for a worker
that its supervisor is gone, for the supervisor that the worker is.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Final

import msgspec

from aiaas.proxy.workers.merge import MetricFamily

LENGTH_BYTES: Final = 4


class EngineHealth(msgspec.Struct, tag=True, frozen=True):
    """To a worker: how the engine of `backend` is."""

    backend: str
    up: bool
    reason: str


class Begin(msgspec.Struct, tag=True, frozen=True):
    """To a worker, first: what it begins with.

    source   the config file, and `config` its text when it was last valid
    before   its text when it was last in force as a whole, without a field that waits for a restart
    keys     the key file when it was last in order; None where that never was
    """

    source: str
    config: str
    before: str
    keys: str | None


class Reload(msgspec.Struct, tag=True, frozen=True):
    """To a worker: read config and keys now."""


class Report(msgspec.Struct, tag=True, frozen=True):
    """To a worker: say what you have counted."""


class Stop(msgspec.Struct, tag=True, frozen=True):
    """To a worker: drain, and end."""

    now: bool


class Serving(msgspec.Struct, tag=True, frozen=True):
    """From a worker: it listens, and knows so many keys."""

    keys: int


class EngineSuspected(msgspec.Struct, tag=True, frozen=True):
    """From a worker: a request has timed out in the engine of `backend`."""

    backend: str


class Alive(msgspec.Struct, tag=True, frozen=True):
    """From a worker, every second: its event loop turns."""


class Leaving(msgspec.Struct, tag=True, frozen=True):
    """From a worker: somebody else told it to stop. It takes no more connections."""


class Counted(msgspec.Struct, tag=True, frozen=True):
    """From a worker: its metrics. `asked` is whether this answers a Report."""

    families: list[MetricFamily]
    asked: bool


Message = Begin | EngineHealth | Reload | Report | Stop | Serving | EngineSuspected | Alive | Leaving | Counted

_DECODER: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)
_ENCODER: Final = msgspec.msgpack.Encoder()


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Channel:
        """Over a connected socket, which the channel then owns."""
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, message: Message) -> None:
        """Send, without waiting; nothing where the other end has gone."""
        if not self._writer.is_closing():
            data = _ENCODER.encode(message)
            self._writer.write(len(data).to_bytes(LENGTH_BYTES) + data)

    @property
    def is_stuck(self) -> bool:
        """Whether the other end has not yet taken what was sent before."""
        return bool(self._writer.transport.get_write_buffer_size())

    async def receive(self) -> Message | None:
        """The next message; None at the channel's end, and for nonsense: whoever sends that is given up, and a worker
        then replaced."""
        try:
            size = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES))
            return _DECODER.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError, msgspec.DecodeError):
            return None

    async def close(self) -> None:
        """Send what is left, as long as the other end takes it, and end."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
