"""The ports of a gateway: listening sockets that no other program shares, taken over from a predecessor that drains.

A gateway that drains gives up its ports at once. A successor that starts in the same moment waits for them, up to
PORT_PATIENCE, so that `kill -TERM OLD; aiaas serve` never races and the successor may even be started first.

Under systemd the sockets of `server.port` may be passed instead (`aiaas.proxy.systemd`): systemd opens them, as root,
and keeps them while no gateway runs, so that clients wait in their queues instead of being refused.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final

from aiaas.errors import EnvironmentFault
from aiaas.plan.model import Plan
from aiaas.proxy.client.liveness import keep_alive
from aiaas.proxy.telemetry.log import JsonLog

BACKLOG: Final = 2048
# Seconds from a predecessor's SIGTERM until its last worker has closed its socket: milliseconds, unless it is busy.
PORT_PATIENCE: Final = 5.0
# Seconds between two tries: new connections are refused for as long at most.
PORT_POLL: Final = 0.01
# Set in every pod.
IN_POD: Final = "KUBERNETES_SERVICE_HOST"


class PortTakenError(EnvironmentFault):
    """Another program listens on a port that we need."""


# Sockets for the workers, and that of metrics.
_Ports = tuple[list[socket.socket], socket.socket | None]


async def take_ports(plan: Plan, log: JsonLog, stack: AsyncExitStack, passed: Sequence[socket.socket] = ()) -> _Ports:
    """Open the listening sockets, one for each worker, and that of metrics; `stack` closes all.

    passed  listening sockets to use for `server.port`, in place of new ones
    Raises EnvironmentFault if that fails, after PORT_PATIENCE seconds if another program has a port.
    """
    server, monitoring = plan.server, plan.monitoring
    given = hand_out(passed, server.workers)
    if given and (port := given[0].getsockname()[1]) != server.port:
        log.event("warning", "other_port", listens_on=port, config=server.port)

    def take() -> _Ports:
        # Metrics first: where only that port is taken, no client waits in the queue of the other one.
        metrics = (
            bind(server.host, monitoring.metrics_port, "monitoring.metrics_port") if monitoring.prometheus else None
        )
        try:
            if given:
                return given, metrics
            if server.workers == 1:
                return [bind(server.host, server.port, "server.port")], metrics
            return bind_shared(server.host, server.port, "server.port", server.workers), metrics
        except EnvironmentFault:
            if metrics is not None:
                metrics.close()
            raise

    listeners, metrics_listener = await _when_free(take, log)
    for listener in listeners:
        stack.callback(listener.close)
    if metrics_listener is not None:
        stack.callback(metrics_listener.close)
    return listeners, metrics_listener


def hand_out(passed: Sequence[socket.socket], workers: int) -> list[socket.socket]:
    """Give each worker one of the passed sockets, and close these; several workers may share one.

    Raises EnvironmentFault if a socket would get no worker: the clients in its queue would wait for ever.
    """
    if len(passed) > workers:
        raise EnvironmentFault(
            f"the socket unit has {len(passed)} sockets, but server.workers is {workers}; render the units again: "
            "aiaas render --target systemd"
        )
    listeners = [passed[number % len(passed)].dup() for number in range(workers if passed else 0)]
    for sock in passed:
        sock.close()
    for listener in listeners:
        _prepare(listener)
        listener.setblocking(False)
    return listeners


async def _when_free(take: Callable[[], _Ports], log: JsonLog) -> _Ports:
    """Call `take` until it no longer raises PortTakenError, for PORT_PATIENCE seconds."""
    deadline = time.monotonic() + PORT_PATIENCE
    is_told = False
    while True:
        try:
            return take()
        except PortTakenError as error:
            if time.monotonic() >= deadline:
                raise
            if not is_told:
                log.event("warning", "waiting_for_port", error=error.message, seconds=PORT_PATIENCE)
                is_told = True
        await asyncio.sleep(PORT_POLL)


def keeps_metrics_port(env: Mapping[str, str]) -> bool:
    """Return True in a pod: nobody else wants its port, and its last counts are scraped, too. Elsewhere the successor
    needs the port.
    """
    return IN_POD in env


def bind(host: str, port: int, field: str) -> socket.socket:
    """A listening socket. Raises EnvironmentFault, whose text names the config's `field`.

    Without SO_REUSEPORT, which would let a second server share the port and half of its requests. It listens at once:
    two sockets that are only bound, with SO_REUSEADDR, may have the same port.
    """
    return _listen(host, port, field, shared=False)


def bind_shared(host: str, port: int, field: str, count: int) -> list[socket.socket]:
    """Listening sockets that share a port: the kernel spreads new connections over them. Raises as `bind`.

    A first socket without SO_REUSEPORT finds out whether the port is free, and gets the option only when it has it. So
    at no moment can another program that asks the same way have the port as well.
    """
    with bind(host, port, field) as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return [_listen(host, first.getsockname()[1], field, shared=True) for _ in range(count)]


def _listen(host: str, port: int, field: str, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` is IPv4 as well
        _prepare(sock)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except (OSError, OverflowError) as error:
        sock.close()
        number = getattr(error, "errno", None)
        why = {
            errno.EADDRINUSE: "another program listens there; stop it or choose another port",
            errno.EACCES: "ports below 1024 need privileges; choose a higher one",
            errno.EADDRNOTAVAIL: "this machine does not have that address",
        }.get(number or 0, getattr(error, "strerror", None) or str(error))
        kind = PortTakenError if number == errno.EADDRINUSE else EnvironmentFault
        raise kind(f"cannot listen on {bracketed(host)}:{port} ({field}): {why}") from error
    return sock


def _prepare(sock: socket.socket) -> None:
    """Set the options that accepted sockets inherit; uvloop sets TCP_NODELAY anyway."""
    keep_alive(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def bracketed(host: str) -> str:
    """Write a host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
