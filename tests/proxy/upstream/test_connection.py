"""aiaas.proxy.upstream.connection: one exchange over a pooled connection, on real sockets and on both event loops."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import MappingProxyType
from typing import cast

import aiohttp
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiaas.httpclient.mismatch import WRITE_HTTP
from aiaas.plan.model import EndpointPlan
from aiaas.proxy.client.answers import HeaderList
from aiaas.proxy.client.handler import HandlerRun, with_pauses
from aiaas.proxy.upstream.connection import (
    IDLE_LIMIT,
    MAX_HEAD,
    STALE_AT_ONCE,
    Failure,
    FailureKind,
    Pool,
    UpstreamConnection,
)
from tests.certificate import self_signed
from tests.fakes.vllm import Close, FakeVllm, Hang, Reset, Send, SendSlowly, Step, Wait, answer, chunk
from tests.ports import silent_port
from tests.waiting import until

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\ncontent-length: 2\r\n\r\n{}"
LENGTH = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Everything here on both loops: `serve` runs on uvloop, and asyncio's own is what the interface was made for."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


class Recorder:
    """A Sink that records its calls."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: HeaderList = []
        self.data = b""
        self.reads = 0
        self.ended = False
        self.failure: Failure | None = None
        self.headed = asyncio.Event()
        self.over = asyncio.Event()
        self.on_body: Callable[[], None] | None = None

    def head(self, status: int, headers: HeaderList) -> None:
        assert not self.headed.is_set()
        self.status, self.headers = status, headers
        self.headed.set()

    def body(self, data: bytes) -> None:
        assert data
        assert self.headed.is_set()
        assert not self.over.is_set()
        self.data += data
        self.reads += 1
        if self.on_body is not None:
            self.on_body()

    def end(self) -> None:
        assert not self.over.is_set()
        self.ended = True
        self.over.set()

    def failed(self, failure: Failure) -> None:
        assert not self.over.is_set()
        self.failure = failure
        self.over.set()

    @property
    def kind(self) -> FailureKind | None:
        """The way in which it failed."""
        return self.failure and self.failure.kind


def endpoint(port: int, *, tls: bool = False, host: str = "127.0.0.1") -> EndpointPlan:
    scheme = "https" if tls else "http"
    return EndpointPlan(f"{scheme}://{host}:{port}", host, port, tls, "", MappingProxyType({}))


@pytest.fixture
async def pool(fake_vllm: FakeVllm) -> AsyncIterator[Pool]:
    """The pool of one scripted endpoint. Afterwards nothing is left open that a test did not leave open."""
    pool = Pool(endpoint(fake_vllm.port), 1.0)
    yield pool
    pool.close()


async def opened(pool: Pool) -> UpstreamConnection:
    connection = await with_pauses(pool.connect())
    assert isinstance(connection, UpstreamConnection), connection
    return connection


async def exchanged(connection: UpstreamConnection, request: bytes = REQUEST) -> Recorder:
    recorder = Recorder()
    connection.exchange(request, recorder)
    async with asyncio.timeout(5):
        await recorder.over.wait()
    return recorder


def taken(pool: Pool, later: float = 0.0) -> UpstreamConnection | None:
    return pool.take_idle(asyncio.get_running_loop().time() + later)


# -- whole answers -------------------------------------------------------------------------------------------------

WHOLE = {
    "length": ((Send(LENGTH),), b"hello", True),
    "length, byte by byte": ((SendSlowly(LENGTH),), b"hello", True),
    "empty": ((Send(answer(200, b"")),), b"", True),
    "chunked": ((Send(CHUNKED + chunk(b"he") + chunk(b"llo") + b"0\r\n\r\n"),), b"hello", True),
    "chunked, byte by byte": ((SendSlowly(CHUNKED + chunk(b"he") + chunk(b"llo") + b"0\r\n\r\n"),), b"hello", True),
    "chunk extensions": ((Send(CHUNKED + b'5;a=b;c="d"\r\nhello\r\n0\r\n\r\n'),), b"hello", True),
    "trailers": ((Send(CHUNKED + b"5\r\nhello\r\n0\r\nx-t: 1\r\n\r\n"),), b"hello", True),
    "until the connection ends": ((Send(b"HTTP/1.1 200 OK\r\n\r\nhel"), Send(b"lo"), Close()), b"hello", False),
    "HTTP/1.0": ((Send(b"HTTP/1.0 200 OK\r\n\r\nhello"), Close()), b"hello", False),
    "connection: close": (
        (Send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello"),),
        b"hello",
        False,
    ),
    "behind 100 and 103": (
        (Send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + LENGTH),),
        b"hello",
        True,
    ),
    "behind 199 and 000 with a body": (
        (
            Send(
                b"HTTP/1.1 199 Odd\r\ncontent-length: 2\r\n\r\nno"
                + b"HTTP/1.1 000 Odd\r\ncontent-length: 2\r\n\r\nno"
                + LENGTH
            ),
        ),
        b"hello",
        True,
    ),
    "204": ((Send(b"HTTP/1.1 204 No Content\r\n\r\n"),), b"", True),
}


