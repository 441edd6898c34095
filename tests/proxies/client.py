"""A client of the tests: it takes the time of each read, leaves in every way, and answers for every byte.

It tries nothing a second time, as the SDKs would.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import ssl
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from tests.e2e.processes import ALIAS
from tests.proxies.rendered import HOST
from tests.proxies.upstream import STAMP

WITHIN: Final = 20.0  # seconds; no answer here takes longer
_READ: Final = 65_536


@dataclass(frozen=True)
class Target:
    """Where the requests go: a proxy with TLS, or the gateway itself without."""

    port: int
    key: str
    tls: ssl.SSLContext | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Reply:
    """A whole answer; `headers` in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        """The content type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0]

    @property
    def code(self) -> str:
        """The code of an error in OpenAI's form; "" for others."""
        if self.kind != "application/json":
            return ""
        return str(json.loads(self.body)["error"]["code"])


class Connection:
    """One connection."""

    def __init__(self, target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.target, self.reader, self.writer = target, reader, writer

    @classmethod
    async def open(cls, target: Target) -> Connection:
        """Connect."""
        name = HOST if target.tls is not None else None
        opening = asyncio.open_connection("127.0.0.1", target.port, ssl=target.tls, server_hostname=name)
        return cls(target, *await asyncio.wait_for(opening, WITHIN))

    async def send(self, body: bytes, *, keep: bool = False) -> None:
        """Write a whole request."""
        end = "" if keep else "Connection: close\r\n"
        self.writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {self.target.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{end}\r\n".encode()
            + body
        )
        await self.writer.drain()

    async def reply(self) -> Reply:
        """Read a whole answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        start, *lines = head.strip().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        return Reply(int(start.split(" ")[1]), headers, await self._body(headers))

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            length = headers.get("content-length")
            return await (self.reader.read() if length is None else self.reader.readexactly(int(length)))
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readuntil(b"\r\n")
        return body

    async def say_goodbye(self) -> None:
        """Leave as curl, Go and Node do: TLS's goodbye, and the end of the connection behind it."""
        self.writer.close()  # asyncio alone would wait half a minute for the other side's goodbye
        await asyncio.sleep(0.001)
        self.abort()

    def abort(self) -> None:
        """Leave as a killed process does, and as Python's clients: the connection ends without a goodbye."""
        self.writer.transport.abort()


def chat(**more: Any) -> bytes:
    """The body of a request."""
    return json.dumps({"model": ALIAS, "messages": [{"role": "user", "content": "Hello"}], **more}).encode()


async def ask(target: Target, body: bytes) -> Reply:
    """One request on a connection of its own, with its whole answer."""
    async with asyncio.timeout(WITHIN):
        connection = await Connection.open(target)
        try:
            await connection.send(body)
            return await connection.reply()
        finally:
            connection.abort()


def upload(target: Target, body: bytes, *, chunked: bool) -> Reply:
    """A large request, as httpx, urllib3 and curl send it: if nobody takes the rest, they look for an answer."""
    address = ("localhost", target.port, WITHIN)
    made: http.client.HTTPConnection = (
        http.client.HTTPConnection(address[0], address[1], timeout=address[2])
        if target.tls is None
        else http.client.HTTPSConnection(address[0], address[1], timeout=address[2], context=target.tls)
    )
    pieces = (body[at : at + _READ] for at in range(0, len(body), _READ)) if chunked else body
    headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}
    with closing(made):
        with suppress(BrokenPipeError, ConnectionResetError):
            made.request("POST", "/v1/chat/completions", pieces, headers, encode_chunked=chunked)
        answer = made.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, answer.read())


async def delays(target: Target) -> list[float]:
    """Seconds between the engine's write of each event and the client's read, of a whole stream."""
    connection = await Connection.open(target)
    found: list[float] = []
    rest = b""
    try:
        await connection.send(chat(stream=True))
        while data := await asyncio.wait_for(connection.reader.read(_READ), WITHIN):
            now = time.monotonic_ns()
            rest += data
            last = 0
            for match in re.finditer(STAMP, rest):
                found.append((now - int(match[1])) / 1e9)
                last = match.end()
            rest = rest[last:]
    finally:
        connection.abort()
    assert b"[DONE]" in rest, rest[-200:]
    return found
