"""A scripted stand-in for vLLM on a real socket: it says what a test tells it to say, and records what it got.

    fake = await FakeVllm.start()
    fake.play(Send(json_answer({"id": 1})))                        # the script of the next POST
    fake.play(Send(STREAM_HEAD), Send(chunk(b"data: 1\\n\\n")), Hang())
    ...
    fake.posts[0].body, fake.posts[0].gone.is_set()

A POST takes the next script, and `default` when none is left. A GET is answered from `gets` by its path (`/health`
and `/v1/models` from the start), so that probes never take a script away. A script that ends leaves the connection
open for the next request; one that hangs ends when the gateway goes away.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.waiting import closed


class Step(Protocol):
    """One action of the fake."""

    async def play(self, connection: _Connection) -> None: ...


@dataclass(frozen=True)
class Send:
    """Write bytes, as they are."""

    data: bytes

    async def play(self, connection: _Connection) -> None:
        connection.write(self.data)


@dataclass(frozen=True)
class SendSlowly:
    """Write bytes with a turn of the event loop after each of the given sizes, so that they arrive apart."""

    data: bytes
    size: int = 1
    pause: float = 0.0

    async def play(self, connection: _Connection) -> None:
        for start in range(0, len(self.data), self.size):
            connection.write(self.data[start : start + self.size])
            await asyncio.sleep(self.pause)


@dataclass(frozen=True)
class Flood:
    """Write bytes until `count` of them are sent or the gateway goes, waiting while its socket takes no more."""

    data: bytes
    count: int

    async def play(self, connection: _Connection) -> None:
        for _ in range(self.count):
            await connection.writable.wait()
            if connection.gone.is_set():
                return
            connection.write(self.data)
            connection.flooded += len(self.data)


@dataclass(frozen=True)
class Wait:
    """Go on when `event` is set (or when the gateway has gone)."""

    event: asyncio.Event

    async def play(self, connection: _Connection) -> None:
        await _first(self.event, connection.gone)


@dataclass(frozen=True)
class Sleep:
    """Let time pass. Keep it short; where order is meant, use Wait."""

    seconds: float

    async def play(self, connection: _Connection) -> None:
        await asyncio.sleep(self.seconds)


@dataclass(frozen=True)
class Hang:
    """Say nothing more until the gateway ends the connection."""

    async def play(self, connection: _Connection) -> None:
        await connection.gone.wait()


@dataclass(frozen=True)
class Close:
    """FIN."""

    async def play(self, connection: _Connection) -> None:
        connection.close()


@dataclass(frozen=True)
class Reset:
    """RST."""

    async def play(self, connection: _Connection) -> None:
        connection.reset()


@dataclass
class Received:
    """A whole request, and how it ended. Times are the loop's.

    began    when it was whole; generation begins here
    gone     set when its connection has ended, at `gone_at`
    played   set when its script came to its end
    """

    head: bytes
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    began: float
    connection: int
    gone: asyncio.Event
    played: asyncio.Event = field(default_factory=asyncio.Event)
    gone_at: float | None = None

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class FakeVllm:
    """One endpoint. `url` is its address; `posts` are the requests that would have generated, in order."""

    def __init__(self) -> None:
        self.posts: list[Received] = []
        self.got: list[Received] = []
        self.scripts: deque[tuple[Step, ...]] = deque()
        self.default: tuple[Step, ...] = (Send(json_answer({"object": "fake"})),)
        self.early: tuple[Step, ...] | None = None
        self.gets: dict[str, tuple[Step, ...]] = {
            "/health": (Send(answer(200, b"")),),
            "/v1/models": (Send(json_answer({"object": "list", "data": []})),),
        }
        self.connections: list[_Connection] = []
        self.host = "127.0.0.1"
        self.port = 0
        self.tls: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None

    @classmethod
    async def start(cls, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0) -> FakeVllm:
        """Listen, on a free port where none is given."""
        fake = cls()
        fake.tls, fake.host, fake.port = tls, host, port
        await fake.up()
        return fake

    @property
    def url(self) -> str:
        """The address as a config writes it."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{shown}:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many connections the gateway holds open."""
        return sum(not connection.gone.is_set() for connection in self.connections)

    def play(self, *steps: Step) -> None:
        """Append the script of one POST."""
        self.scripts.append(steps)

    async def up(self) -> None:
        """Listen (again, on the same port)."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # asyncio turns Nagle's algorithm off, as vLLM has it, only on sockets that name their protocol.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self.host, self.port))
        self.port = sock.getsockname()[1]
        self._server = await loop.create_server(lambda: _Connection(self, loop), sock=sock, ssl=self.tls)

    async def down(self) -> None:
        """Stop listening: new connections are refused, open ones live on (vLLM after SIGTERM, transcript 131)."""
        if self._server is not None:
            await closed(self._server)
            self._server = None
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """End everything."""
        await self.down()
        for connection in self.connections:
            connection.end()
        await asyncio.gather(*[c.task for c in self.connections if c.task is not None], return_exceptions=True)

    def script_for(self, method: str, path: str) -> Sequence[Step]:
        """Choose the script for a request."""
        if method == "GET":
            return self.gets.get(path, (Send(json_answer({"detail": "Not Found"}, status=404)),))
        return self.scripts.popleft() if self.scripts else self.default


class _Connection(asyncio.Protocol):
    def __init__(self, fake: FakeVllm, loop: asyncio.AbstractEventLoop) -> None:
        self.fake = fake
        self.loop = loop
        self.number = len(fake.connections)
        self.buffer = bytearray()
        self.more = asyncio.Event()
        self.gone = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.flooded = 0
        self.received: list[Received] = []
        self.transport: asyncio.Transport | None = None
        self.task: asyncio.Task[None] | None = None
        fake.connections.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.task = self.loop.create_task(self.live(), name="fake vllm connection")

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.more.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.gone.set()
        self.more.set()
        self.writable.set()
        now = self.loop.time()
        for received in self.received:
            if received.gone_at is None:
                received.gone_at = now

    async def live(self) -> None:
        if self.fake.early is not None:
            for step in self.fake.early:
                await step.play(self)
        while not self.gone.is_set():
            received = await self.request()
            if received is None:
                return
            for step in self.fake.script_for(received.method, received.path):
                if self.gone.is_set():
                    break
                await step.play(self)
            received.played.set()

    async def request(self) -> Received | None:
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            if not await self.grow():
                return None
        head = bytes(self.buffer[:end])
        start, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = start.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        del self.buffer[: end + 4]
        chunked = headers.get("transfer-encoding") == "chunked"
        body = await (self.chunks() if chunked else self.take(int(headers.get("content-length", "0"))))
        if body is None:
            return None
        received = Received(head, method, path, headers, body, self.loop.time(), self.number, self.gone)
        self.received.append(received)
        self.fake.got.append(received)
        if method == "POST":
            self.fake.posts.append(received)
        return received

    async def take(self, size: int) -> bytes | None:
        while len(self.buffer) < size:
            if not await self.grow():
                return None
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        return taken

    async def chunks(self) -> bytes | None:
        body = b""
        while True:
            while (end := self.buffer.find(b"\r\n")) < 0:
                if not await self.grow():
                    return None
            size = int(self.buffer[:end], 16)
            del self.buffer[: end + 2]
            data = await self.take(size + 2)
            if data is None or not size:
                return None if data is None else body
            body += data[:-2]

    async def grow(self) -> bool:
        if self.gone.is_set():
            return False
        self.more.clear()
        await self.more.wait()
        return not self.gone.is_set()

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        if self.transport is not None:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
        if self.transport is not None:
            self.transport.abort()


async def _first(*events: asyncio.Event) -> None:
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


# -- vLLM's own bytes (copied from docs/vllm/transcripts) --------------------------------------------------------------

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 07:16:08 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\nvary: Origin\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
SHUT_DOWN = "cannot schedule new futures after shutdown"
BUSY = "The engine is currently busy and cannot accept new requests. Please try again later."


def answer(status: int, body: bytes, *, content_type: str | None = None, headers: str = "") -> bytes:
    """A whole answer with a length. `headers` are complete lines."""
    kind = f"content-type: {content_type}\r\n" if content_type else ""
    head = (
        f"HTTP/1.1 {status} Whatever\r\ndate: Mon, 23 Nov 2026 07:16:08 GMT\r\nserver: uvicorn\r\n"
        f"content-length: {len(body)}\r\n{kind}vary: Origin\r\n{headers}\r\n"
    )
    return head.encode() + body


def json_answer(body: Any, *, status: int = 200, headers: str = "") -> bytes:
    """A whole JSON answer, compact as vLLM writes it."""
    encoded = json.dumps(body, separators=(",", ":")).encode()
    return answer(status, encoded, content_type="application/json", headers=headers)


def error_answer(status: int, message: str, kind: str = "InternalServerError", headers: str = "") -> bytes:
    """vLLM's own error."""
    return json_answer(
        {"error": {"message": message, "type": kind, "param": None, "code": status}},
        status=status,
        headers=headers,
    )


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def token_event(text: str = "x") -> bytes:
    """One event of a chat stream."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    return b"data: " + json.dumps({"id": "chatcmpl-1", "choices": [choice]}).encode() + b"\n\n"


def usage_event(prompt: int = 18, completion: int = 5) -> bytes:
    """The event that `include_usage` adds (transcript 13)."""
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    data = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": usage}
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def error_stream_event(message: str = ENGINE_DEAD, code: int = 500) -> bytes:
    """An engine's death inside a 200 stream (transcript 132)."""
    error = {"message": message, "type": "InternalServerError", "param": None, "code": code}
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"


def stream(*events: bytes) -> bytes:
    """A whole stream: one event a chunk."""
    return STREAM_HEAD + b"".join(chunk(event) for event in events) + LAST_CHUNK
