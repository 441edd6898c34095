"""The two ways between systemd and a service: sockets come from it, reports go to it. Elsewhere there are neither.

    LISTEN_FDS, LISTEN_PID       listening sockets, from descriptor 3 on (sd_listen_fds(3)): a socket unit opens them
    NOTIFY_SOCKET                where READY=1 and WATCHDOG=1 go, one datagram each (sd_notify(3))
    WATCHDOG_USEC, WATCHDOG_PID  systemd restarts the service after this many microseconds without WATCHDOG=1

The variables name this process, or hold for it alone, so they are taken out of the environment: a worker or an engine
would take them for its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from aiaas.errors import EnvironmentFault
from aiaas.proxy.tasks import end_tasks

FIRST_PASSED: Final = 3  # SD_LISTEN_FDS_START
# Reports in the time after which systemd restarts the service; sd_watchdog_enabled(3) recommends two.
REPORTS: Final = 2
MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Systemd:
    """The sockets and the addresses that systemd gave to this process.

    passed   listening TCP sockets, for `server.port`
    address  the address of NOTIFY_SOCKET; None if nobody waits for reports
    beat     seconds between two reports that the event loop runs; None if nobody waits for them
    """

    passed: tuple[socket.socket, ...] = ()
    address: str | None = None
    beat: float | None = None

    def ready(self, status: str) -> None:
        """Report that the service serves, with a line for `systemctl status`.

        Raises EnvironmentFault if that fails: systemd would wait, and then stop the service.
        """
        try:
            self._report(f"READY=1\nSTATUS={status}", 0)
        except OSError as error:
            raise EnvironmentFault(f"cannot report to systemd at {self.address!r} ($NOTIFY_SOCKET): {error}") from error

    async def watched(self, life: Coroutine[Any, Any, None]) -> None:
        """Await `life`, and meanwhile report to the watchdog that the event loop runs."""
        beating = asyncio.create_task(self._beat(), name="watchdog")
        try:
            await life
        finally:
            await end_tasks([beating])

    async def _beat(self) -> None:
        while self.beat is not None:
            with suppress(OSError):  # systemd is busy, or starts anew; the next report is soon enough
                self._report("WATCHDOG=1", socket.MSG_DONTWAIT)
            await asyncio.sleep(self.beat)

    def _report(self, text: str, flags: int) -> None:
        if self.address is not None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendmsg([text.encode()], (), flags, self.address)


def take_from_systemd(environ: MutableMapping[str, str]) -> Systemd:
    """Take systemd's variables out of the environment, and the sockets that they announce.

    Raises EnvironmentFault if a passed descriptor is not a listening TCP socket.
    """
    address = environ.pop("NOTIFY_SOCKET", "")
    for_us = environ.pop("LISTEN_PID", "") == str(os.getpid())
    announced = environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    watched = environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
    interval = environ.pop("WATCHDOG_USEC", "")
    count = int(announced) if for_us and announced.isdecimal() else 0
    return Systemd(
        tuple(_listening(descriptor) for descriptor in range(FIRST_PASSED, FIRST_PASSED + count)),
        # A leading @ stands for the zero byte of Linux's abstract sockets.
        ("\0" + address[1:] if address.startswith("@") else address) or None,
        int(interval) / MICROSECONDS / REPORTS if watched and interval.isdecimal() else None,
    )


def _listening(descriptor: int) -> socket.socket:
    unfit = EnvironmentFault(
        f"descriptor {descriptor} from systemd is not a listening TCP socket; "
        "write ListenStream=ADDRESS:PORT and Accept=no in the socket unit"
    )
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise unfit from error
    is_tcp = sock.type == socket.SOCK_STREAM and sock.family in (socket.AF_INET, socket.AF_INET6)
    if not (is_tcp and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
        sock.close()
        raise unfit
    sock.set_inheritable(False)
    return sock
