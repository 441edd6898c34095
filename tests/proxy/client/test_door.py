"""aiaas.proxy.client.door: floods of connections, handshakes and heads on real sockets, and their effect on others"""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trustme
from aiohttp.streams import StreamReader

from aiaas.proxy.client.client_hello import MOST
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.door import Door
from tests.fakes.vllm import DONE, STREAM_HEAD, FakeVllm, Send, Wait, chunk, token_event
from tests.proxy.client.test_client_hello import header, hello
from tests.proxy.conftest import Raw, Running, StartGateway
from tests.proxy.loops import both_loops
from tests.waiting import until

BODY: dict[str, Any] = {"model": "m", "messages": []}
HEAD = b"GET /health HTTP/1.1\r\nHost: gateway\r\n"


# Each test on both loops: each ends a handshake in a way of its own.
event_loop_policy = both_loops


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Signs the gateway's certificate."""
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
def narrow(gateway: StartGateway, fake_vllm: FakeVllm) -> Start:
    """Start a gateway for 20 connections."""

    async def start(**server: Any) -> Running:
        return await gateway(fake_vllm, server={"max_connections": 20, **server})

    return start


@pytest.fixture
def narrow_tls(narrow: Start, authority: trustme.CA, tmp_path: Any) -> Start:
    """Start a gateway for 20 connections under TLS."""
    made = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())

    async def start(**server: Any) -> Running:
        return await narrow(tls={"cert_file": str(cert), "key_file": str(key)}, **server)

    return start


async def connect(running: Running) -> Raw:
    """A bare connection, closed with the test."""
    return await running.client()


def turned_away(running: Running, reason: str) -> float:
    """The number of connections that were turned away for this reason."""
    return running.metric(f'aiaas_connections_turned_away_total{{reason="{reason}"}}')


# -- floods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"\r\n"], ids=["silent", "unfinished heads", "asked once"])
async def test_a_flood_of_strangers_keeps_nobody_out(narrow: Start, fake_vllm: FakeVllm, sent: bytes) -> None:
    """A stream goes on, an idle client is served on its connection, and so is a new client."""
    running = await narrow()
    finish = asyncio.Event()
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Wait(finish), Send(chunk(DONE) + b"0\r\n\r\n"))
    streaming, idle = await connect(running), await connect(running)
    streaming.send(streaming.request(BODY | {"stream": True}))
    assert (await streaming.head()).status == 200
    assert (await idle.post(BODY)).status == 200
    flood = []
    for _ in range(60):
        flood.append(await connect(running))
        flood[-1].send(sent)
    await until(lambda: turned_away(running, "evicted") >= 42)
    await flood[0].ended()
    assert len(running.gateway.places) <= 20
    for _ in range(3):
        assert (await (await connect(running)).get("/health")).status == 200
    assert (await idle.post(BODY)).status == 200
    finish.set()
    events = b""
    while data := await streaming.chunk():
        events += data
    assert b"[DONE]" in events
    assert turned_away(running, "full") == 0
    [line] = running.log_lines("connections_turned_away")
    assert line["evicted"] >= 1


async def test_probes_are_answered_while_all_member_places_are_busy(narrow: Start, fake_vllm: FakeVllm) -> None:
    """A further request gets 503, on a connection that could be made."""
    running = await narrow()
    finish = asyncio.Event()
    clients = []
    for _ in range(12):
        fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Wait(finish), Send(chunk(DONE) + b"0\r\n\r\n"))
        clients.append(await connect(running))
        clients[-1].send(clients[-1].request(BODY | {"stream": True}))
        assert (await clients[-1].head()).status == 200
    late = await (await connect(running)).post(BODY)
    assert (late.status, late.json["error"]["code"], late.header("retry-after")) == (503, "overloaded", "2")
    for _ in range(40):
        assert (await (await connect(running)).get("/ready")).status == 200
    finish.set()


