"""A server's life, in order: bind, start engines, serve, reload, drain, stop.

    bound -> serving -> draining (no new connections; /ready says no; open ones end) -> stopped

`serve` is such a life in a process of its own; with several workers each lives one (`worker.py`) under a supervisor
(`workers.py`). Nothing here touches a request; `app.py` does.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol, cast

from prometheus_client.exposition import generate_latest

from aiaas import __version__
from aiaas.errors import WorldError
from aiaas.keys.ring import EMPTY_RING
from aiaas.keys.verifier import Verifier
from aiaas.limits.memory import MemoryStore
from aiaas.plan.model import BackendPlan, Plan
from aiaas.proxy.app import Gateway
from aiaas.proxy.connection import Connection, OpenSide
from aiaas.proxy.descriptors import bound_connections
from aiaas.proxy.door import Door
from aiaas.proxy.lag import watch_lag
from aiaas.proxy.log import JsonLog, LibraryLog
from aiaas.proxy.metrics import Metrics
from aiaas.proxy.probes import Probes
from aiaas.proxy.refusal import ConnectionLimits
from aiaas.proxy.reload import Reloader
from aiaas.proxy.resolve import Resolver
from aiaas.proxy.scrape import serve_metrics
from aiaas.proxy.shared import begin_shared_store, shared_store
from aiaas.proxy.tasks import first_of, keep_running
from aiaas.proxy.tls import ServerTls, open_tls
from aiaas.proxy.usage import UsageRecorder, usage_store
from aiaas.proxy.vanished import drop_vanished, keep_alive

# After SIGTERM, requests on connections that are still open are served for this long: the ingress may have sent one
# before it noticed. (In a cluster preStop has waited already.) An idle gateway does not wait.
NOTICE = 1.0
BACKLOG = 2048
# Engines get this long to end after the last request has; nothing of ours is in them any more.
ENGINE_GRACE = 15.0


@dataclass(frozen=True, slots=True)
class Ready:
    """What `serve` tells its caller once it listens: the URLs, and the number of keys that may be used."""

    url: str
    metrics_url: str | None
    keys: int


class EngineHandle(Protocol):
    """A started engine, as far as the server's life needs it. `aiaas.engines` is a peer package; `cli` ties the two."""

    async def start(self) -> None:
        """Begin; raises WorldError where it cannot."""

    async def stop(self, grace: float) -> None:
        """End it within `grace` seconds."""

    def hurry(self) -> None:
        """End the grace now."""


# Makes the engine of a backend; gets a callback for (healthy, reason).
EngineMaker = Callable[[BackendPlan, Callable[[bool, str], None]], EngineHandle]


async def serve(
    plan: Plan,
    log: JsonLog,
    *,
    env: Mapping[str, str],
    make_engine: EngineMaker,
    on_ready: Callable[[Ready], None],
    stop: asyncio.Event | None = None,
) -> None:
    """Run a gateway until SIGTERM, SIGINT or `stop`.

    Raises WorldError where a port, the certificate or an engine cannot be had.
    """
    async with AsyncExitStack() as stack:
        listener = bind(plan.server.host, plan.server.port, "server.port")
        stack.callback(listener.close)
        metrics_listener = None
        if plan.monitoring.prometheus:
            metrics_listener = bind(plan.server.host, plan.monitoring.metrics_port, "monitoring.metrics_port")
            stack.callback(metrics_listener.close)
        stopping = Stopping(stop or asyncio.Event(), asyncio.Event())
        begin_logging(log, stack)
        server = Server(plan, log, env, stopping, stack)
        signals = {signal.SIGTERM: stopping.ask, signal.SIGINT: stopping.ask, signal.SIGHUP: server.reloader.wake}
        take_signals(signals, stack)

        def serving(keys: int) -> None:
            ready = ready_of(plan, listener, metrics_listener, keys)
            say_started(log, plan, ready)
            on_ready(ready)

        await server.live(listener, metrics_listener, make_engine, serving)


@dataclass(frozen=True, slots=True)
class Stopping:
    """`asked` to stop; then `impatient`: whoever asked does not want to wait any longer."""

    asked: asyncio.Event
    impatient: asyncio.Event

    def ask(self) -> None:
        """A signal came: the first one asks, the second is impatient."""
        if self.asked.is_set():
            self.impatient.set()
        self.asked.set()


