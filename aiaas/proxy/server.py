"""A server's life, in order: bind, start engines, serve, reload, drain, stop.

    bound -> serving -> draining (no new connections; /ready says no; open ones end) -> stopped

Nothing here touches a request; `app.py` does.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
from aiohttp import web

from aiaas import __version__
from aiaas.config.problem import Problem
from aiaas.errors import WorldError
from aiaas.keys.file import KeyFileError, KeyFileMissingError, read_key_file
from aiaas.keys.ring import EMPTY_RING, KeyRing
from aiaas.keys.verifier import Verifier
from aiaas.limits.memory import MemoryStore
from aiaas.plan.model import BackendPlan, Plan
from aiaas.plan.read import read_plan
from aiaas.proxy.app import Gateway
from aiaas.proxy.backends import BackendState, EndpointState, fetch, probe_forever
from aiaas.proxy.connection import ConnectionLimits, OpenSide
from aiaas.proxy.log import LEVELS, JsonLog
from aiaas.proxy.metrics import Metrics
from aiaas.proxy.upstream import Failure
from aiaas.proxy.watch import FileWatch

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
    listener = bind(plan.server.host, plan.server.port, "server.port")
    metrics_listener = None
    if plan.monitoring.prometheus:
        try:
            metrics_listener = bind(plan.server.host, plan.monitoring.metrics_port, "monitoring.metrics_port")
        except WorldError:
            listener.close()
            raise
    async with AsyncExitStack() as stack:
        stack.callback(listener.close)
        if metrics_listener is not None:
            stack.callback(metrics_listener.close)
        server = _Server(plan, log, env, stop or asyncio.Event())
        await server.live(listener, metrics_listener, make_engine, on_ready, stack)


def bind(host: str, port: int, field: str) -> socket.socket:
    """A bound socket. Without SO_REUSEPORT, which would let a second server share the port and half of its requests."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.setblocking(False)
    except (OSError, OverflowError) as error:
        sock.close()
        number = getattr(error, "errno", None)
        why = {
            errno.EADDRINUSE: "another program listens there; stop it or choose another port",
            errno.EACCES: "ports below 1024 need privileges; choose a higher one",
            errno.EADDRNOTAVAIL: "this machine has no such address",
        }.get(number or 0, str(error))
        raise WorldError(f"cannot listen on {host}:{port} ({field}): {why}") from error
    return sock


