"""Accept connections, or refuse them before they cost memory.

The event loop's own server accepts without asking, and under TLS makes 50 KiB of state before a protocol hears of the
connection. So the listening socket is read here:

1. Each accepted socket needs a place (`places.py`); without a free place the socket is closed at once.
2. Under TLS it waits, as a bare socket, until its ClientHello has arrived (`client_hello.py`). A client that stays
   silent costs a descriptor and the kernel's own memory.
3. Then it becomes a `ClientConnection`; its handshake has the rest of `header_timeout`.

**Out of descriptors.** The connection in the kernel's queue cannot even be refused, and the listening socket stays
readable: the loop would run hot. So close the connection that is missed least; if none may be closed, give up the spare
descriptor to accept the waiting client and close it. If the spare one is gone, too, pause accepting for PAUSE.
Connections alone cannot cause this: `descriptors.py` leaves some descriptors to everything else.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

from aiaas.keys.throttle import source_of
from aiaas.proxy.client.client_hello import MOST, NotTls, bytes_needed
from aiaas.proxy.client.forwarded import peer_address
from aiaas.proxy.client.open_side import OpenSide
from aiaas.proxy.client.places import Guest, Places
from aiaas.proxy.client.tls import SHUTDOWN_TIMEOUT, ServerTls
from aiaas.proxy.tasks import end_tasks

# Connections accepted in one turn of the loop, 2 ms in all; then the open connections get their turn.
AT_ONCE: Final = 32
PAUSE: Final = 0.1
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PEEK: Final = MOST + 5


class Hooks(Protocol):
    """Callbacks for faults and refusals."""

    def internal_error(self, error: BaseException | None) -> None:
        """The gateway itself failed."""

    def turned_away(self, reason: str) -> None:
        """A connection was refused, or closed to make room."""


class Door:
    """Accepts on `listener` from `open` to `close`."""

    def __init__(
        self,
        listener: socket.socket,
        open_side: OpenSide,
        places: Places,
        hooks: Hooks,
        tls: ServerTls | None,
        header_timeout: float,
    ) -> None:
        self._listener = listener
        self._open_side = open_side
        self._places = places
        self._hooks = hooks
        self._tls = tls
        self._header_timeout = header_timeout
        self._loop = asyncio.get_running_loop()
        self._silent: set[Guest] = set()  # their ClientHello is not there yet
        self._tasks: set[asyncio.Task[Any]] = set()  # those that become a Connection, a handshake under way included
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY)
        self._pause: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Accept from now on."""
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Stop accepting, and close the port. Handshakes under way may end; calling `close` again changes nothing."""
        if self._listener.fileno() < 0:
            return
        self._loop.remove_reader(self._listener)
        self._listener.close()
        if self._pause is not None:
            self._pause.cancel()
        if self._spare is not None:
            os.close(self._spare)

    async def end(self) -> None:
        """Close, and drop clients that are not connected yet."""
        self.close()
        for guest in list(self._silent):
            guest.end()
        await end_tasks(list(self._tasks))

    # -- accepting ------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue  # it left while it waited
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._no_descriptor()
                return
            self._let_in(sock, address)

    def _let_in(self, sock: socket.socket, address: Any) -> None:
        sock.setblocking(False)
        source = None
        if self._places.per_address is not None and isinstance(address, tuple):
            source = source_of(peer_address(address))
        guest = self._places.enter(source, sock.close)
        if guest is None:
            sock.close()
        elif self._tls is None:
            self._connect(guest, sock, {})
        else:
            self._await_hello(guest, sock)

    def _no_descriptor(self) -> None:
        self._hooks.turned_away("descriptors")
        if not self._places.evict() and not self._refuse_one():
            self._loop.remove_reader(self._listener)
            self._pause = self._loop.call_later(PAUSE, self.open)

    def _refuse_one(self) -> bool:
        """Accept a client by the spare descriptor, only to close it. False where even that fails."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        refused = False
        with suppress(OSError):  # another thread was quicker
            self._listener.accept()[0].close()
            refused = True
        with suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)
        return refused

    # -- from a socket to a connection ----------------------------------------------------------------------------

    def _await_hello(self, guest: Guest, sock: socket.socket) -> None:
        timer = self._loop.call_later(self._header_timeout, lambda: guest.end())
        self._silent.add(guest)

        def stop() -> None:
            timer.cancel()
            self._loop.remove_reader(sock)
            self._silent.discard(guest)

        def drop() -> None:
            stop()
            sock.close()
            guest.leave()

        guest.end = drop
        self._loop.add_reader(sock, self._look_at_hello, guest, sock, stop)

    def _look_at_hello(self, guest: Guest, sock: socket.socket, stop: Callable[[], None]) -> None:
        try:
            begun = sock.recv(_PEEK, socket.MSG_PEEK)
            needed = bytes_needed(begun) if begun else 0
            waited_for = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
            if begun and len(begun) < needed != waited_for:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, needed)  # wake when it is there
                return
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        except BlockingIOError:
            return
        except (OSError, NotTls):
            begun = b""
        if not begun:
            guest.end()
            return
        stop()
        assert self._tls is not None
        self._connect(
            guest,
            sock,
            {
                "ssl": self._tls.context,
                "ssl_handshake_timeout": self._header_timeout,
                "ssl_shutdown_timeout": SHUTDOWN_TIMEOUT,
            },
        )

    def _connect(self, guest: Guest, sock: socket.socket, tls: dict[str, Any]) -> None:
        """Make the socket a ClientConnection, whose transport closes it from then on."""
        make = partial(self._open_side, guest)
        task = self._loop.create_task(self._loop.connect_accepted_socket(make, sock, **tls), name="connect")
        guest.end = task.cancel
        self._tasks.add(task)
        task.add_done_callback(partial(self._connected, guest, sock))

    def _connected(self, guest: Guest, sock: socket.socket, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, OSError):  # a failed handshake is an OSError
            self._hooks.internal_error(error)
        if guest.occupant is None:
            guest.leave()
            sock.close()
