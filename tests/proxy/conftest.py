"""Fixtures of the proxy's tests: the real gateway and scripted vLLMs on real sockets, in the test's own event loop.

    async def test_x(fake_vllm, gateway):
        running = await gateway(fake_vllm, backend={"timeout": "200ms"}, server={"heartbeat": "0s"})
        fake_vllm.play(Send(stream(token_event(), DONE)))
        client = await running.client()
        got = await client.post({"model": "m", "messages": [], "stream": True})
        assert got.status == 200
        assert running.log_lines()[-1]["status"] == 200

Keyword arguments of `gateway` are sections of the config, merged over the default one; `backend` is that of the only
backend, whose models are `m` (what vLLM serves) and `alias` (rewritten to `m`). The key is `running.key`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest
import uvloop
import yaml
from passlib.hash import pbkdf2_sha256

from aiaas.config.check import check
from aiaas.config.load import load_text
from aiaas.config.problem import has_errors
from aiaas.keys.format import make_key
from aiaas.keys.hashing import digest_key
from aiaas.keys.model import KeyLimits, KeyRecord, PriorityClass
from aiaas.keys.ring import KeyRing
from aiaas.keys.verifier import Verifier
from aiaas.limits.memory import MemoryStore
from aiaas.limits.model import Store
from aiaas.limits.usage import UsageStore
from aiaas.plan.compile import compile_plan
from aiaas.plan.model import Plan
from aiaas.proxy.client.door import Door
from aiaas.proxy.client.open_side import OpenSide
from aiaas.proxy.client.path_prefix import PrefixedPaths
from aiaas.proxy.client.refusal import ConnectionLimits
from aiaas.proxy.client.tls import open_tls
from aiaas.proxy.gateway import Gateway
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.probes import probe_forever
from aiaas.proxy.usage import UsageRecorder
from tests.fakes.vllm import FakeVllm
from tests.keymaterial import leaked_hashes, leaked_keys

CHAT = "/v1/chat/completions"
ALL_PATHS = [
    CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings",
    "/tokenize", "/v1/models",
]  # fmt: skip


@pytest.fixture(scope="session")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """The proxy's tests run on uvloop, as the proxy does; a module that means both overrides this."""
    return uvloop.EventLoopPolicy()


# -- keys ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnownKey:
    """A key, and its record as `aiaas keys create` makes it."""

    text: str
    record: KeyRecord


def new_key(
    name: str,
    *,
    models: tuple[str, ...] | None = None,
    limits: KeyLimits | None = None,
    priority_class: PriorityClass = "default",
    allow_fields: tuple[str, ...] = (),
    users_header: str | None = None,
    user_limits: KeyLimits | None = None,
) -> KnownKey:
    """Make a key named `name`. Its randomness is its name, so that tests repeat."""
    made = make_key("sk-", lambda count: (name.encode() * count)[:count])
    record = KeyRecord(
        id=made.key_id,
        name=name,
        hash=digest_key(made.text),
        created=datetime(2026, 1, 1, tzinfo=UTC),
        models=models,
        limits=limits or KeyLimits(),
        priority_class=priority_class,
        allow_fields=allow_fields,
        users_header=users_header,
        user_limits=user_limits or KeyLimits(),
    )
    return KnownKey(made.text, record)


def slow_key(name: str, *, rounds: int = 1) -> KnownKey:
    """A key that is stored with a slow hash and without a tag: every wrong key with its id is hashed, too."""
    key = new_key(name)
    return KnownKey(key.text, replace(key.record, hash=pbkdf2_sha256.using(rounds=rounds).hash(key.text)))


@pytest.fixture(scope="session")
def known_key() -> KnownKey:
    """The key that every gateway knows."""
    return new_key("alice")


# -- the gateway ---------------------------------------------------------------------------------------------------


def plan_of(config: Mapping[str, Any], env: Mapping[str, str] = MappingProxyType({})) -> Plan:
    """Config -> Plan through the YAML text, exactly as `serve` does it; a problem fails the test."""
    loaded = load_text(yaml.safe_dump(dict(config), sort_keys=False), file="aiaas.yaml", env=env)
    problems = [*loaded.problems, *check(loaded, env)]
    assert loaded.config is not None, problems
    assert not has_errors(problems), problems
    return compile_plan(loaded.config, env=env)