@pytest.mark.parametrize(("steps", "body", "reused"), WHOLE.values(), ids=WHOLE)
async def test_whole_answer(
    fake_vllm: FakeVllm, pool: Pool, steps: tuple[Step, ...], body: bytes, reused: bool
) -> None:
    """However it is framed and cut, the sink gets head, body without framing and end; then the connection is kept."""
    fake_vllm.play(*steps)
    recorder = await exchanged(await opened(pool))
    assert (recorder.ended, recorder.data, recorder.failure) == (True, body, None)
    assert not any(name in (b"x-t", b"link") for name, _ in recorder.headers)
    assert (taken(pool) is not None) == reused
    if not reused:
        await until(lambda: fake_vllm.open_connections == 0)


async def test_one_read_is_one_call(fake_vllm: FakeVllm, pool: Pool) -> None:
    """Chunks that come in one read go to the sink in one call."""
    fake_vllm.play(Send(CHUNKED + b"".join(chunk(b"x" * 100) for _ in range(20)) + b"0\r\n\r\n"))
    recorder = await exchanged(await opened(pool))
    assert (len(recorder.data), recorder.reads) == (2000, 1)


async def test_header_names_are_lower_case(fake_vllm: FakeVllm, pool: Pool) -> None:
    """Names come in lower case, values as they are, in order."""
    fake_vllm.play(Send(b"HTTP/1.1 200 OK\r\nX-A: One\r\nContent-Length: 0\r\nx-a: two\r\n\r\n"))
    recorder = await exchanged(await opened(pool))
    assert recorder.headers == [(b"x-a", b"One"), (b"content-length", b"0"), (b"x-a", b"two")]


async def test_reuse(fake_vllm: FakeVllm, pool: Pool) -> None:
    """A second exchange goes over the same connection, and knows nothing of the first."""
    fake_vllm.play(Send(b"HTTP/1.1 200 OK\r\nx-first: 1\r\ncontent-length: 5\r\n\r\nhello"))
    fake_vllm.play(Send(CHUNKED + chunk(b"again") + b"0\r\n\r\n"))
    await exchanged(await opened(pool))
    connection = taken(pool)
    assert connection is not None
    second = await exchanged(connection)
    assert (second.data, second.headers) == (b"again", [(b"transfer-encoding", b"chunked")])
    assert [post.connection for post in fake_vllm.posts] == [0, 0]


# -- malformed answers ------------------------------------------------------------------------------------------------

