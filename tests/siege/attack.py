"""A flood of connections, as a process of its own.

    python -m tests.siege.attack KIND PORT COUNT SECONDS KEY

Opens COUNT connections as fast as it can and leaves each where KIND stops. One that the gateway ends is opened again,
RENEWED of them a second at the most. The last line on stdout is JSON: how many were opened, and how many the gateway
ended. Ports of one address are 28,000, so the connections come from many.
"""

from __future__ import annotations

import errno
import json
import resource
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

RENEWED: Final = 1000
PER_ADDRESS: Final = 1000
_HEAD: Final = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"


def silent(_key: str) -> bytes:
    """Nothing at all."""
    return b""


def client_hello(_key: str) -> bytes:
    """The client's first flight, without a second one."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake needs an answer")


def huge_hello(_key: str) -> bytes:
    """Nine bytes that announce a ClientHello of 128 KiB."""
    return b"\x16\x03\x01\x40\x00\x01" + (131_000).to_bytes(3)


def head(_key: str) -> bytes:
    """31 kB of a head that does not end."""
    fields = b"".join(b"x-field-%d: " % number + b"y" * 900 + b"\r\n" for number in range(40))
    return (_HEAD + fields)[:31_000]


def body(key: str) -> bytes:
    """All but the last bytes of a small body."""
    fields = f"Authorization: Bearer {key}\r\nContent-Length: 65536\r\n\r\n".encode()
    return _HEAD + fields + b" " * 65_000


def asked(_key: str) -> bytes:
    """A request that needs no key, and then nothing more."""
    return b"GET /health HTTP/1.1\r\nHost: gateway\r\n\r\n"


KINDS: Final[Mapping[str, Callable[[str], bytes]]] = MappingProxyType(
    {"silent": silent, "hello": client_hello, "huge": huge_hello, "heads": head, "bodies": body, "asked": asked}
)


class Flood:
    """The connections, by descriptor."""

    def __init__(self, port: int, data: bytes) -> None:
        self._port = port
        self._data = data
        self._open: dict[int, tuple[socket.socket, memoryview]] = {}
        self._poll = select.epoll()
        self.opened = self.ended = 0

    def __len__(self) -> int:
        return len(self._open)

    def add(self) -> None:
        """One more."""
        client = socket.socket()
        client.setblocking(False)
        client.bind((f"127.0.{1 + self.opened // PER_ADDRESS % 200}.{1 + self.opened % 200}", 0))
        code = client.connect_ex(("127.0.0.1", self._port))
        if code not in (0, errno.EINPROGRESS):
            client.close()
            return
        self.opened += 1
        self._open[client.fileno()] = (client, memoryview(self._data))
        self._poll.register(client, select.EPOLLIN | (select.EPOLLOUT if self._data else 0))

    def look(self, seconds: float) -> None:
        """Send the pending bytes, and notice connections that the gateway ends, for this time at most."""
        for number, events in self._poll.poll(seconds, 1000):
            client, left = self._open[number]
            try:
                if events & ~select.EPOLLOUT and not client.recv(65536):
                    self._drop(number)
                elif events & select.EPOLLOUT:
                    left = left[client.send(left) :]
                    self._open[number] = (client, left)
                    if not left:
                        self._poll.modify(number, select.EPOLLIN)
            except BlockingIOError:
                continue
            except OSError:
                self._drop(number)

    def _drop(self, number: int) -> None:
        client, _ = self._open.pop(number)
        client.close()
        self.ended += 1


def attack(kind: str, port: int, count: int, seconds: float, key: str) -> dict[str, int]:
    """Run it, and print the counts."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, max(count + 100, resource.getrlimit(7)[1])))
    flood = Flood(port, KINDS[kind](key))
    end = time.monotonic() + seconds
    renewed: deque[float] = deque()
    while (now := time.monotonic()) < end:
        while renewed and renewed[0] < now - 1:
            renewed.popleft()
        for _ in range(50):
            if len(flood) >= count or (flood.opened >= count and len(renewed) >= RENEWED):
                break
            if flood.opened >= count:
                renewed.append(now)
            flood.add()
        flood.look(0.001 if len(flood) < count else 0.01)
    return {"opened": flood.opened, "ended": flood.ended, "open": len(flood)}


if __name__ == "__main__":
    print(json.dumps(attack(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5])))
