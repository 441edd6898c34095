"""One of several workers: it runs a server (`server.py`) and takes orders from a supervisor (`supervisor.py`).

The supervisor gives a worker its listening socket and its config, the health of its engines, and the order to stop; the
worker reports its metrics. It follows the config and key files by itself, as a single gateway does. If the supervisor
ends for any reason, the channel ends and the worker drains, so that workers do not run on without a supervisor.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from aiaas.config.files import config_name
from aiaas.errors import EnvironmentFault
from aiaas.plan.model import BackendPlan, EnginePlan
from aiaas.proxy.aside import ReadRequest, read_aside
from aiaas.proxy.server import GatewayServer, Stopping, begin_logging, take_signals
from aiaas.proxy.telemetry.log import LEVELS, JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.workers.channel import (
    Alive,
    Begin,
    Channel,
    Counted,
    Describe,
    Description,
    EngineHealth,
    EngineSuspected,
    Leaving,
    Message,
    Reload,
    Report,
    Serving,
    Stop,
)
from aiaas.proxy.workers.last_good import config_texts
from aiaas.proxy.workers.merge import snapshot
from aiaas.proxy.workers.pulse import BEAT_INTERVAL

# Seconds between two reports of a worker's metrics: if it is killed, at most this much is lost.
COUNT_INTERVAL: Final = 1.0
# Collecting metrics may take 1/COUNT_SHARE of a worker's time. Thousands of models take the most of it.
COUNT_SHARE: Final = 50


async def work(sock: socket.socket, listener: socket.socket, log: JsonLog, env: Mapping[str, str]) -> None:
    """Serve on `listener` until the supervisor orders a stop over `sock`, the channel ends, or a signal comes.

    Raises EnvironmentFault if the config from the supervisor cannot be used.
    """
    async with AsyncExitStack() as stack:
        channel = await Channel.open(sock)
        stack.push_async_callback(channel.close)
        begin = await channel.receive()
        if not isinstance(begin, Begin):
            return
        keeper = begin_logging(log, stack)
        keeper.keep(partial(_beat, channel), "beat", stack)
        files = tuple(map(Path, begin.files))
        request = ReadRequest(files, dict(env), begin.config, begin.before)
        plan = (await asyncio.to_thread(read_aside, request)).plan
        if plan is None:
            raise EnvironmentFault(f"{config_name(files)} is no longer valid in this process")
        log.threshold = LEVELS[plan.monitoring.log_level]
        stopping = Stopping(asyncio.Event(), asyncio.Event())
        server = GatewayServer(plan, log, env, stopping, keeper, stack)
        orders = _Orders(channel, server, stopping)
        leave = orders.leave
        take_signals({signal.SIGTERM: leave, signal.SIGINT: leave, signal.SIGHUP: server.reloader.wake}, stack)
        keeper.keep(orders.follow, "orders", stack)
        keeper.keep(partial(_count, channel, server.metrics), "count", stack)
        await server.reloader.reload_keys(begin.keys)
        if config_texts(files) != begin.config:
            server.reloader.wake()  # a file has changed since, or is invalid: reload it, or log the error
        await server.live(listener, None, orders.make_engine, orders.serving)
        channel.send(await _counted(server.metrics, asked=False))


class _Orders:
    """Carries out the supervisor's orders."""

    def __init__(self, channel: Channel, server: GatewayServer, stopping: Stopping) -> None:
        self._channel = channel
        self._server = server
        self._stopping = stopping
        self._engines: dict[str, EngineHealth] = {}
        self._healthy: dict[str, Callable[[bool, str], None]] = {}

    async def follow(self) -> None:
        """Carry out orders until the channel ends, which stops the worker as well."""
        while (message := await self._channel.receive()) is not None:
            await self._obey(message)
        self._stopping.asked.set()

    async def _obey(self, message: Message) -> None:
        match message:
            case EngineHealth():
                self._engine(message)
            case Reload():
                self._server.reloader.wake()
            case Report():
                self._channel.send(await _counted(self._server.metrics, asked=True))
            case Describe():
                self._channel.send(await self._described(message))
            case Stop(now=now):
                self._stopping.asked.set()
                if now:
                    self._stopping.impatient.set()

    async def _described(self, look: Describe) -> Description:
        inside, worker = self._server.inside, look.worker
        found: msgspec.Struct
        match look.what:
            case "requests":
                found = await inside.requests_found(look.query, worker)
            case "refusals":
                found = inside.refusals_found(look.query, worker)
            case _:
                found = await inside.look()
        return Description(look.number, msgspec.Raw(msgspec.msgpack.encode(found)))

    def leave(self) -> None:
        """Handle a signal to this worker alone. A second signal does not make it impatient, as it does in the
        supervisor: both signals may have the same cause."""
        if not self._stopping.asked.is_set():
            self._channel.send(Leaving())
            self._stopping.asked.set()

    def serving(self, keys: int) -> None:
        """Report to the supervisor that the worker listens."""
        self._channel.send(Serving(keys))

    def _engine(self, health: EngineHealth) -> None:
        """Remember an engine's health, and pass it on to the engine's endpoint."""
        self._engines[health.backend] = health
        if health.backend in self._healthy:
            self._healthy[health.backend](health.up, health.reason)

    def make_engine(self, backend: BackendPlan, healthy: Callable[[bool, str], None]) -> _Elsewhere:
        """Return a stand-in for an engine that the supervisor runs. This method is an EngineMaker."""

        def follow() -> None:
            self._healthy[backend.name] = healthy
            if backend.name in self._engines:
                self._engine(self._engines[backend.name])

        def health() -> EngineHealth | None:
            return self._engines.get(backend.name)

        return _Elsewhere(backend.engine, follow, health, lambda: self._channel.send(EngineSuspected(backend.name)))


class _Elsewhere:
    """An engine that another process runs.

    That process reads changed settings from the same file, earlier or later than this one. So `offer` predicts: an
    engine that is not up takes them, and a healthy one runs with those that its last report has. That process also
    counts its starts and deaths.
    """

    starts = 0
    deaths = 0

    def __init__(
        self,
        engine: EnginePlan | None,
        follow: Callable[[], None],
        health: Callable[[], EngineHealth | None],
        suspect: Callable[[], None],
    ) -> None:
        self.engine = engine
        self.suspect = suspect
        self._follow = follow
        self._health = health

    async def start(self) -> None:
        self._follow()

    async def stop(self, grace: float) -> None:
        del grace

    def hurry(self) -> None:
        pass

    def offer(self, engine: EnginePlan) -> bool:
        health = self._health()
        if health is None or not health.up:
            self.engine = engine
        elif health.engine is not None:
            self.engine = health.engine
        return engine == self.engine


async def _beat(channel: Channel) -> None:
    while True:
        if not channel.is_stuck:
            channel.send(Alive())
        await asyncio.sleep(BEAT_INTERVAL)


async def _count(channel: Channel, metrics: Metrics) -> None:
    pause = COUNT_INTERVAL
    while True:
        await asyncio.sleep(pause)
        if not channel.is_stuck:
            began = time.perf_counter()
            channel.send(await _counted(metrics, asked=False))
            pause = max(COUNT_INTERVAL, COUNT_SHARE * (time.perf_counter() - began))


async def _counted(metrics: Metrics, *, asked: bool) -> Counted:
    return await metrics.aside(
        lambda registry, sums: Counted(snapshot(registry.collect()), asked, msgspec.Raw(msgspec.msgpack.encode(sums)))
    )