BROKEN = {
    "not HTTP": (Send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), FailureKind.MALFORMED),
    "no status": (Send(b"HTTP/1.1 abc\r\n\r\n"), FailureKind.MALFORMED),
    "two lengths": (
        Send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello"),
        FailureKind.MALFORMED,
    ),
    "length and chunked": (
        Send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        FailureKind.MALFORMED,
    ),
    "negative length": (Send(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"), FailureKind.MALFORMED),
    "coded body": (
        Send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"),
        FailureKind.MALFORMED,
    ),
    "chunk size that is not a number": (Send(CHUNKED + b"xyz\r\n"), FailureKind.MALFORMED),
    "chunk size out of range": (Send(CHUNKED + b"fffffffffffffffff\r\n"), FailureKind.MALFORMED),
    "chunk longer than its size": (Send(CHUNKED + b"2\r\nhello\r\n"), FailureKind.MALFORMED),
    "folded header": (Send(b"HTTP/1.1 200 OK\r\na: b\r\n c: d\r\n\r\n"), FailureKind.MALFORMED),
    "101": (
        Send(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"),
        FailureKind.MALFORMED,
    ),
    "bare 101": (Send(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + LENGTH), FailureKind.MALFORMED),
    "head too large": (
        Send(b"HTTP/1.1 200 OK\r\n" + b"x-a: %b\r\n" % (b"y" * 1000) * (MAX_HEAD // 1000 + 1)),
        FailureKind.MALFORMED,
    ),
    "endless 1xx": (Send(b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_HEAD // 20)), FailureKind.MALFORMED),
    "closed without a byte": (Close(), FailureKind.RESET),
    "reset without a byte": (Reset(), FailureKind.RESET),
    "closed in the head": (Send(b"HTTP/1.1 200"), FailureKind.RESET),
    "closed in the body": (Send(LENGTH[:-1]), FailureKind.RESET),
    "closed between chunks": (Send(CHUNKED + chunk(b"hello")), FailureKind.RESET),
    "closed behind a 1xx": (Send(b"HTTP/1.1 100 Continue\r\n\r\n"), FailureKind.RESET),
}


@pytest.mark.parametrize(("step", "kind"), BROKEN.values(), ids=BROKEN)
async def test_broken_answer(fake_vllm: FakeVllm, pool: Pool, step: Step, kind: FailureKind) -> None:
    """A failure of the right kind, reported once; the connection is closed at once and never kept."""
    steps = (step,) if kind is FailureKind.MALFORMED else (step, Close())
    fake_vllm.play(*steps)
    recorder = await exchanged(await opened(pool))
    assert (recorder.kind, recorder.ended) == (kind, False)
    assert taken(pool) is None
    await until(lambda: fake_vllm.open_connections == 0)


async def test_reset_after_bytes_does_not_end_an_answer(fake_vllm: FakeVllm, pool: Pool) -> None:
    """An answer that ends with the connection is whole after FIN, and cut after RST."""
    fake_vllm.play(Send(b"HTTP/1.1 200 OK\r\n\r\nhel"), Wait(go := asyncio.Event()), Reset())
    recorder = Recorder()
    (await opened(pool)).exchange(REQUEST, recorder)
    await recorder.headed.wait()
    go.set()
    await recorder.over.wait()
    assert (recorder.kind, recorder.data) == (FailureKind.RESET, b"hel")


# -- what comes when nothing was asked -----------------------------------------------------------------------------

RUBBISH = {
    "text": b"rubbish",
    "a second answer": LENGTH,
    "half an answer": b"HTTP/1.1 200 OK\r\nx-s",
    "a zero": b"\0",
}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
async def test_rubbish_behind_an_answer(fake_vllm: FakeVllm, pool: Pool, rubbish: bytes) -> None:
    """The answer stands and the connection does not: the next client must never see those bytes."""
    fake_vllm.play(Send(LENGTH + rubbish))
    recorder = await exchanged(await opened(pool))
    assert (recorder.ended, recorder.data) == (True, b"hello")
    assert taken(pool) is None


@pytest.mark.parametrize("rubbish", [*RUBBISH.values(), b"\r\n"], ids=[*RUBBISH, "an empty line"])
async def test_rubbish_on_an_idle_connection(fake_vllm: FakeVllm, pool: Pool, rubbish: bytes) -> None:
    """Bytes that nobody asked for close the connection."""
    fake_vllm.play(Send(LENGTH), Wait(go := asyncio.Event()), Send(rubbish), Hang())
    recorder = await exchanged(await opened(pool))
    assert recorder.ended
    go.set()
    await until(lambda: fake_vllm.open_connections == 0)
    assert taken(pool) is None


async def test_early_answer(fake_vllm: FakeVllm, pool: Pool) -> None:
    """An answer that comes while the request is still being written stands; the connection is not used again."""
    asked = asyncio.Event()
    fake_vllm.early = (Wait(asked), Send(answer(413, b"too large")), Hang())
    connection = await opened(pool)
    body = b"x" * 30_000_000
    asked.set()
    recorder = await exchanged(connection, REQUEST[:-2] + body)
    assert (recorder.status, recorder.data) == (413, b"too large")
    assert taken(pool) is None
    await until(lambda: fake_vllm.open_connections == 0)


async def test_fin_while_the_request_is_being_written(pool: Pool) -> None:
    """A backend that closes its side and reads nothing ends the exchange at once, whatever is still unsent."""
    peers: list[socket.socket] = []
    async with deaf_server(peers.append) as port:
        connection = await opened(Pool(endpoint(port), 1.0))
        await until(lambda: bool(peers))
        peers[0].shutdown(socket.SHUT_WR)
        recorder = await exchanged(connection, REQUEST[:-2] + b"x" * 30_000_000)
        assert recorder.kind is FailureKind.RESET


class deaf_server:
    """Accepts one connection, does something to it, and reads nothing."""

    def __init__(self, then: Callable[[socket.socket], object]) -> None:
        self.then = then

    async def __aenter__(self) -> int:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.task = asyncio.create_task(self.run())
        return int(self.sock.getsockname()[1])

    async def run(self) -> None:
        self.peer, _ = await asyncio.get_running_loop().sock_accept(self.sock)
        self.then(self.peer)

    async def __aexit__(self, *_: object) -> None:
        await self.task
        self.peer.close()
        self.sock.close()


# -- idle connections ----------------------------------------------------------------------------------------------


async def used_connection(fake_vllm: FakeVllm, pool: Pool, *then: Step) -> UpstreamConnection:
    """A connection that has carried an answer, and the next request's script."""
    fake_vllm.play(Send(LENGTH))
    fake_vllm.play(*then)
    connection = await opened(pool)
    assert (await exchanged(connection)).ended
    assert taken(pool) is connection
    return connection


@pytest.mark.parametrize("idle", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("end", [Close(), Reset()], ids=["FIN", "RST"])
async def test_used_connection_closed_before_a_byte_is_stale(
    fake_vllm: FakeVllm, pool: Pool, end: Step, idle: float
) -> None:
    """However long it was idle: the backend had closed it, and the request never ran."""
    connection = await used_connection(fake_vllm, pool, end)
    connection.idle_since -= idle
    assert (await exchanged(connection)).kind is FailureKind.STALE


@pytest.mark.parametrize("gone", [0, 1], ids=["FIN", "RST"])
async def test_connection_closed_in_the_turn_of_its_answer_is_stale(gone: int) -> None:
    """The next request is written to it before the loop reports its end."""
    loop = asyncio.get_running_loop()
    pool = Pool(endpoint(1), 1.0)
    connection, first, second = UpstreamConnection(pool, loop), Recorder(), Recorder()
    connection.connection_made(NoSocket())
    connection.exchange(REQUEST, first)
    connection.data_received(LENGTH)
    assert taken(pool) is connection
    connection.exchange(REQUEST, second)
    if gone:
        connection.connection_lost(ConnectionResetError())
    else:
        connection.eof_received()
    assert (first.ended, second.kind) == (True, FailureKind.STALE)
    pool.close()


@pytest.mark.parametrize(
    ("after", "kind"),
    [(STALE_AT_ONCE - 0.5, FailureKind.STALE), (STALE_AT_ONCE, FailureKind.RESET)],
    ids=["at once", "later"],
)
async def test_used_connection_that_closes_later_is_reset(
    fake_vllm: FakeVllm, pool: Pool, after: float, kind: FailureKind
) -> None:
    """A vLLM that is killed seconds after a request was running it, which may be why: it must not get it again."""
    connection = await used_connection(fake_vllm, pool, Hang())
    recorder = Recorder()
    connection.exchange(REQUEST, recorder)
    connection._sent_at -= after
    connection.eof_received()
    assert recorder.kind is kind


async def test_our_own_lack_of_descriptors_is_not_the_backends_fault(fake_vllm: FakeVllm, pool: Pool) -> None:
    """Out of file descriptors, nothing is known about the backend; its health must not suffer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken_up = [os.dup(0) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken_up) - 2, hard))
    try:
        failure = await with_pauses(pool.connect())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken_up:
            os.close(descriptor)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.NO_RESOURCES


@pytest.mark.parametrize("byte", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"], ids=["a byte", "a 1xx"])
async def test_used_connection_closed_behind_a_byte_is_reset(fake_vllm: FakeVllm, pool: Pool, byte: bytes) -> None:
    """A backend that sent any byte of an answer has seen the request."""
    connection = await used_connection(fake_vllm, pool, Send(byte), Close())
    assert (await exchanged(connection)).kind is FailureKind.RESET


@pytest.mark.parametrize(
    ("status", "kept"), [(400, True), (429, True), (499, True), (500, False), (502, False), (503, False), (599, False)]
)
async def test_connection_that_carried_a_5xx_is_not_kept(
    fake_vllm: FakeVllm, pool: Pool, status: int, kept: bool
) -> None:
    """vLLM closes it behind an unhandled exception's 500, and does not say so."""
    fake_vllm.play(Send(answer(status, b"{}")))
    assert (await exchanged(await opened(pool))).status == status
    assert (taken(pool) is not None) == kept
    await until(lambda: fake_vllm.open_connections == int(kept))


async def test_stale_connection_condemns_the_other_idle_ones(fake_vllm: FakeVllm, pool: Pool) -> None:
    """The cause that closed one idle connection unseen (a firewall's timer) closed the others: retry on a new one."""
    first, second = await opened(pool), await opened(pool)
    for connection in (first, second):
        assert (await exchanged(connection)).ended
        connection.idle_since -= 2
    fake_vllm.play(Reset())
    assert taken(pool) is second
    assert (await exchanged(second)).kind is FailureKind.STALE
    assert taken(pool) is None


async def test_idle_too_long_is_not_used(fake_vllm: FakeVllm, pool: Pool) -> None:
    """vLLM closes after 5 s; from 4 s on a connection is not used, just before it is."""
    fake_vllm.play(Send(LENGTH))
    await exchanged(await opened(pool))
    connection = taken(pool, later=IDLE_LIMIT - 0.1)
    assert connection is not None
    assert (await exchanged(connection)).ended
    assert taken(pool, later=IDLE_LIMIT) is None
    await until(lambda: fake_vllm.open_connections == 0)


async def test_idle_too_long_is_swept(fake_vllm: FakeVllm, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections are closed by themselves, without a request to notice them."""
    monkeypatch.setattr("aiaas.proxy.upstream.connection.IDLE_LIMIT", 0.05)
    connections = [await opened(pool) for _ in range(3)]
    for connection in connections:
        await exchanged(connection)
    await until(lambda: fake_vllm.open_connections == 0)
    assert repr(pool).endswith("0 in flight, 0 idle>")


async def test_newest_first(fake_vllm: FakeVllm, pool: Pool) -> None:
    """The connection used last is taken first, so that a burst's extra ones age and go."""
    older, newer = await opened(pool), await opened(pool)
    await exchanged(older)
    await exchanged(newer)
    assert [taken(pool), taken(pool), taken(pool)] == [newer, older, None]


async def test_closed_idle_connection_is_forgotten(fake_vllm: FakeVllm, pool: Pool) -> None:
    """A backend's FIN on an idle connection takes it out of the pool."""
    fake_vllm.play(Send(LENGTH), Wait(go := asyncio.Event()), Close())
    await exchanged(await opened(pool))
    assert "1 idle" in repr(pool)
    go.set()
    await until(lambda: "0 idle" in repr(pool))
    assert taken(pool) is None


# -- abort and close -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [(Hang(),), (Send(CHUNKED), Hang()), (Send(CHUNKED + chunk(b"x")), Hang())],
    ids=["before the head", "behind the head", "in the body"],
)
async def test_abort(fake_vllm: FakeVllm, pool: Pool, steps: tuple[Step, ...]) -> None:
    """Abort ends the connection at once, calls the sink no more, and leaves nothing behind."""
    fake_vllm.play(*steps)
    connection, recorder = await opened(pool), Recorder()
    connection.exchange(REQUEST, recorder)
    await until(lambda: bool(fake_vllm.posts))
    if len(steps) > 1:
        await recorder.headed.wait()
    connection.abort()
    connection.abort()
    await until(lambda: fake_vllm.open_connections == 0)
    assert not recorder.over.is_set()
    assert not connection.is_open()
    assert taken(pool) is None


async def test_abort_from_inside_the_sink(fake_vllm: FakeVllm, pool: Pool) -> None:
    """A sink that has seen enough may abort inside a call."""
    fake_vllm.play(Send(CHUNKED + chunk(b"x") + b"0\r\n\r\n"))
    connection, recorder = await opened(pool), Recorder()
    recorder.on_body = connection.abort
    connection.exchange(REQUEST, recorder)
    await until(lambda: fake_vllm.open_connections == 0)
    assert (recorder.data, recorder.over.is_set()) == (b"x", False)
    assert taken(pool) is None


async def test_abort_after_the_end_leaves_the_next_exchange_alone(fake_vllm: FakeVllm, pool: Pool) -> None:
    """The connection may have been taken by another client before the one that has left came to end its own."""
    connection = await opened(pool)
    fake_vllm.play(Send(LENGTH))
    first, second = await exchanged(connection), Recorder()
    assert taken(pool) is connection
    connection.abort(first)
    connection.exchange(REQUEST, second)
    connection.abort(first)
    async with asyncio.timeout(5):
        await second.over.wait()
    assert second.ended
    connection.abort()


async def test_closed_connection_is_freed_by_reference_counting(fake_vllm: FakeVllm, pool: Pool) -> None:
    """Parser and connection refer to each other; a closed one must not wait for a full collection."""
    fake_vllm.play(Hang())
    connection = await opened(pool)
    connection.exchange(REQUEST, Recorder())
    await until(lambda: bool(fake_vllm.posts))
    gone = weakref.ref(connection)
    gc.disable()
    try:
        connection.abort()
        del connection
        await until(lambda: fake_vllm.open_connections == 0)
        await until(lambda: gone() is None)
    finally:
        gc.enable()


async def test_close_keeps_what_is_under_way(fake_vllm: FakeVllm, pool: Pool) -> None:
    """Closing the pool drops idle connections; an exchange goes on to its end and its connection with it."""
    await exchanged(await opened(pool))
    fake_vllm.play(Send(LENGTH[:-1]), Wait(go := asyncio.Event()), Send(LENGTH[-1:]))
    connection, recorder = await opened(pool), Recorder()
    connection.exchange(REQUEST, recorder)
    await recorder.headed.wait()
    pool.close()
    await until(lambda: fake_vllm.open_connections == 1)
    go.set()
    await recorder.over.wait()
    assert (recorder.ended, recorder.data) == (True, b"hello")
    await until(lambda: fake_vllm.open_connections == 0)


async def test_one_exchange_at_a_time(fake_vllm: FakeVllm, pool: Pool) -> None:
    """A second exchange on a busy or closed connection is a bug, and says so."""
    fake_vllm.play(Hang())
    connection = await opened(pool)
    connection.exchange(REQUEST, Recorder())
    with pytest.raises(RuntimeError, match="exchanging"):
        connection.exchange(REQUEST, Recorder())
    connection.abort()
    with pytest.raises(RuntimeError, match="closed"):
        connection.exchange(REQUEST, Recorder())


async def test_pause_and_resume(fake_vllm: FakeVllm, pool: Pool) -> None:
    """While paused nothing comes; afterwards everything does, and a kept connection reads again."""
    more = asyncio.Event()
    fake_vllm.play(Send(CHUNKED + chunk(b"a")), Wait(more), Send(chunk(b"b") + b"0\r\n\r\n"))
    connection, recorder = await opened(pool), Recorder()
    recorder.on_body = connection.pause_reading
    connection.exchange(REQUEST, recorder)
    await recorder.headed.wait()
    more.set()
    await fake_vllm.posts[0].played.wait()
    await asyncio.sleep(0.02)
    assert recorder.data == b"a"
    connection.resume_reading()
    await recorder.over.wait()
    assert recorder.data == b"ab"
    assert taken(pool) is connection
    assert (await exchanged(connection)).ended


async def test_pausing_a_closed_connection_is_harmless(fake_vllm: FakeVllm, pool: Pool) -> None:
    """The client's buffer may fill or drain when the backend has gone already."""
    fake_vllm.play(Close())
    connection = await opened(pool)
    await exchanged(connection)
    connection.pause_reading()
    connection.resume_reading()
    connection.abort()


# -- connecting ----------------------------------------------------------------------------------------------------


async def test_refused(fake_vllm: FakeVllm, pool: Pool) -> None:
    """Nothing listens: a CONNECT failure that says so."""
    await fake_vllm.down()
    assert await with_pauses(pool.connect()) == Failure(FailureKind.CONNECT, "connection refused", refused=True)


async def test_connect_timeout() -> None:
    """An address that does not answer costs `connect_timeout` and is not `refused`."""
    with silent_port() as port:
        failure = await with_pauses(Pool(endpoint(port), 0.05).connect())
    assert failure == Failure(FailureKind.CONNECT, "no connection within 0.05 s")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".invalid"], ids=["unknown", "impossible"])
async def test_unknown_name(host: str) -> None:
    """A name that cannot be resolved is a CONNECT failure, not an exception."""
    failure = await with_pauses(Pool(endpoint(1, host=host), 5.0).connect())
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.refused, bool(failure.detail)) == (FailureKind.CONNECT, False, True)


async def test_tls_to_a_plain_server() -> None:
    """A backend that does not speak TLS is a CONNECT failure that names TLS, or its silence."""
    async with deaf_server(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        failure = await with_pauses(Pool(endpoint(port, tls=True), 1.0).connect())
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.CONNECT
    assert failure.detail == WRITE_HTTP


async def test_deadline_before_connect_timeout() -> None:
    """The request's deadline ends a connection that is being made, and the failure says which of the two it was."""
    with silent_port() as port:
        pool = Pool(endpoint(port), 30.0)
        failure = await with_pauses(pool.connect(asyncio.get_running_loop().time() + 0.05))
        assert failure == Failure(FailureKind.TIMEOUT, "the request took longer than total_timeout allows")
        pool.dialer.found(["127.0.0.2", "127.0.0.1"])  # the first refuses
        failure = await with_pauses(pool.connect(asyncio.get_running_loop().time() + 0.05))
        assert isinstance(failure, Failure)
        assert failure.kind is FailureKind.TIMEOUT
        pool = Pool(endpoint(port), 0.05)
        failure = await with_pauses(pool.connect(asyncio.get_running_loop().time() + 30))
        assert failure == Failure(FailureKind.CONNECT, "no connection within 0.05 s")


async def test_refusal_before_the_deadline(fake_vllm: FakeVllm, pool: Pool) -> None:
    """A deadline that has not come yet changes nothing about a failure."""
    await fake_vllm.down()
    failure = await with_pauses(pool.connect(asyncio.get_running_loop().time() + 30))
    assert failure == Failure(FailureKind.CONNECT, "connection refused", refused=True)


async def test_handler_connects_without_a_task(pool: Pool) -> None:
    """A new connection costs a request no task of its own."""
    ended: list[object] = []
    run = HandlerRun(pool.connect(), asyncio.get_running_loop(), lambda *end: ended.append(end))
    run.step()
    tasked = False
    while not ended:
        tasked = tasked or run.has_task
        await asyncio.sleep(0)
    ((connection, error),) = cast(list[tuple[object, object]], ended)
    assert isinstance(connection, UpstreamConnection)
    assert (error, tasked) == (None, False)
    connection.abort()


@pytest.mark.parametrize("in_task", [False, True], ids=["handler", "task"])
async def test_connect_can_be_cancelled(fake_vllm: FakeVllm, pool: Pool, in_task: bool) -> None:
    """A client that leaves while its backend is being connected leaves no connection behind."""

    async def connecting() -> UpstreamConnection | Failure:
        return await (with_pauses(pool.connect()) if in_task else pool.connect())

    loop = asyncio.get_running_loop()
    outcomes: list[tuple[UpstreamConnection | Failure | None, BaseException | None]] = []
    ends: list[BaseException | None] = []
    for turns in range(16):
        run = HandlerRun(connecting(), loop, lambda *end: outcomes.append(end))
        run.step()
        for _ in range(turns):
            await asyncio.sleep(0)
        run.cancel()
        await until(lambda: bool(outcomes))
        connection, error = outcomes.pop()
        ends.append(error)
        assert isinstance(connection, UpstreamConnection) or isinstance(error, asyncio.CancelledError)
        if isinstance(connection, UpstreamConnection):
            connection.abort()
    assert isinstance(ends[0], asyncio.CancelledError)
    assert ends[-1] is None
    await until(lambda: fake_vllm.open_connections == 0)


def test_repr_shows_no_request() -> None:
    """An operator's view of a connection is its address and state."""
    loop = asyncio.new_event_loop()
    pool = Pool(endpoint(1), 1.0)
    connection = UpstreamConnection(pool, loop)
    loop.close()
    assert repr(connection) == "<UpstreamConnection http://127.0.0.1:1 closed, 0 answers>"
    assert repr(pool) == "<Pool http://127.0.0.1:1: 0 in flight, 0 idle>"


# -- against a general client --------------------------------------------------------------------------------------


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """Answers, framed in every way, some of them spoiled."""
    body = draw(st.binary(max_size=40))
    lines = [b"HTTP/1.%d %d Whatever" % (draw(st.sampled_from([1, 1, 1, 0])), draw(st.sampled_from([200, 404, 503])))]
    lines += draw(st.lists(st.sampled_from([b"x-a: b", b"X-B:c", b"x-empty:", b"date: now"]), max_size=3))
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    if framing == "chunked":
        cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=3)))
        parts = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        lines.append(draw(st.sampled_from([b"transfer-encoding: chunked", b"Transfer-Encoding: Chunked"])))
        last = draw(st.sampled_from([b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nx-t: 1\r\n\r\n", b"", b"0\r\n"]))
        payload = b"".join(chunk(part) for part in parts if part) + last
    else:
        payload = body
        if framing == "length":
            lines.append(b"Content-Length: %d" % (len(body) + draw(st.sampled_from([0, 0, 0, 1]))))
    spoilers = [[], [], [], [b"connection: close"], [b"no colon"]]
    if framing != "close":
        spoilers.append([b"content-length: 3"])
    lines += draw(st.sampled_from(spoilers))
    before = draw(st.sampled_from([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    return before + b"\r\n".join(lines) + b"\r\n\r\n" + payload


Told = tuple[int, list[tuple[bytes, bytes]], bytes] | None


async def by_aiohttp(port: int) -> Told:
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as session:
        try:
            async with session.post(f"http://127.0.0.1:{port}/", data=b"{}") as response:
                body = await response.read()
                return response.status, [(name.lower(), value) for name, value in response.raw_headers], body
        except aiohttp.ClientError:
            return None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(response=responses())
async def test_same_as_aiohttp_at_every_cut(fake_vllm: FakeVllm, response: bytes) -> None:
    """A general client gets the same status, headers and body, or fails too; and so do we however the bytes are cut."""
    fake_vllm.play(Send(response), Close())
    fake_vllm.play(Send(response), Close())
    theirs = await by_aiohttp(fake_vllm.port)
    pool = Pool(endpoint(fake_vllm.port), 1.0)
    ours = await exchanged(await opened(pool))
    pool.close()
    told = (ours.status, ours.headers, ours.data) if ours.ended else None
    assert told == theirs
    for cut in range(1, len(response)):
        assert without_socket(response[:cut], response[cut:]) == told


class NoSocket(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes) -> None:
        pass

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0


def without_socket(*parts: bytes) -> Told:
    """The connection's events after these reads, and then a FIN."""
    loop = asyncio.get_running_loop()
    pool = Pool(endpoint(1), 1.0)
    pool.close()
    connection, recorder = UpstreamConnection(pool, loop), Recorder()
    connection.connection_made(NoSocket())
    connection.exchange(REQUEST, recorder)
    for part in parts:
        connection.data_received(part)
    connection.eof_received()
    connection.connection_lost(None)
    return (recorder.status, recorder.headers, recorder.data) if recorder.ended else None


# -- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def secure_vllm(certificate: tuple[Path, Path]) -> AsyncIterator[FakeVllm]:
    """A scripted endpoint behind TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    fake = await FakeVllm.start(context)
    yield fake
    await fake.stop()


async def test_untrusted_certificate(secure_vllm: FakeVllm) -> None:
    """A certificate that nobody vouches for is a CONNECT failure that names TLS; no request goes there."""
    failure = await with_pauses(Pool(endpoint(secure_vllm.port, tls=True), 2.0).connect())
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.CONNECT
    assert "its certificate does not verify: signed by an unknown authority, self" in failure.detail


async def test_certificate_of_another_host(
    secure_vllm: FakeVllm, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trusted certificate of another name is refused all the same."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    failure = await with_pauses(Pool(endpoint(secure_vllm.port, tls=True, host="localhost"), 2.0).connect())
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.CONNECT


async def test_over_tls(secure_vllm: FakeVllm, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS an answer comes as over TCP, also through a pause, and the connection is kept and aborted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    pool = Pool(endpoint(secure_vllm.port, tls=True), 2.0)
    more = asyncio.Event()
    secure_vllm.play(Send(CHUNKED + chunk(b"a")), Wait(more), Send(chunk(b"b") + b"0\r\n\r\n"))
    connection, recorder = await opened(pool), Recorder()
    recorder.on_body = connection.pause_reading
    connection.exchange(REQUEST, recorder)
    await recorder.headed.wait()
    more.set()
    await asyncio.sleep(0.02)
    assert recorder.data == b"a"
    connection.resume_reading()
    await recorder.over.wait()
    assert (recorder.data, taken(pool)) == (b"ab", connection)
    secure_vllm.play(Send(b"HTTP/1.1 200 OK\r\n\r\nuntil the end"), Close())
    last = await exchanged(connection)
    assert (last.ended, last.data) == (True, b"until the end")
    await until(lambda: secure_vllm.open_connections == 0)