def config_of(urls: list[str], backend: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """The tests' config: generous limits, no heartbeat, quick connects."""
    config: dict[str, Any] = {
        "server": {"heartbeat": "0s"},
        "backends": {
            "vllm": {
                "urls": urls,
                "timeout": "5s",
                "connect_timeout": "1s",
                "models": ["m", "alias"],
                "endpoints": ALL_PATHS,
                **backend,
            }
        },
        "rate_limit": {"requests_per_minute": 100_000},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    return config


@dataclass(repr=False)
class Running:
    """A gateway that listens. `gateway` is the real one; `lines` is what it logged."""

    gateway: Gateway
    port: int
    key: str
    metrics: Metrics
    open_side: OpenSide
    lines: list[bytes]
    usage: UsageRecorder
    clients: list[Raw] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Running on port {self.port}>"  # and not all that was logged: hypothesis prints it

    async def client(self, *, receive_buffer: int | None = None, tls: ssl.SSLContext | None = None) -> Raw:
        """A new connection to it."""
        client = await Raw.connect(self.port, self.key, receive_buffer=receive_buffer, tls=tls)
        self.clients.append(client)
        return client

    def log_lines(self, event: str = "inference_request") -> list[dict[str, Any]]:
        """The log lines of this event so far."""
        self.gateway.log.flush()
        lines = [json.loads(line) for block in self.lines for line in block.splitlines() if line]
        return [line for line in lines if line["event"] == event]

    def metric(self, sample: str) -> float:
        """The value of one sample, written as in the exposition, such as `aiaas_retries_total{reason="busy"}`."""
        for line in self.metrics.expose().decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == sample:
                return float(value)
        return 0.0

    def backend(self, name: str = "vllm") -> BackendState:
        """A backend as it is now."""
        return self.gateway.active.backends[name]

    def endpoints(self) -> tuple[EndpointState, ...]:
        """The endpoints of the only backend."""
        return self.backend().endpoints

    async def quiet(self) -> None:
        """Wait until no request is under way (4 s at most, less than the backend's `timeout`)."""
        async with asyncio.timeout(4):
            await self.gateway.quiet()


def let_in(gateway: Gateway) -> tuple[OpenSide, Door, int]:
    """Let clients in, on a free port of 127.0.0.1, which comes last."""
    server = gateway.active.plan.server
    limits = ConnectionLimits(server.header_timeout, server.max_header_size)
    open_side = OpenSide(gateway.handle, limits, gateway.incidents, PrefixedPaths(server.path_prefix))
    listener = socket.create_server(("127.0.0.1", 0))
    door = Door(listener, open_side, gateway.places, gateway.incidents, open_tls(server.tls), server.header_timeout)
    door.open()
    return open_side, door, listener.getsockname()[1]


StartGateway = Callable[..., Awaitable[Running]]


@pytest.fixture
async def gateway(known_key: KnownKey) -> AsyncIterator[StartGateway]:
    """Start a gateway in front of the given fakes (or URLs); see the module's docstring."""
    closers: list[Callable[[], Awaitable[None]]] = []

    async def start(
        *backends: FakeVllm | str,
        backend: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        keys: tuple[KnownKey, ...] = (),
        probes: bool = False,
        wall: Callable[[], float] = time.time,
        store: Store | None = None,
        usage: UsageStore | None = None,
        env: Mapping[str, str] = MappingProxyType({}),
        **sections: Mapping[str, Any],
    ) -> Running:
        urls = [fake if isinstance(fake, str) else fake.url for fake in backends]
        plan = plan_of(config if config is not None else config_of(urls, backend or {}, sections), env)
        lines: list[bytes] = []
        log, metrics = JsonLog(lines.append, wall, "debug"), Metrics()
        verifier = Verifier(KeyRing.from_records([key.record for key in (known_key, *keys)]))
        recorder = UsageRecorder(usage, log, metrics)
        made = Gateway(plan, verifier, MemoryStore() if store is None else store, log, metrics, recorder, wall)
        open_side, door, port = let_in(made)
        tasks = [
            asyncio.create_task(probe_forever(state), name=f"probe {name}")
            for name, state in made.active.backends.items()
            if probes
        ]
        running = Running(made, port, known_key.text, metrics, open_side, lines, recorder)

        async def close() -> None:
            for client in running.clients:
                client.reset()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await door.end()
            await open_side.shutdown(timeout=0.1)
            for state in made.active.backends.values():
                state.close()
            verifier.close()
            made.examiner.close()
            assert not running.log_lines("internal_error")
            told = repr((vars(made), vars(verifier), running.open_side)).encode() + b"".join(lines) + metrics.expose()
            assert leaked_keys(told) + leaked_hashes(told) == []

        closers.append(close)
        return running

    yield start
    for close in reversed(closers):
        await close()


# -- fakes ---------------------------------------------------------------------------------------------------------


StartFake = Callable[..., Awaitable[FakeVllm]]


@pytest.fixture
async def fake_vllms() -> AsyncIterator[StartFake]:
    """Start any number of scripted endpoints, with what `FakeVllm.start` takes."""
    fakes: list[FakeVllm] = []

    async def start(*args: Any, **kwargs: Any) -> FakeVllm:
        fakes.append(await FakeVllm.start(*args, **kwargs))
        return fakes[-1]

    yield start
    for fake in fakes:
        await fake.stop()


@pytest.fixture
async def fake_vllm(fake_vllms: StartFake) -> FakeVllm:
    """One scripted endpoint."""
    return await fake_vllms()


# -- a client ------------------------------------------------------------------------------------------------------


@dataclass
class Got:
    """An answer as it was on the wire. `whole` is False where the connection ended before its end."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    whole: bool
    head: bytes

    def header(self, name: str) -> str | None:
        """The only value of a header; a header that comes twice fails the test."""
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) <= 1, (name, values)
        return values[0] if values else None

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Raw:
    """A client that writes and reads bytes, with a parser of its own for answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self.reader = reader
        self.writer = writer
        self.key = key

    @classmethod
    async def connect(
        cls, port: int, key: str, *, receive_buffer: int | None = None, tls: ssl.SSLContext | None = None
    ) -> Raw:
        """Connect; `receive_buffer` bytes make a client that soon stops the sender."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        limit = 2**16 if receive_buffer is None else receive_buffer
        name = None if tls is None else "localhost"
        reader, writer = await asyncio.open_connection(sock=sock, limit=limit, ssl=tls, server_hostname=name)
        return cls(reader, writer, key)

    def send(self, data: bytes) -> None:
        """Write bytes."""
        self.writer.write(data)

    def request(
        self,
        body: Any = None,
        *,
        path: str = CHAT,
        method: str = "POST",
        version: str = "1.1",
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> bytes:
        """A request as bytes; `body` is JSON-able, or bytes to be sent as they are."""
        encoded = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"Host": "gateway", "Authorization": f"Bearer {key or self.key}"}
        if body is not None:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(encoded))}
        fields |= headers or {}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"{method} {path} HTTP/{version}\r\n{lines}\r\n".encode("latin-1") + encoded

    async def post(self, body: Any, **kwargs: Any) -> Got:
        """Send a request and read its answer."""
        self.send(self.request(body, **kwargs))
        return await self.answer()

    async def get(self, path: str, **kwargs: Any) -> Got:
        """Likewise, by GET."""
        method = kwargs.pop("method", "GET")
        self.send(self.request(None, path=path, method=method, **kwargs))
        return await self.answer(head_only=method == "HEAD")

    async def head(self) -> Got:
        """Read the next answer's head only; `body` is empty, `whole` False."""
        async with asyncio.timeout(10):
            head = await self._until(b"\r\n\r\n")
        start, *lines = head[:-4].decode("latin-1").split("\r\n")
        version, status, *_ = start.split(" ")
        assert version == "HTTP/1.1", start
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        return Got(int(status), headers, b"", False, head)

    async def answer(self, *, head_only: bool = False) -> Got:
        """Read one answer, by its framing; a 1xx before it is skipped."""
        got = await self.head()
        if got.status < 200:
            return await self.answer(head_only=head_only)
        async with asyncio.timeout(10):
            try:
                if head_only or got.status in (204, 304):
                    pass
                elif got.header("transfer-encoding") == "chunked":
                    assert got.header("content-length") is None
                    while data := await self.chunk():
                        got.body += data
                elif (length := got.header("content-length")) is not None:
                    got.body = await self.reader.readexactly(int(length))
                else:
                    assert got.header("connection") == "close"
                    got.body = await self.reader.read(-1)
            except asyncio.IncompleteReadError as error:
                got.body += error.partial
                return got
            except ConnectionError:
                return got
        got.whole = True
        return got

    async def chunk(self) -> bytes:
        """The data of the next chunk of a chunked answer; empty at its end. Raises IncompleteReadError."""
        async with asyncio.timeout(10):
            line = await self._until(b"\r\n")
            size = int(line, 16)
            data = await self.reader.readexactly(size + 2)
            assert data[-2:] == b"\r\n"
            return data[:-2]

    async def ended(self) -> bytes:
        """Read until the gateway ends the connection."""
        rest = b""
        async with asyncio.timeout(10):
            try:
                while data := await self.reader.read(65536):
                    rest += data
            except ConnectionError:
                pass
        return rest

    async def _until(self, end: bytes) -> bytes:
        try:
            return await self.reader.readuntil(end)
        except ConnectionError:
            raise asyncio.IncompleteReadError(b"", None) from None

    def close(self) -> None:
        """FIN."""
        self.writer.close()

    def half_close(self) -> None:
        """FIN of the sending side only."""
        self.writer.write_eof()

    def reset(self) -> None:
        """RST."""
        transport = self.writer.transport
        if transport.is_closing():
            return
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def chunked(sender: Running | Raw, *chunks: bytes, headers: str = "") -> bytes:
    """A chat request with the sender's key, whose body comes in the given raw chunks."""
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {sender.key}\r\n"
        f"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"
    )
    return head.encode() + b"".join(chunks)
