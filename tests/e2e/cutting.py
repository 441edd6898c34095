"""Two small proxies before one engine: one cuts streams off in the middle, the other notes what it is asked."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

HELD = 1.15  # seconds after the first event with text: a stream goes on only if it is a second old
MOST = 64 * 1024


class Cutter:
    """Passes everything on, but cuts each chat after a random number of events: by RST or FIN, also inside an event."""

    def __init__(self, upstream: str, seed: int, least: int, most: int) -> None:
        self.dice = random.Random(seed)
        self.least, self.most = least, most
        self._upstream = urlsplit(upstream)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        up_reader, up_writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        head = await reader.read(MOST)
        up_writer.write(head)
        back = asyncio.create_task(_pump(reader, up_writer))
        try:
            if head.startswith(b"POST /v1/chat"):
                await self._cut(up_reader, writer)
            else:
                await _pump(up_reader, writer)
        finally:
            back.cancel()
            up_writer.close()
            writer.close()

    async def _cut(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        events, inside, fin = (
            self.dice.randint(self.least, self.most),
            self.dice.random() < 0.3,
            self.dice.random() < 0.5,
        )
        seen = 0
        while seen < events and (line := await reader.readline()):
            writer.write(line)
            if line.startswith(b"data: "):
                writer.write(
                    await reader.readline() + await reader.readline()
                )  # the end of the event, and of its chunk
                seen += 1
                if seen == 2:  # the first one says only who speaks
                    await writer.drain()
                    await asyncio.sleep(HELD)
        if inside:
            await reader.readline()
            writer.write((await reader.readline())[:30])
        await writer.drain()
        await asyncio.sleep(0.05)  # else an RST takes away what was not read yet
        if not fin:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Recorder:
    """Passes everything on. `asked` are the bodies of the chats, by the request's id."""

    def __init__(self, upstream: str) -> None:
        self.asked: dict[str, dict[str, Any]] = {}
        self._upstream = urlsplit(upstream)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, which may carry several requests."""
        up_reader, up_writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        back = asyncio.create_task(_pump(up_reader, writer))
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").lower().split("\r\n")
                fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
                body = await reader.readexactly(int(fields.get("content-length", "0")))
                if head.startswith(b"POST /v1/chat"):
                    self.asked[fields["x-request-id"]] = json.loads(body)
                up_writer.write(head + body)
        except asyncio.IncompleteReadError:
            pass
        finally:
            back.cancel()
            up_writer.close()
            writer.close()


@asynccontextmanager
async def listening(proxy: Cutter | Recorder) -> AsyncIterator[str]:
    """The address of a proxy."""
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 20)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(MOST):
        writer.write(data)
        await writer.drain()
    writer.close()