def bind(host: str, port: int, field: str) -> socket.socket:
    """A listening socket. Raises WorldError, which names the config's `field`.

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
        keep_alive(sock)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except (OSError, OverflowError) as error:
        sock.close()
        number = getattr(error, "errno", None)
        why = {
            errno.EADDRINUSE: "another program listens there; stop it or choose another port",
            errno.EACCES: "ports below 1024 need privileges; choose a higher one",
            errno.EADDRNOTAVAIL: "this machine has no such address",
        }.get(number or 0, getattr(error, "strerror", None) or str(error))
        raise WorldError(f"cannot listen on {_bracket(host)}:{port} ({field}): {why}") from error
    return sock


def begin_logging(log: JsonLog, stack: AsyncExitStack) -> None:
    """Write out what is logged, what libraries log included, until `stack` ends."""
    keep_running(log.flush_forever(), "log", log, stack)
    library_log = LibraryLog(log)
    root = logging.getLogger()
    root.addHandler(library_log)
    stack.callback(root.removeHandler, library_log)


def take_signals(handlers: Mapping[signal.Signals, Callable[[], None]], stack: AsyncExitStack) -> None:
    """Call these on signals, until `stack` ends."""
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
        stack.callback(loop.remove_signal_handler, number)


async def run_engine(engine: EngineHandle, name: str, impatient: asyncio.Event, stack: AsyncExitStack) -> None:
    """Start an engine; `stack` ends it, within its grace or as soon as somebody is `impatient`."""

    async def stop() -> None:
        stopping = asyncio.create_task(engine.stop(ENGINE_GRACE), name=f"stop engine {name}")
        hurrying = asyncio.create_task(impatient.wait(), name="a second signal")
        await asyncio.wait([stopping, hurrying], return_when=asyncio.FIRST_COMPLETED)
        engine.hurry()
        hurrying.cancel()
        await stopping

    stack.push_async_callback(stop)
    await engine.start()


def ready_of(plan: Plan, listener: socket.socket, metrics_listener: socket.socket | None, keys: int) -> Ready:
    """Where it listens, as somebody on this machine would write it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(plan.server.host, plan.server.host)

    def url(scheme: str, sock: socket.socket) -> str:
        return f"{scheme}://{_bracket(host)}:{sock.getsockname()[1]}"

    metrics_url = None if metrics_listener is None else f"{url('http', metrics_listener)}/metrics"
    return Ready(url("http" if plan.server.tls is None else "https", listener), metrics_url, keys)


def say_started(log: JsonLog, plan: Plan, ready: Ready) -> None:
    """The log's line for the moment from which on it listens."""
    log.event(
        "info",
        "started",
        version=__version__,
        pid=os.getpid(),
        workers=plan.server.workers,
        address=f"{_bracket(plan.server.host)}:{ready.url.rpartition(':')[2]}",
        config=str(plan.source) if plan.source else None,
        config_digest=plan.digest,
        overrides=list(plan.overrides),
        keys=ready.keys,
    )


