"""Clients that arrive at once: each opens a connection of its own, sends a request for a stream and waits.

Plain sockets and epoll: an event loop's own work for 256 new connections takes about as long as a fast proxy's.
"""

from __future__ import annotations

import select
import socket
import time
from dataclasses import dataclass

from tests.bench import wire
from tests.bench.load import BadAnswerError

PATIENCE_SECONDS = 30.0


@dataclass(slots=True)
class _Client:
    """One connection; `first_byte` is None until the answer begins."""

    sock: socket.socket
    sent: float = 0.0
    first_byte: float | None = None
    tail: bytes = b""


def arrivals(port: int, request: bytes, count: int) -> list[float]:
    """Seconds from each request to the first byte of its answer, all of them read to the end. Raises BadAnswerError."""
    clients: dict[int, _Client] = {}
    waiting = select.epoll()
    began = time.perf_counter()
    try:
        for _ in range(count):
            client = _Client(socket.socket())
            client.sock.setblocking(False)
            clients[client.sock.fileno()] = client
            client.sock.connect_ex(("127.0.0.1", port))
            waiting.register(client.sock, select.EPOLLOUT)
            _handle(waiting, clients, request, timeout=0)
        while any(client.tail != wire.END_OF_CHUNKS for client in clients.values()):
            if time.perf_counter() - began > PATIENCE_SECONDS:
                raise BadAnswerError(f"not all of {count} clients had a whole answer within {PATIENCE_SECONDS:.0f} s")
            _handle(waiting, clients, request, timeout=1)
    finally:
        for client in clients.values():
            client.sock.close()
        waiting.close()
    return [client.first_byte - client.sent for client in clients.values() if client.first_byte is not None]


def _handle(waiting: select.epoll, clients: dict[int, _Client], request: bytes, *, timeout: float) -> None:
    for number, event in waiting.poll(timeout):
        client = clients[number]
        try:
            if event & select.EPOLLIN:
                _read(client)
                if client.tail == wire.END_OF_CHUNKS:
                    waiting.unregister(number)
            else:
                client.sent = time.perf_counter()
                client.sock.sendall(request)
                waiting.modify(number, select.EPOLLIN)
        except OSError as error:
            raise BadAnswerError(f"a client that arrived with others was cut off: {error}") from error


def _read(client: _Client) -> None:
    now = time.perf_counter()
    data = client.sock.recv(65536)
    if client.first_byte is None:
        client.first_byte = now
        if not data.startswith(b"HTTP/1.1 200"):
            raise BadAnswerError(f"expected a stream, got {data[:200]!r}")
    if not data:
        raise BadAnswerError("the connection was closed before the stream's end")
    client.tail = (client.tail + data)[-len(wire.END_OF_CHUNKS) :]