async def test_unfinished_heads_end_where_memory_is_spent(narrow: Start, fake_vllm: FakeVllm) -> None:
    """Oldest first, long before there are too many connections."""
    running = await narrow(max_connections=1000)
    places = running.gateway.places
    places.most_bytes = 100 * places.cost + 20 * 30_000 * 3
    flood = []
    for _ in range(60):
        flood.append(await connect(running))
        flood[-1].send(HEAD + b"x-a: " + b"y" * 30_000)
    await until(lambda: turned_away(running, "evicted") >= 20)
    assert places.held <= places.most_bytes
    assert (await (await connect(running)).post(BODY)).status == 200
    for client in flood:
        client.reset()
    await until(lambda: places.held <= 2 * places.cost)


async def test_a_head_that_becomes_whole_counts_no_more(narrow: Start) -> None:
    """The client's connection goes on, and may send the next head."""
    running = await narrow()
    places = running.gateway.places
    client = await connect(running)
    for _ in range(2):
        client.send(HEAD + b"x-a: " + b"y" * 10_000)
        await until(lambda: places.held > places.cost + 30_000)
        client.send(b"\r\n\r\n")
        assert (await client.answer()).status == 200
        assert places.held == places.cost


async def test_one_address_has_its_bound(narrow: Start) -> None:
    """Further connections are closed before anything is read."""
    running = await narrow(max_connections_per_address=3)
    first = [await connect(running) for _ in range(3)]
    assert (await first[2].get("/health")).status == 200
    assert await (await connect(running)).ended() == b""
    assert turned_away(running, "address") == 1
    first[0].close()
    await until(lambda: len(running.gateway.places) == 2)
    assert (await (await connect(running)).get("/health")).status == 200


async def test_connections_and_their_memory_are_in_the_metrics(narrow: Start) -> None:
    """The metrics count connections as long as they are open."""
    running = await narrow()
    client = await connect(running)
    assert (await client.get("/health")).status == 200
    assert running.metric("aiaas_connections") == 1
    assert running.metric("aiaas_held_bytes") == running.gateway.places.cost
    client.close()
    await until(lambda: running.metric("aiaas_connections") == 0)
    assert running.metric("aiaas_held_bytes") == 0


# -- TLS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"\x16\x03", "half a hello", "a hello"], ids=lambda sent: repr(sent)[:12])
async def test_a_flood_of_handshakes_keeps_nobody_out(
    narrow_tls: Start, trusting: ssl.SSLContext, sent: bytes | str
) -> None:
    """Silent, or stopped anywhere on the way."""
    running = await narrow_tls()
    idle = await running.client(tls=trusting)
    assert (await idle.post(BODY)).status == 200
    first = hello()
    data = {"half a hello": first[:100], "a hello": first}[sent] if isinstance(sent, str) else sent
    for _ in range(60):
        client = await connect(running)
        client.send(data)
    await until(lambda: turned_away(running, "evicted") >= 41)
    for _ in range(3):
        assert (await (await running.client(tls=trusting)).get("/health")).status == 200
    assert (await idle.post(BODY)).status == 200


async def test_a_hello_in_pieces_is_taken(narrow_tls: Start, trusting: ssl.SSLContext) -> None:
    """A small packet size cuts the hello anywhere."""
    running = await narrow_tls()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting.wrap_bio(incoming, outgoing, server_hostname="localhost")
    client = await connect(running)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    first = outgoing.read()
    for piece in (first[:3], first[3:20], first[20:-1], first[-1:]):
        client.send(piece)
        await asyncio.sleep(0.01)
    for _ in range(10):
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            client.send(outgoing.read())
            incoming.write(await client.reader.read(65536))
    client.send(outgoing.read())
    tls.write(HEAD + b"\r\n")
    client.send(outgoing.read())
    answer = b""
    while b"200 OK" not in answer:
        incoming.write(await client.reader.read(65536))
        try:
            answer += tls.read()
        except ssl.SSLWantReadError:
            continue


@pytest.mark.parametrize(
    "sent", [HEAD + b"\r\n", header(300, MOST + 1), b"\x16\x03\x01"], ids=["HTTP", "a long hello", "it stops"]
)
async def test_a_client_without_a_hello_is_dropped(narrow_tls: Start, sent: bytes) -> None:
    """At once, or after `header_timeout`."""
    running = await narrow_tls(header_timeout="200ms")
    client = await connect(running)
    client.send(sent)
    assert await client.ended() == b""
    await until(lambda: len(running.gateway.places) == 0)
    assert running.gateway.places.held == 0


