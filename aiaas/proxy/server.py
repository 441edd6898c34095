"""Run one server from start to stop: bind, start engines, serve, reload, drain, stop.

    bound -> serving -> draining (ports closed; /ready answers 503; open requests end) -> stopped

A draining process has closed its ports, so that its successor on this machine can serve while the old streams end.

`run_server` runs a server in a process of its own; with several workers each worker runs one (`workers/worker.py`)
under a supervisor (`workers/supervisor.py`). This file does not touch requests; `gateway.py` does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from urllib.parse import urlsplit

from aiaas import __version__
from aiaas.config.files import config_name
from aiaas.keys.ring import EMPTY_RING
from aiaas.keys.verifier import Verifier
from aiaas.limits.memory import MemoryStore
from aiaas.plan.model import BackendPlan, Plan
from aiaas.proxy import collector
from aiaas.proxy.admin.chat import Chat
from aiaas.proxy.admin.port import AdminPort
from aiaas.proxy.client.descriptors import bound_connections
from aiaas.proxy.client.door import Door
from aiaas.proxy.client.liveness import drop_vanished
from aiaas.proxy.client.metrics_port import serve_metrics
from aiaas.proxy.client.open_side import OpenSide
from aiaas.proxy.client.path_prefix import PrefixedPaths
from aiaas.proxy.client.ports import bracketed, keeps_metrics_port, take_ports
from aiaas.proxy.client.refusal import ConnectionLimits
from aiaas.proxy.client.tls import ServerTls, open_tls
from aiaas.proxy.engines import EngineHandle, EngineMaker, Engines
from aiaas.proxy.gateway import Gateway
from aiaas.proxy.inside import Inside
from aiaas.proxy.limit_store import begin_shared_store, shared_store
from aiaas.proxy.reload import Reloader
from aiaas.proxy.tasks import Keeper
from aiaas.proxy.telemetry.key_counters import exposed
from aiaas.proxy.telemetry.log import JsonLog, LibraryLog
from aiaas.proxy.telemetry.loop_lag import watch_lag
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.upstream.probes import Probes
from aiaas.proxy.upstream.resolve import Resolver
from aiaas.proxy.usage import UsageRecorder, usage_store
from aiaas.waiting import first_of

# Seconds after SIGTERM for which the gateway still serves requests on open connections: the ingress may have sent a
# request before it noticed. (In a cluster preStop has waited already.) A gateway without connections does not wait.
NOTICE_TIME = 1.0
# Seconds that engines get to stop after the last request has ended.
ENGINE_GRACE = 15.0


@dataclass(frozen=True, slots=True)
class Ready:
    """The report of `run_server` to its caller once it listens: the URLs (`url` with the path prefix), and how many
    keys it has loaded."""

    url: str
    metrics_url: str | None
    keys: int


async def run_server(
    plan: Plan,
    log: JsonLog,
    *,
    env: Mapping[str, str],
    make_engine: EngineMaker,
    on_ready: Callable[[Ready], None],
    stop: asyncio.Event | None = None,
    chat_key: str | None = None,
    passed: Sequence[socket.socket] = (),
) -> None:
    """Run a gateway until SIGTERM, SIGINT or `stop`. With `chat_key` the admin port's page has a chat, which uses it.

    passed  listening sockets to use for `server.port` (`take_ports`)
    Raises EnvironmentFault if a port is taken, an engine cannot start, or the certificate or the key file is invalid.
    """
    async with AsyncExitStack() as stack:
        keeper = begin_logging(log, stack)
        (listener,), metrics_listener = await take_ports(plan, log, stack, passed)
        stopping = Stopping(stop or asyncio.Event(), asyncio.Event())
        server = GatewayServer(plan, log, env, stopping, keeper, stack)
        signals = {signal.SIGTERM: stopping.ask, signal.SIGINT: stopping.ask, signal.SIGHUP: server.reloader.wake}
        take_signals(signals, stack)

        def serving(keys: int) -> None:
            ready = ready_of(plan, listener, metrics_listener, keys)
            say_started(log, plan, ready)
            on_ready(ready)

        await server.reloader.begin_keys()
        host, port, *_ = listener.getsockname()
        chat = None if chat_key is None or plan.server.tls is not None else Chat(host, port, chat_key)
        admin = AdminPort(plan.monitoring.admin_port, server.inside, log, server.internal_error, chat)
        await server.live(listener, metrics_listener, make_engine, serving, admin)


@dataclass(frozen=True, slots=True)
class Stopping:
    """`asked`: somebody asked the gateway to stop. `impatient`: somebody asked again, and wants it to stop now."""

    asked: asyncio.Event
    impatient: asyncio.Event

    def ask(self) -> None:
        """Handle a signal: the first one sets `asked`, the second one `impatient`."""
        if self.asked.is_set():
            self.impatient.set()
        self.asked.set()


def begin_logging(log: JsonLog, stack: AsyncExitStack) -> Keeper:
    """Write the log, including the logs of libraries, until `stack` ends. Return the keeper of the process's tasks."""
    keeper = Keeper(log)
    keeper.keep(log.flush_forever, "log", stack)
    library_log = LibraryLog(log)
    root = logging.getLogger()
    root.addHandler(library_log)
    stack.callback(root.removeHandler, library_log)
    return keeper


