"""aiaas.proxy.client.liveness: vanished peers are noticed, and those that only read nothing are
kept."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trustme

from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.handler import with_pauses
from aiaas.proxy.client.liveness import drop_vanished, has_vanished
from aiaas.proxy.upstream.connection import UpstreamConnection
from tests.fakes.vllm import STREAM_HEAD, FakeVllm, Flood, Hang, Send, Wait, chunk, json_answer, token_event
from tests.proxy.conftest import CHAT, Raw, Running, StartGateway
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked as Linux answers")
STREAM = {"model": "m", "messages": [], "stream": True}


class Instruction(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("len", ctypes.c_uint16), ("filter", ctypes.POINTER(Instruction)))


def vanish(client: Raw) -> None:
    """From now on its kernel ignores every packet, as that of a machine without power does: BPF, `ret 0`."""
    nothing = Instruction(6, 0, 0, 0)
    program = Program(1, ctypes.pointer(nothing))
    so_attach_filter = 26
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, so_attach_filter, bytes(program))


async def streaming(running: Running, **options: Any) -> Raw:
    """A client that has the first event."""
    client = await running.client(**options)
    client.send(client.request(STREAM))
    await client.head()
    return client


async def test_a_client_that_vanished_mid_stream(fake_vllm: FakeVllm, gateway: Any) -> None:
    """Sent bytes are no longer acknowledged: the client is dropped, and vLLM stops."""
    fake_vllm.default = (
        Send(STREAM_HEAD + chunk(token_event())), Wait(go := asyncio.Event()), Send(chunk(token_event())), Hang()
    )  # fmt: skip
    running = await gateway(fake_vllm)
    client = await streaming(running)
    clients = lambda: cast(list[ClientConnection], running.open_side.connections)  # noqa: E731
    sweeping = asyncio.create_task(drop_vanished(clients, after=0.3, interval=0.02))
    await asyncio.sleep(0.4)  # idle for longer than that, and there
    assert running.gateway.in_flight == 1
    vanish(client)
    go.set()
    await asyncio.wait_for(fake_vllm.posts[0].gone.wait(), 3)
    await running.quiet()
    sweeping.cancel()
    assert running.log_lines()[-1]["error_code"] == "client_left"
    assert [line["reason"] for line in running.log_lines("connection_dropped")] == ["it stopped acknowledging data"]


async def test_a_client_that_only_reads_nothing(fake_vllm: FakeVllm, gateway: Any) -> None:
    """The client is there, and is left to `timeout`, however full its buffers are."""
    fake_vllm.default = (Send(STREAM_HEAD), Flood(chunk(token_event("x" * 10_000)), 2_000), Hang())
    running = await gateway(fake_vllm)
    await streaming(running, receive_buffer=4096)
    (connection,) = cast(list[ClientConnection], running.open_side.connections)
    await until(lambda: connection.writing_paused)
    sweeping = asyncio.create_task(drop_vanished(lambda: [connection], after=0.3, interval=0.02))
    await asyncio.sleep(1)
    assert not sweeping.done()
    sweeping.cancel()
    assert running.gateway.in_flight == 1
    assert running.log_lines("connection_dropped") == []


@pytest.fixture
def authority() -> trustme.CA:
    """Signs the certificate of the gateway."""
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


def stubborn(port: int, authority: trustme.CA) -> ssl.SSLSocket:
    """A client under TLS with tiny buffers that does not read."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    sock = socket.socket()
    sock.settimeout(0.5)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.connect(("127.0.0.1", port))
    return context.wrap_socket(sock, server_hostname="localhost")


def say_goodbye(client: ssl.SSLSocket) -> None:
    """Send close_notify without waiting for the peer's."""
    with suppress(ssl.SSLError, TimeoutError):
        client.unwrap()


@pytest.mark.parametrize(
    "leave",
    [lambda _: None, say_goodbye, lambda client: client.shutdown(socket.SHUT_WR)],
    ids=["stays", "close_notify", "FIN"],
)
async def test_tls_client_that_reads_nothing_of_an_ended_answer(
    fake_vllm: FakeVllm,
    gateway: StartGateway,
    authority: trustme.CA,
    tmp_path: Path,
    leave: Callable[[ssl.SSLSocket], None],
) -> None:
    """The bytes lie below the TLS transport, which reports none; after a goodbye they lay there forever."""
    made = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    made.private_key_and_cert_chain_pem.write_to_path(tmp_path / "pair.pem")
    files = {"cert_file": str(tmp_path / "pair.pem"), "key_file": str(tmp_path / "pair.pem")}
    running = await gateway(fake_vllm, server={"tls": files})
    fake_vllm.play(Send(json_answer({"id": "x" * 40_000})))
    client = await asyncio.to_thread(stubborn, running.port, authority)
    clients = lambda: cast(list[ClientConnection], running.open_side.connections)  # noqa: E731
    await until(lambda: len(clients()) == 1)
    clients()[0].sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = b'{"model":"m","messages":[]}'
    client.sendall(
        f"POST {CHAT} HTTP/1.1\r\nAuthorization: Bearer {running.key}\r\nContent-Type: application/json\r\n"
        f"Host: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    await until(lambda: bool(running.log_lines()))
    await asyncio.to_thread(leave, client)
    sweeping = asyncio.create_task(drop_vanished(clients, after=0.3, interval=0.02))
    await until(lambda: not clients())
    sweeping.cancel()
    (dropped,) = running.log_lines("connection_dropped")
    assert dropped["reason"] == "it did not read the end of its answer"
    client.close()


def test_a_socket_that_is_closed() -> None:
    """The sweep meets a socket whose connection is about to be lost, and goes on."""
    sock = socket.socket()
    sock.close()
    assert not has_vanished(sock, 0.0)


async def test_upstream_connections_are_bounded_by_the_kernel(fake_vllm: FakeVllm, gateway: Any) -> None:
    """Keep-alive while nothing is under way, TCP_USER_TIMEOUT while something is: half a minute each."""
    running = await gateway(fake_vllm)
    connection = await with_pauses(running.endpoints()[0].pool.connect())
    assert isinstance(connection, UpstreamConnection)
    assert connection._transport is not None
    sock = connection._transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT", "TCP_NODELAY")
    values = [sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
    assert values == [15, 5, 3, 30_000, values[-1]]
    assert values[-1]  # by the loop itself
    connection.abort()
