"""A server's life, in order: bind, start engines, serve, reload, drain, stop.

    bound -> serving -> draining (no new connections; /ready says no; open ones end) -> stopped

Nothing here touches a request; `app.py` does.
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
from typing import Protocol

from aiohttp.web_request import BaseRequest

from aiaas import __version__
from aiaas.errors import WorldError
from aiaas.keys.ring import EMPTY_RING
from aiaas.keys.verifier import Verifier
from aiaas.limits.memory import MemoryStore
from aiaas.plan.model import BackendPlan, Plan
from aiaas.proxy.app import Gateway
from aiaas.proxy.connection import ConnectionLimits, OpenSide
from aiaas.proxy.log import JsonLog, LibraryLog
from aiaas.proxy.metrics import Metrics
from aiaas.proxy.probes import Probes
from aiaas.proxy.reload import Reloader
from aiaas.proxy.respond import Answered, answer
from aiaas.proxy.tasks import end_tasks, first_of, report_crash

# After SIGTERM, requests on connections that are still open are served for this long: the ingress may have sent one
# before it noticed. (In a cluster preStop has waited already.) An idle gateway does not wait.
NOTICE = 1.0
BACKLOG = 2048
# A client whose machine is gone is noticed within half a minute; the kernel's own bound is two hours. (Seconds, count.)
# No TCP_USER_TIMEOUT: recent kernels also end a connection by it whose client lives and only reads nothing for a while.
KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
# Engines get this long to end after the last request has; nothing of ours is in them any more.
ENGINE_GRACE = 15.0
# Prometheus' text format, and what a scraper's request may take.
EXPOSITION = b"text/plain; version=0.0.4; charset=utf-8"
METRICS_HEAD_TIMEOUT = 10.0
METRICS_HEAD_SIZE = 32 * 1024


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
    """Run a gateway until SIGTERM, SIGINT or `stop`. Raises WorldError where a port or an engine cannot be had."""
    async with AsyncExitStack() as stack:
        listener = bind(plan.server.host, plan.server.port, "server.port")
        stack.callback(listener.close)
        metrics_listener = None
        if plan.monitoring.prometheus:
            metrics_listener = bind(plan.server.host, plan.monitoring.metrics_port, "monitoring.metrics_port")
            stack.callback(metrics_listener.close)
        server = _Server(plan, log, env, stop or asyncio.Event(), stack)
        await server.live(listener, metrics_listener, make_engine, on_ready)


def bind(host: str, port: int, field: str) -> socket.socket:
    """A listening socket. Raises WorldError, which names the config's `field`.

    Without SO_REUSEPORT, which would let a second server share the port and half of its requests. It listens at once:
    two sockets that are only bound, with SO_REUSEADDR, may have the same port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` is IPv4 as well
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE:  # on Linux an accepted socket inherits them
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
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


class _Server:
    """One life. Whatever it begins is ended by `stack`, last things first."""

    def __init__(
        self, plan: Plan, log: JsonLog, env: Mapping[str, str], stop: asyncio.Event, stack: AsyncExitStack
    ) -> None:
        self._log = log
        self._stop = stop
        self._stack = stack
        self._impatient = asyncio.Event()
        self._metrics = Metrics()
        self._verifier = Verifier(EMPTY_RING)
        self._gateway = Gateway(plan, self._verifier, MemoryStore(), log, self._metrics)
        self._probes = Probes(log)
        self._reloader = Reloader(self._gateway, env, self._follow)

    async def live(
        self,
        listener: socket.socket,
        metrics_listener: socket.socket | None,
        make_engine: EngineMaker,
        on_ready: Callable[[Ready], None],
    ) -> None:
        """From the first task to the last."""
        plan = self._gateway.active.plan
        self._begin_logging()
        self._take_signals()
        self._stack.callback(self._verifier.close)
        await self._reloader.reload_keys()
        for backend in plan.backends:
            if backend.engine is not None:
                await self._start_engine(make_engine, backend)
        self._stack.callback(self._close_backends)
        if metrics_listener is not None:
            await self._serve_metrics(metrics_listener)
        server, open_side = await self._open(listener, plan)
        self._follow(plan)
        self._stack.push_async_callback(self._probes.close)
        for watch in self._reloader.watches():
            self._keep_running(asyncio.create_task(watch.run(), name="watch"))
        ready = self._ready(plan, listener, metrics_listener)
        self._say_started(plan, ready)
        on_ready(ready)
        await self._stop.wait()
        await self._drain(server, open_side)

    # -- beginning ------------------------------------------------------------------------------------------------

    def _begin_logging(self) -> None:
        self._keep_running(asyncio.create_task(self._log.flush_forever(), name="log"))
        library_log = LibraryLog(self._log)
        root = logging.getLogger()
        root.addHandler(library_log)
        self._stack.callback(root.removeHandler, library_log)

    def _keep_running(self, task: asyncio.Task[None]) -> None:
        task.add_done_callback(report_crash(self._log))
        self._stack.push_async_callback(end_tasks, [task])

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTERM: self._asked_to_stop,
            signal.SIGINT: self._asked_to_stop,
            signal.SIGHUP: self._reloader.wake,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
            self._stack.callback(loop.remove_signal_handler, number)

    async def _start_engine(self, make_engine: EngineMaker, backend: BackendPlan) -> None:
        def healthy(up: bool, reason: str) -> None:
            state = self._gateway.active.backends.get(backend.name)
            if state is not None and state.plan.engine is not None:
                for endpoint in state.endpoints:
                    endpoint.set_up(up, reason)

        engine = make_engine(backend, healthy)

        async def stop() -> None:
            stopping = asyncio.create_task(engine.stop(ENGINE_GRACE), name=f"stop engine {backend.name}")
            impatient = asyncio.create_task(self._impatient.wait(), name="a second signal")
            await asyncio.wait([stopping, impatient], return_when=asyncio.FIRST_COMPLETED)
            engine.hurry()
            impatient.cancel()
            await stopping

        self._stack.push_async_callback(stop)
        await engine.start()

    async def _open(self, listener: socket.socket, plan: Plan) -> tuple[asyncio.Server, OpenSide]:
        gateway = self._gateway
        limits = ConnectionLimits(plan.server.header_timeout, plan.server.max_header_size)
        open_side = OpenSide(gateway.handle, limits, gateway.internal_error, gateway.refused_head)
        server = await asyncio.get_running_loop().create_server(open_side, sock=listener, backlog=BACKLOG)
        self._stack.callback(server.close)
        return server, open_side

    async def _serve_metrics(self, listener: socket.socket) -> None:
        """On the same open side as everything else: it says nothing of versions and bounds a slow head."""

        async def metrics(request: BaseRequest) -> Answered:
            found = request.raw_path.partition("?")[0] == "/metrics" and request.method in ("GET", "HEAD")
            body = self._metrics.expose() if found else b"Metrics are at GET /metrics.\n"
            whole = answer(
                200 if found else 404,
                EXPOSITION if found else b"text/plain",
                body,
                extra=b"",
                close=True,
                head_only=request.method == "HEAD",
            )
            if request.transport is not None:
                request.transport.write(whole)
            return Answered(keep_alive=False)

        limits = ConnectionLimits(METRICS_HEAD_TIMEOUT, METRICS_HEAD_SIZE)
        open_side = OpenSide(metrics, limits, self._gateway.internal_error, lambda _status, _code: None)
        server = await asyncio.get_running_loop().create_server(open_side, sock=listener, backlog=16)
        self._stack.push_async_callback(open_side.shutdown, 1.0)
        self._stack.callback(server.close)

    def _ready(self, plan: Plan, listener: socket.socket, metrics_listener: socket.socket | None) -> Ready:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(plan.server.host, plan.server.host)

        def url(sock: socket.socket) -> str:
            return f"http://{_bracket(host)}:{sock.getsockname()[1]}"

        metrics_url = None if metrics_listener is None else f"{url(metrics_listener)}/metrics"
        return Ready(url(listener), metrics_url, len(self._verifier.ring.records))

    def _say_started(self, plan: Plan, ready: Ready) -> None:
        self._log.event(
            "info",
            "started",
            version=__version__,
            pid=os.getpid(),
            address=f"{_bracket(plan.server.host)}:{ready.url.rpartition(':')[2]}",
            config=str(plan.source) if plan.source else None,
            config_digest=plan.digest,
            overrides=list(plan.overrides),
            keys=ready.keys,
        )

    def _follow(self, _plan: Plan) -> None:
        self._probes.follow(self._gateway.active.backends)

    # -- ending ---------------------------------------------------------------------------------------------------

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            self._impatient.set()
        self._stop.set()

    async def _drain(self, server: asyncio.Server, open_side: OpenSide) -> None:
        """No new connections; what is open may end within drain_timeout. A second signal ends the waiting."""
        gateway = self._gateway
        timeout = gateway.active.plan.server.drain_timeout
        began = time.monotonic()
        self._log.event("info", "draining", in_flight=gateway.in_flight, drain_timeout=timeout)
        gateway.draining = True
        server.close()
        if open_side.connections:
            await first_of(self._impatient.wait(), timeout=min(NOTICE, timeout))
        gateway.refuse()
        if gateway.in_flight and not self._impatient.is_set():
            left = max(0.0, timeout - (time.monotonic() - began))
            await first_of(gateway.quiet(), self._impatient.wait(), timeout=left)
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