class Server:
    """One life. Whatever it begins is ended by `stack`, last things first."""

    def __init__(
        self, plan: Plan, log: JsonLog, env: Mapping[str, str], stopping: Stopping, stack: AsyncExitStack
    ) -> None:
        self._log = log
        self._stopping = stopping
        self._stack = stack
        self.metrics = Metrics()
        self.verifier = Verifier(EMPTY_RING)
        self._usage = UsageRecorder(usage_store(plan), log, self.metrics)
        self._shared = shared_store(plan.limits, log)
        store = MemoryStore() if self._shared is None else self._shared
        self._gateway = Gateway(plan, self.verifier, store, log, self.metrics, self._usage)
        self._probes = Probes(log, Resolver(log, self.metrics))
        self.reloader = Reloader(self._gateway, env, self._follow)

    async def live(
        self,
        listener: socket.socket,
        metrics_listener: socket.socket | None,
        make_engine: EngineMaker,
        on_serving: Callable[[int], None],
    ) -> None:
        """From the first task to the last. `on_serving` is called with the number of keys once it serves."""
        plan = self._gateway.active.plan
        tls = open_tls(plan.server.tls)
        if tls is not None:
            self.reloader.follow_tls(tls)
        if self._shared is not None:
            await begin_shared_store(self._shared, self._log, self.metrics, self._stack)
        keep_running(self._usage.run(), "usage", self._log, self._stack)
        self._stack.push_async_callback(self._usage.close)
        self._stack.callback(self.verifier.close)
        self._stack.callback(self._gateway.examiner.close)
        await self.reloader.reload_keys()
        for backend in plan.backends:
            if backend.engine is not None:
                engine = make_engine(backend, self._health_of(backend))
                await run_engine(engine, backend.name, self._stopping.impatient, self._stack)
        self._stack.callback(self._close_backends)
        if metrics_listener is not None:
            await serve_metrics(metrics_listener, self._expose, self._gateway.incidents.internal_error, self._stack)
        door, open_side = self._open(listener, plan, tls)
        self._follow(plan)
        self._stack.push_async_callback(self._probes.close)
        for watch in self.reloader.watches():
            keep_running(watch.run(), "watch", self._log, self._stack)
        sweep = drop_vanished(lambda: cast(list[Connection], open_side.connections))
        keep_running(sweep, "vanished clients", self._log, self._stack)
        keep_running(watch_lag(self.metrics.loop_lag.observe), "lag", self._log, self._stack)
        on_serving(len(self.verifier.ring.records))
        await self._stopping.asked.wait()
        await self._drain(door, open_side)

    # -- beginning ------------------------------------------------------------------------------------------------

    def _health_of(self, backend: BackendPlan) -> Callable[[bool, str], None]:
        def healthy(up: bool, reason: str) -> None:
            state = self._gateway.active.backends.get(backend.name)
            if state is not None and state.plan.engine is not None:
                for endpoint in state.endpoints:
                    endpoint.set_up(up, reason)

        return healthy

    def _open(self, listener: socket.socket, plan: Plan, tls: ServerTls | None) -> tuple[Door, OpenSide]:
        gateway = self._gateway
        bound_connections(gateway.places, self._log)
        limits = ConnectionLimits(plan.server.header_timeout, plan.server.max_header_size)
        open_side = OpenSide(gateway.handle, limits, gateway.incidents)
        door = Door(listener, open_side, gateway.places, gateway.incidents, tls, plan.server.header_timeout)
        self._stack.push_async_callback(door.end)
        door.open()
        return door, open_side

    async def _expose(self) -> bytes:
        return await self.metrics.aside(generate_latest)

    def _follow(self, plan: Plan) -> None:
        self._probes.follow(self._gateway.active.backends)
        if self._shared is not None and plan.limits.store_url is not None:  # another store takes a new start
            self._shared.follow(plan.limits.on_store_failure, plan.limits.processes)

    # -- ending ---------------------------------------------------------------------------------------------------

    async def _drain(self, door: Door, open_side: OpenSide) -> None:
        """No new connections; what is open may end within drain_timeout. A second signal ends the waiting."""
        gateway = self._gateway
        timeout = gateway.active.plan.server.drain_timeout
        began = time.monotonic()
        self._log.event("info", "draining", in_flight=gateway.in_flight, drain_timeout=timeout)
        gateway.draining = True
        door.close()
        if open_side.connections:
            await first_of(self._stopping.impatient.wait(), timeout=min(NOTICE, timeout))
        gateway.refuse()
        if gateway.in_flight and not self._stopping.impatient.is_set():
            left = max(0.0, timeout - (time.monotonic() - began))
            await first_of(gateway.quiet(), self._stopping.impatient.wait(), timeout=left)
        cut = gateway.in_flight
        if cut:
            gateway.end_requests()
            await first_of(gateway.quiet(), timeout=1.0)
        # Idle connections end now; the others get a moment for their last bytes.
        open_side.pre_shutdown()
        await open_side.shutdown(timeout=0.5)
        self._log.event("info", "stopped", cut_off=cut)

    def _close_backends(self) -> None:
        for backend in self._gateway.active.backends.values():
            backend.close()


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