async def test_a_failed_handshake_leaves_nothing(narrow_tls: Start) -> None:
    """Its client leaves, or does not trust the certificate."""
    running = await narrow_tls()
    client = await connect(running)
    client.send(hello())
    await client.reader.read(10)
    client.reset()
    with pytest.raises(ssl.SSLError):
        await running.client(tls=ssl.create_default_context())
    await until(lambda: len(running.gateway.places) == 0)
    assert running.gateway.places.held == 0


async def test_tls_buffers_of_a_large_read_count(narrow_tls: Start, trusting: ssl.SSLContext) -> None:
    """TLS buffers stay as large as they were for as long as the connection lives."""
    running = await narrow_tls(max_connections=100)
    places = running.gateway.places
    client = await running.client(tls=trusting)
    assert (await client.post(BODY)).status == 200
    assert places.held == places.cost
    assert (await client.post(BODY | {"pad": "x" * 200_000})).status == 200
    assert places.held > places.cost + 20_000
    client.close()
    await until(lambda: places.held == 0)


# -- ends ------------------------------------------------------------------------------------------------------------


async def test_the_end_drops_those_who_wait(narrow_tls: Start) -> None:
    """Clients that are silent, and handshakes under way, do not hold up the end; nothing is left of them."""
    running = await narrow_tls()
    for sent in (b"", hello()):
        client = await connect(running)
        client.send(sent)
    await until(lambda: len(running.gateway.places) == 2)


class Exhausted(socket.socket):
    """A listening socket in a process that has no descriptor left, not even a spare one."""

    def accept(self) -> tuple[socket.socket, Any]:
        raise OSError(errno.EMFILE, "too many open files")


async def test_the_door_pauses_where_it_cannot_even_refuse(narrow: Start) -> None:
    """The socket stays readable all the time; the loop does not run hot, and the client waits."""
    running = await narrow()
    listener = Exhausted()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    door = Door(listener, running.open_side, running.gateway.places, running.gateway.incidents, None, 1.0)
    with socket.create_connection(listener.getsockname()):
        door.open()
        await asyncio.sleep(0.25)
        assert 1 <= turned_away(running, "descriptors") <= 4
        await door.end()
        await door.end()


# -- what is left ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    """A connection must be freed by its last reference, not by the garbage collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def connections_in_memory() -> int:
    """The gateway's connections that exist, open or not."""
    return sum(isinstance(thing, ClientConnection) for thing in gc.get_objects())


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("ended_by", ["client", "eviction"])
async def test_nothing_is_left_of_a_connection_that_ended(
    narrow_tls: Start, trusting: ssl.SSLContext, ended_by: str
) -> None:
    """The buffers of TLS are 300 KiB: they do not wait for the garbage collector."""
    running = await narrow_tls()
    client = await running.client(tls=trusting)
    assert (await client.get("/health")).status == 200
    assert connections_in_memory() == 1
    if ended_by == "client":
        client.close()
    else:
        assert running.gateway.places.evict()
    await until(lambda: len(running.open_side.connections) == 0)
    await until(lambda: connections_in_memory() == 0)


def buffered() -> int:
    """Bytes of bodies that wait to be read, in all readers of aiohttp."""
    return sum(thing.total_bytes and thing._size for thing in gc.get_objects() if isinstance(thing, StreamReader))


@pytest.mark.parametrize("path", ["/health", "/v1/chat/completions"], ids=["answered", "refused"])
async def test_unwanted_body_is_freed(narrow: Start, path: str) -> None:
    """Not with the next request, nor only when a client that was refused has left."""
    running = await narrow()
    client = await connect(running)
    length = 100_000 if path == "/health" else 200_000
    client.send(client.request(None, path=path, key="sk-wrong", method="GET", headers={"Content-Length": str(length)}))
    client.send(b"x" * 100_000)
    assert (await client.answer()).status in (200, 405)
    await until(lambda: buffered() == 0, 1.0)
    assert len(running.gateway.places) == 1
