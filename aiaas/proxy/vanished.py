"""Peers whose machine is gone are noticed: no FIN, no RST, and nothing is acknowledged any more.

While nothing is under way, TCP keep-alive asks, and half a minute is enough; the kernel's own bound is two hours. It
does not ask while bytes are unacknowledged: those the kernel repeats for a quarter of an hour, and vLLM goes on
generating.

- Upstream TCP_USER_TIMEOUT bounds that too.
- Downstream it cannot: it also ends a connection whose peer lives and reads nothing for as long (seen on Linux 6.18),
  and a slow client may take `timeout` for that; and it takes keep-alive's place. So the kernel is asked, now and then,
  about the clients to which an answer is being written: whether it repeats, and nothing at all was acknowledged for
  VANISHED_AFTER. One that only reads nothing acknowledges each probe of its window.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

# Seconds, seconds, and how often: 30 s in all.
KEEPALIVE: Final = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
# Seconds without any acknowledgement.
VANISHED_AFTER: Final = 30.0
SWEEP_INTERVAL: Final = 10.0
# Of Linux' struct tcp_info: tcpi_retransmits, in a row, and tcpi_last_ack_recv, milliseconds ago.
_INFO: Final = struct.Struct("=2xB53xI")


class Client(Protocol):
    """A connection of a client (`connection.Connection`), as far as it matters here."""

    listener: Any  # who writes an answer to it now
    transport: asyncio.Transport | None

    def drop(self, reason: str) -> None:
        """End it at once."""


def keep_alive(sock: socket.socket) -> None:
    """Turn keep-alive on. On Linux what a listening socket accepts inherits it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def watch_upstream(transport: asyncio.BaseTransport) -> None:
    """End this connection when its peer has acknowledged nothing for VANISHED_AFTER, whatever is under way."""
    sock = transport.get_extra_info("socket")
    keep_alive(sock)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(VANISHED_AFTER * 1000))


async def drop_vanished(
    clients: Callable[[], Iterable[Client]], after: float = VANISHED_AFTER, interval: float = SWEEP_INTERVAL
) -> None:
    """Look every `interval` seconds at the clients to which answers are being written; until cancelled."""
    while True:
        await asyncio.sleep(interval)
        for client in list(clients()):
            transport = client.transport
            if client.listener is None or transport is None:
                continue
            if has_vanished(transport.get_extra_info("socket"), after):
                client.drop("it acknowledged nothing any more")


def has_vanished(sock: Any, after: float) -> bool:
    """Whether what was sent is being repeated, and nothing was acknowledged for `after` seconds. Linux only."""
    if sys.platform != "linux":
        return False
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except OSError:  # it is just being closed
        return False
    retransmits, last_acknowledged = _INFO.unpack(info)
    return bool(retransmits and last_acknowledged >= after * 1000)
