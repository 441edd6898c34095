"""One of several workers: the life of a server (`server.py`), told what to do by a supervisor (`supervisor.py`).

It gets its listening socket and its config from there, its engines' health, and the word to stop; it says there what
it counts. Keys and config it follows by itself, as a gateway alone does. When the supervisor is gone, however that
came, the channel ends and the worker drains: none is left behind that nobody watches.
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

from aiaas.errors import EnvironmentFault
from aiaas.plan.model import BackendPlan, EnginePlan
from aiaas.plan.read import read
from aiaas.proxy.server import GatewayServer, Stopping, begin_logging, take_signals
from aiaas.proxy.telemetry.log import LEVELS, JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.workers.channel import (
    Alive,
    Begin,
    Channel,
    Counted,
    EngineHealth,
    EngineSuspected,
    Leaving,
    Message,
    Reload,
    Report,
    Serving,
    Stop,
)
from aiaas.proxy.workers.last_good import config_text
from aiaas.proxy.workers.merge import snapshot
from aiaas.proxy.workers.pulse import BEAT_INTERVAL

# What a worker has counted is told so often (seconds): that much is lost when it is killed.
COUNT_INTERVAL: Final = 1.0
# Collecting may take one part in so many of a worker's time. With thousands of keys it takes 10 ms for each thousand.
COUNT_SHARE: Final = 50


async def work(sock: socket.socket, listener: socket.socket, log: JsonLog, env: Mapping[str, str]) -> None:
    """Serve on `listener` until told to stop by the channel over `sock`, by its end, or by a signal.

    Raises EnvironmentFault where the config that it was given cannot be used.
    """
    async with AsyncExitStack() as stack:
        channel = await Channel.open(sock)
        stack.push_async_callback(channel.close)
        begin = await channel.receive()
        if not isinstance(begin, Begin):
            return
        keeper = begin_logging(log, stack)
        keeper.keep(partial(_beat, channel), "beat", stack)
        whole = read(Path(begin.source), env, begin.before).plan
        plan = None if whole is None else read(Path(begin.source), env, begin.config, before=whole.config).plan
        if plan is None:
            raise EnvironmentFault(f"{begin.source} is no longer valid in this process")
        log.threshold = LEVELS[plan.monitoring.log_level]
        stopping = Stopping(asyncio.Event(), asyncio.Event())
        server = GatewayServer(plan, log, env, stopping, keeper, stack)
        orders = _Orders(channel, server, stopping)
        leave = orders.leave
        take_signals({signal.SIGTERM: leave, signal.SIGINT: leave, signal.SIGHUP: server.reloader.wake}, stack)
        keeper.keep(orders.follow, "orders", stack)
        keeper.keep(partial(_count, channel, server.metrics), "count", stack)
        await server.reloader.reload_keys(begin.keys)
        if config_text(Path(begin.source)) != begin.config:
            server.reloader.wake()  # it has changed since, or is broken, which is to be said
        await server.live(listener, None, orders.make_engine, orders.serving)
        channel.send(await _counted(server.metrics, asked=False))


class _Orders:
    """What the supervisor says, done."""

    def __init__(self, channel: Channel, server: GatewayServer, stopping: Stopping) -> None:
        self._channel = channel
        self._server = server
        self._stopping = stopping
        self._engines: dict[str, EngineHealth] = {}
        self._healthy: dict[str, Callable[[bool, str], None]] = {}

    async def follow(self) -> None:
        """Until the channel's end, which stops the worker as well."""
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
            case Stop(now=now):
                self._stopping.asked.set()
                if now:
                    self._stopping.impatient.set()

    def leave(self) -> None:
        """A signal to this worker alone. Not counted as the supervisor's do: a second one may come by another way."""
        if not self._stopping.asked.is_set():
            self._channel.send(Leaving())
            self._stopping.asked.set()

    def serving(self, keys: int) -> None:
        """The worker listens."""
        self._channel.send(Serving(keys))

    def _engine(self, health: EngineHealth) -> None:
        """Remember how an engine is, and tell its endpoint."""
        self._engines[health.backend] = health
        if health.backend in self._healthy:
            self._healthy[health.backend](health.up, health.reason)

    def make_engine(self, backend: BackendPlan, healthy: Callable[[bool, str], None]) -> _Elsewhere:
        """An EngineMaker: the supervisor runs the engine, here is only its health."""

        def follow() -> None:
            self._healthy[backend.name] = healthy
            if backend.name in self._engines:
                self._engine(self._engines[backend.name])

        def is_up() -> bool:
            return backend.name in self._engines and self._engines[backend.name].up

        return _Elsewhere(backend.engine, follow, is_up, lambda: self._channel.send(EngineSuspected(backend.name)))


class _Elsewhere:
    """An engine that another process runs.

    That process reads changed settings from the same file. `offer` only predicts whether the engine takes them.
    """

    def __init__(
        self,
        engine: EnginePlan | None,
        follow: Callable[[], None],
        is_up: Callable[[], bool],
        suspect: Callable[[], None],
    ) -> None:
        self._follow = follow
        self._is_up = is_up
        self.suspect = suspect
        self._engine = engine

    async def start(self) -> None:
        self._follow()

    async def stop(self, grace: float) -> None:
        del grace

    def hurry(self) -> None:
        pass

    def offer(self, engine: EnginePlan) -> bool:
        if engine != self._engine and not self._is_up():
            self._engine = engine
        return engine == self._engine


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
    return Counted(await metrics.aside(lambda registry: snapshot(registry.collect())), asked)