class _Server:
    """One life."""

    def __init__(self, plan: Plan, log: JsonLog, env: Mapping[str, str], stop: asyncio.Event) -> None:
        self._log = log
        self._env = env
        self._stop = stop
        self._impatient = asyncio.Event()
        self._verifier = Verifier(EMPTY_RING)
        self._store = MemoryStore()
        self._metrics = Metrics()
        self._gateway = Gateway(plan, self._verifier, self._store, log, self._metrics)
        self._probes: dict[str, tuple[BackendState, asyncio.Task[None]]] = {}
        self._comparisons: set[asyncio.Task[None]] = set()
        self._key_watch = FileWatch(plan.auth.keys_file, self._reload_keys)
        self._engine_specs = {backend.name: backend.engine for backend in plan.backends}

    async def live(
        self,
        listener: socket.socket,
        metrics_listener: socket.socket | None,
        make_engine: EngineMaker,
        on_ready: Callable[[Ready], None],
        stack: AsyncExitStack,
    ) -> None:
        loop = asyncio.get_running_loop()
        plan = self._gateway.active.plan
        flusher = asyncio.create_task(self._log.flush_forever(), name="log")
        stack.push_async_callback(_end_tasks, [flusher])
        stack.callback(self._verifier.close)
        await self._read_keys()
        engines = [self._make_engine(make_engine, backend) for backend in plan.backends if backend.engine is not None]
        for engine in engines:
            stack.push_async_callback(engine.stop, ENGINE_GRACE)
            await engine.start()
        stack.callback(self._close_backends)

        limits = ConnectionLimits(plan.server.header_timeout, plan.server.max_header_size)
        gateway = self._gateway
        open_side = OpenSide(gateway.handle, limits, gateway.internal_error, gateway.refused_head)
        server = await loop.create_server(open_side, sock=listener, backlog=BACKLOG)
        stack.callback(server.close)
        if metrics_listener is not None:
            await self._serve_metrics(metrics_listener, stack)
        self._follow_backends()
        watchers = [asyncio.create_task(self._key_watch.run(), name="watch keys")]
        if plan.source is not None:
            config_watch = FileWatch(plan.source, self._reload_config)
            watchers.append(asyncio.create_task(config_watch.run(), name="watch config"))
            loop.add_signal_handler(signal.SIGHUP, self._hang_up, config_watch)
        stack.push_async_callback(_end_tasks, watchers)
        stack.push_async_callback(self._end_probes)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        port = listener.getsockname()[1]
        shown = plan.server.host if plan.server.host not in ("0.0.0.0", "::") else "127.0.0.1"
        metrics_url = (
            None
            if metrics_listener is None
            else f"http://{_bracket(shown)}:{metrics_listener.getsockname()[1]}/metrics"
        )
        self._log.event(
            "info",
            "started",
            version=__version__,
            pid=os.getpid(),
            address=f"{plan.server.host}:{port}",
            config=str(plan.source) if plan.source else None,
            config_digest=plan.digest,
            overrides=list(plan.overrides),
            keys=len(self._verifier.ring.records),
        )
        on_ready(Ready(f"http://{_bracket(shown)}:{port}", metrics_url, len(self._verifier.ring.records)))

        await self._stop.wait()
        await self._drain(server, open_side)

    # -- stopping -------------------------------------------------------------------------------------------------

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            self._impatient.set()
        self._stop.set()

    async def _drain(self, server: asyncio.Server, open_side: OpenSide) -> None:
        """No new connections; what is open may end within drain_timeout. A second signal ends the waiting."""
        gateway = self._gateway
        timeout = gateway.active.plan.server.drain_timeout
        self._log.event("info", "draining", in_flight=gateway.in_flight, drain_timeout=timeout)
        gateway.draining = True
        server.close()
        if open_side.connections:
            await _first_of(self._impatient.wait(), timeout=min(NOTICE, timeout))
        gateway.refusing = True
        open_side.pre_shutdown()
        left = max(0.0, timeout - NOTICE)
        if gateway.in_flight:
            await _first_of(gateway.quiet(), self._impatient.wait(), timeout=left)
        cut = gateway.in_flight
        if cut:
            gateway.end_streams()
            await _first_of(gateway.quiet(), timeout=1.0)
        # Let the last bytes go out before the connections are dropped.
        await open_side.shutdown(timeout=0.5)
        self._log.event("info", "stopped", cut_off=cut)

    def _close_backends(self) -> None:
        for backend in self._gateway.active.backends.values():
            backend.close()

    async def _end_probes(self) -> None:
        await _end_tasks([task for _, task in self._probes.values()])
        await _end_tasks(list(self._comparisons))

    # -- reloading ------------------------------------------------------------------------------------------------

    def _hang_up(self, config_watch: FileWatch) -> None:
        config_watch.wake()
        self._key_watch.wake()

    async def _read_keys(self) -> None:
        """Put the key file's keys in force. A broken file changes nothing and says so."""
        auth = self._gateway.active.plan.auth
        if not auth.enabled:
            return
        try:
            ring = await asyncio.get_running_loop().run_in_executor(None, _load_ring, auth.keys_file)
        except KeyFileMissingError:
            if self._verifier.ring.records:
                self._metrics.reloaded("keys", ok=False)
                self._log.event("error", "keys_not_reloaded", error="the key file is gone; the last keys stay in force")
            else:
                self._log.event(
                    "warning",
                    "keys_missing",
                    file=str(auth.keys_file),
                    hint="every request is refused until a key exists: aiaas keys create NAME",
                )
            return
        except KeyFileError as error:
            self._metrics.reloaded("keys", ok=False)
            self._log.event("error", "keys_not_reloaded", error=str(error), kept=len(self._verifier.ring.records))
            return
        self._verifier.swap(ring)
        self._metrics.reloaded("keys", ok=True)
        self._log.event("info", "keys_loaded", keys=len(ring.records))

    async def _reload_keys(self) -> None:
        await self._read_keys()

    async def _reload_config(self) -> None:
        """Compile first, then swap one reference; with any error the old Plan stays."""
        before = self._gateway.active.plan
        if before.source is None:
            return
        try:
            plan, problems = await asyncio.get_running_loop().run_in_executor(None, read_plan, before.source, self._env)
        except WorldError as error:
            self._metrics.reloaded("config", ok=False)
            self._log.event("error", "config_not_reloaded", error=error.message)
            return
        if plan is None:
            self._metrics.reloaded("config", ok=False)
            self._log.event("error", "config_not_reloaded", problems=_shown(problems))
            return
        self._metrics.reloaded("config", ok=True)
        if plan == before:
            return
        self._gateway.replace_plan(plan)
        self._log.threshold = LEVELS[plan.monitoring.log_level]
        self._follow_backends()
        self._key_watch.follow(plan.auth.keys_file)
        self._log.event("info", "config_reloaded", config_digest=plan.digest)
        needs_restart = self._needs_restart(before, plan)
        if needs_restart:
            self._log.event("warning", "restart_needed", fields=needs_restart)

    def _needs_restart(self, before: Plan, plan: Plan) -> list[str]:
        """What only a new start puts in force: listening sockets and engines."""
        fields = [
            f"server.{name}"
            for name in ("host", "port", "workers", "header_timeout", "max_header_size", "tls")
            if getattr(before.server, name) != getattr(plan.server, name)
        ]
        if (before.monitoring.prometheus, before.monitoring.metrics_port) != (
            plan.monitoring.prometheus,
            plan.monitoring.metrics_port,
        ):
            fields.append("monitoring.metrics_port")
        engines = {backend.name: backend.engine for backend in plan.backends}
        fields += [
            f"backends.{name}.engine"
            for name in sorted(engines.keys() | self._engine_specs.keys())
            if engines.get(name) != self._engine_specs.get(name)
        ]
        return fields

    # -- backends -------------------------------------------------------------------------------------------------

    def _make_engine(self, make_engine: EngineMaker, backend: BackendPlan) -> EngineHandle:
        def healthy(up: bool, reason: str) -> None:
            state = self._gateway.active.backends.get(backend.name)
            if state is not None and state.plan.engine is not None:
                for endpoint in state.endpoints:
                    endpoint.set_up(up, reason)

        return make_engine(backend, healthy)

    def _follow_backends(self) -> None:
        """One task of probes for each backend in force; an engine of ours is watched by its supervisor instead."""
        backends = self._gateway.active.backends
        for name, (state, task) in list(self._probes.items()):
            if backends.get(name) is not state:
                task.cancel()
                del self._probes[name]
        for name, state in backends.items():
            if name not in self._probes and state.plan.engine is None:
                task = asyncio.create_task(probe_forever(state, self._compare_models), name=f"probe {name}")
                self._probes[name] = (state, task)

    def _compare_models(self, backend: BackendState, endpoint: EndpointState) -> None:
        task = asyncio.create_task(self._warn_of_models(backend, endpoint), name=f"models {backend.plan.name}")
        self._comparisons.add(task)
        task.add_done_callback(self._comparisons.discard)

    async def _warn_of_models(self, backend: BackendState, endpoint: EndpointState) -> None:
        """Two names meant as two models would silently be aliases: say where config and backend disagree."""
        result = await fetch(endpoint, "/v1/models", backend.plan.health.timeout)
        if isinstance(result, Failure) or result[0] != 200:
            return
        try:
            listed = {entry["id"] for entry in msgspec.json.decode(result[1])["data"]}
        except (msgspec.DecodeError, KeyError, TypeError):
            return
        missing = [name for name in backend.plan.served_models if name not in listed]
        if missing:
            self._log.event(
                "warning",
                "models_disagree",
                backend=backend.plan.name,
                upstream=endpoint.plan.url,
                configured_but_not_served=missing,
                served=sorted(map(str, listed)),
                hint="the first name of `models` is what vLLM serves, the rest are aliases of it",
            )

    # -- metrics --------------------------------------------------------------------------------------------------

    async def _serve_metrics(self, listener: socket.socket, stack: AsyncExitStack) -> None:
        async def metrics(_request: web.Request) -> web.Response:
            return web.Response(
                body=self._metrics.expose(), headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"}
            )

        app = web.Application()
        app.router.add_get("/metrics", metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, listener, backlog=16).start()


def _load_ring(path: Path) -> KeyRing:
    return KeyRing.from_records(read_key_file(path).records)


def _shown(problems: Sequence[Problem]) -> list[str]:
    return [str(problem) for problem in problems]


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _first_of(*waits: object, timeout: float) -> None:
    """Wait until one of the coroutines is done, or `timeout` seconds."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _end_tasks(tasks)


async def _end_tasks(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task


def new_log(write: Callable[[bytes], object], level: str) -> JsonLog:
    """The process's log, on the wall clock."""
    return JsonLog(write, time.time, level)