def take_signals(handlers: Mapping[signal.Signals, Callable[[], None]], stack: AsyncExitStack) -> None:
    """Install these signal handlers until `stack` ends."""
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
        stack.callback(loop.remove_signal_handler, number)


async def run_engine(engine: EngineHandle, name: str, impatient: asyncio.Event, stack: AsyncExitStack) -> None:
    """Start an engine; `stack` stops it, within ENGINE_GRACE seconds or as soon as `impatient` is set."""

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
    """Return the URLs of the listeners, as somebody on this machine would write them."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(plan.server.host, plan.server.host)

    def url(scheme: str, sock: socket.socket) -> str:
        return f"{scheme}://{bracketed(host)}:{sock.getsockname()[1]}"

    metrics_url = None if metrics_listener is None else f"{url('http', metrics_listener)}/metrics"
    base = url("http" if plan.server.tls is None else "https", listener)
    return Ready(f"{base}{plan.server.path_prefix}", metrics_url, keys)


def say_started(log: JsonLog, plan: Plan, ready: Ready) -> None:
    """Log that the gateway listens."""
    log.event(
        "info",
        "started",
        version=__version__,
        pid=os.getpid(),
        workers=plan.server.workers,
        address=f"{bracketed(plan.server.host)}:{urlsplit(ready.url).port}",
        config=config_name(plan.files) or None,
        config_digest=plan.digest,
        overrides=list(plan.overrides),
        keys=ready.keys,
    )


class ListeningPort(Protocol):
    """A listener on a port."""

    def close(self) -> None:
        """Stop accepting connections, and free the port."""


class GatewayServer:
    """A server from start to stop. `stack` ends everything that it starts, in reverse order."""

    def __init__(
        self,
        plan: Plan,
        log: JsonLog,
        env: Mapping[str, str],
        stopping: Stopping,
        keeper: Keeper,
        stack: AsyncExitStack,
    ) -> None:
        self._log = log
        self._stopping = stopping
        self._keeper = keeper
        self._stack = stack
        self._keeps_metrics = keeps_metrics_port(env)
        self.metrics = Metrics()
        self.metrics.register(keeper)
        self.verifier = Verifier(EMPTY_RING)
        self._usage = UsageRecorder(usage_store(plan), log, self.metrics)
        self._shared = shared_store(plan.limits, log)
        store = MemoryStore() if self._shared is None else self._shared
        self._gateway = Gateway(plan, self.verifier, store, log, self.metrics, self._usage)
        self.metrics.register(self._gateway.traces.exporter)
        self._probes = Probes(log, self.metrics, Resolver(log, self.metrics), keeper)
        self._engines = Engines()
        self.metrics.register(self._engines)
        self.reloader = Reloader(self._gateway, env, self._engines.offer, self._follow)
        self.inside = Inside(self._gateway, self.reloader, store, self._usage)
        self.internal_error = self._gateway.incidents.internal_error

    async def live(
        self,
        listener: socket.socket,
        metrics_listener: socket.socket | None,
        make_engine: EngineMaker,
        on_serving: Callable[[int], None],
        admin: AdminPort | None = None,
    ) -> None:
        """Run the server. Call `on_serving` with the number of keys once it serves."""
        plan = self._gateway.active.plan
        tls = open_tls(plan.server.tls)
        if tls is not None:
            self.reloader.follow_tls(tls)
        await self.reloader.begin_authorities()
        if self._shared is not None:
            await begin_shared_store(self._shared, self._keeper, self.metrics, self._stack)
        self._keeper.keep(self._usage.run, "usage", self._stack)
        self._stack.push_async_callback(self._usage.close)
        self._stack.push_async_callback(self._gateway.traces.exporter.close)
        self._keeper.keep(self._gateway.traces.exporter.run, "traces", self._stack)  # ends before `close`
        self._stack.callback(self.verifier.close)
        self._stack.callback(self._gateway.examiner.close)
        for backend in plan.backends:
            if backend.engine is not None:
                engine = make_engine(backend, self._health_of(backend))
                await run_engine(engine, backend.name, self._stopping.impatient, self._stack)
                self._engines.add(backend.name, engine)
        self._stack.callback(self._gateway.fleet.close)
        servers: list[ListeningPort] = []
        if metrics_listener is not None:
            servers.append(await serve_metrics(metrics_listener, self._expose, self.internal_error, self._stack))
        if admin is not None:
            await admin.begin(self._stack)
            self._keeper.keep(admin.run, "admin port", self._stack)
            servers.append(admin)
        door, open_side = self._open(listener, plan, tls)
        ports = [door] if self._keeps_metrics else [door, *servers]
        self._follow(plan)
        self._stack.push_async_callback(self._probes.close)
        for watch in self.reloader.watches():
            self._keeper.keep(watch.run, "watch", self._stack)
        sweep = partial(drop_vanished, lambda: open_side.connections)
        self._keeper.keep(sweep, "vanished clients", self._stack)
        self._keeper.keep(partial(watch_lag, self.metrics.loop_lag.observe), "lag", self._stack)
        on_serving(len(self.verifier.ring.ids))
        collector.freeze()
        await self._stopping.asked.wait()
        await self._drain(ports, open_side)

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
        open_side = OpenSide(gateway.handle, limits, gateway.incidents, PrefixedPaths(plan.server.path_prefix))
        door = Door(listener, open_side, gateway.places, gateway.incidents, tls, plan.server.header_timeout)
        self._stack.push_async_callback(door.end)
        door.open()
        return door, open_side

    async def _expose(self) -> bytes:
        return await self.metrics.aside(exposed)

    def _follow(self, plan: Plan) -> None:
        self._probes.follow(self._gateway.active.backends)
        self._engines.watch(self._gateway.active.backends.values())
        if self._shared is not None and plan.limits.store_url is not None:  # a changed store needs a restart
            self._shared.follow(plan.limits.on_store_failure, plan.limits.processes, plan.limits.store_timeout)

    # -- ending ---------------------------------------------------------------------------------------------------

    async def _drain(self, ports: Sequence[ListeningPort], open_side: OpenSide) -> None:
        """Close the ports, and wait up to drain_timeout for open requests to end. A second signal stops the waiting."""
        gateway = self._gateway
        timeout = gateway.active.plan.server.drain_timeout
        began = time.monotonic()
        self._log.event("info", "draining", in_flight=gateway.in_flight, drain_timeout=timeout)
        gateway.draining = True
        for port in ports:
            port.close()
        if open_side.connections:
            await first_of(self._stopping.impatient.wait(), timeout=min(NOTICE_TIME, timeout))
        gateway.refuse()
        if gateway.in_flight and not self._stopping.impatient.is_set():
            left = max(0.0, timeout - (time.monotonic() - began))
            await first_of(gateway.quiet(), self._stopping.impatient.wait(), timeout=left)
        cut = gateway.in_flight
        if cut:
            gateway.end_requests()
            await first_of(gateway.quiet(), timeout=1.0)
        # Close idle connections now; give the other connections a moment for their last bytes.
        await open_side.shutdown(timeout=0.5)
        self._log.event("info", "stopped", cut_off=cut)
