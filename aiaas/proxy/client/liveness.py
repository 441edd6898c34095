"""Notice peers whose machine is gone: they send neither FIN nor RST, and acknowledge nothing any more. Notice clients
under TLS, too, that do not read the rest of an answer which has ended.

On idle connections TCP keep-alive probes the peer, and half a minute is enough; the kernel's own bound is two hours.
Keep-alive does not probe while bytes are unacknowledged: the kernel repeats these for a quarter of an hour, and vLLM
goes on generating.

- Upstream TCP_USER_TIMEOUT bounds that too.
- Downstream it cannot: it also ends a connection whose peer lives and reads nothing for as long (seen on Linux 6.18),
  and a slow client may take `timeout` for that; and it takes keep-alive's place. So ask the kernel, now and then, about
  the clients to which an answer is being written: whether it repeats bytes, and whether the peer acknowledged nothing
  for VANISHED_AFTER. A client that only does not read acknowledges each probe of its window.

Without TLS `ClientConnection` sees the unread bytes of an ended answer. Under TLS these bytes have left its transport
and lie in the one below; if the client then closes (close_notify, or FIN), the TLS transport ends at once, and the one
below waits for the client forever. So ask the kernel about these, too: whether it has bytes left, and when it last sent
any.
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
# As setsockopt takes them, where the machine has them.
_KEEP_ALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in KEEPALIVE if hasattr(socket, name)),
)
_BOUND: Final = tuple(
    (socket.IPPROTO_TCP, getattr(socket, name), int(VANISHED_AFTER * 1000))
    for name in ("TCP_USER_TIMEOUT",)
    if hasattr(socket, name)
)
# Of Linux' struct tcp_info: tcpi_retransmits, in a row; tcpi_last_data_sent and tcpi_last_ack_recv, milliseconds ago;
# tcpi_notsent_bytes.
_INFO: Final = struct.Struct("=2xB41xI8xI84xI")


class Client(Protocol):
    """A connection of a client (`connection.ClientConnection`), as far as it matters here."""

    listener: Any  # the writer of its present answer
    sock: Any  # None once it is closed
    tls: bool

    def drop(self, reason: str) -> None:
        """End it at once."""


def keep_alive(sock: socket.SocketType) -> None:
    """Turn keep-alive on. On Linux the sockets that a listening socket accepts inherit it."""
    for option in _KEEP_ALIVE:
        sock.setsockopt(*option)


def watch_upstream(transport: asyncio.BaseTransport) -> None:
    """End this connection when its peer has acknowledged nothing for VANISHED_AFTER, whatever is under way."""
    # Not by the transport's own socket: uvloop's makes a new object for each option, at 9,000 instructions.
    sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, transport.get_extra_info("socket").fileno())
    try:
        keep_alive(sock)
        for option in _BOUND:
            sock.setsockopt(*option)
    finally:
        sock.detach()


async def drop_vanished(
    clients: Callable[[], Iterable[Client]], after: float = VANISHED_AFTER, interval: float = SWEEP_INTERVAL
) -> None:
    """Look every `interval` seconds at the clients to which answers are being written, and under TLS at those to which
    bytes of one are left; until cancelled."""
    while True:
        await asyncio.sleep(interval)
        for client in list(clients()):
            if client.sock is None:
                continue
            if client.listener is not None:
                if has_vanished(client.sock, after):
                    client.drop("it stopped acknowledging data")
            elif client.tls and takes_nothing(client.sock, after):
                client.drop("it did not read the end of its answer")


def has_vanished(sock: Any, after: float) -> bool:
    """Whether the kernel repeats bytes, and the peer acknowledged nothing for `after` seconds. Linux only."""
    retransmits, _, last_acknowledged, _ = _info(sock)
    return bool(retransmits and last_acknowledged >= after * 1000)


def takes_nothing(sock: Any, after: float) -> bool:
    """Whether unsent bytes have waited `after` seconds for room in the peer's window. Linux only."""
    _, last_sent, _, not_sent = _info(sock)
    return bool(not_sent and last_sent >= after * 1000)


def _info(sock: Any) -> tuple[int, int, int, int]:
    """The kernel's values, as in _INFO; all 0 if it does not give them."""
    nothing = (0, 0, 0, 0)
    if sys.platform != "linux":
        return nothing
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except OSError:  # it is just being closed
        return nothing
    retransmits, last_sent, last_acknowledged, not_sent = _INFO.unpack(info)
    return retransmits, last_sent, last_acknowledged, not_sent
