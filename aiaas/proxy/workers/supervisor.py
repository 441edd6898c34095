"""Several workers behind one port, and the supervisor that keeps them running.

    supervisor: port, metrics port, engines, signals
      +- worker 1: a listening socket (SO_REUSEPORT), a server
      +- worker 2: ...

The supervisor does not touch requests. It opens the listening sockets, one for each worker, and keeps them open: when a
worker dies, the connections in its socket's queue wait for its replacement. (If each worker opened its own socket, as
is usual with SO_REUSEPORT, the kernel would reset them.) The other workers go on in the meantime.

A worker that ends unexpectedly is replaced at once; if this happens repeatedly, after a growing pause (PAUSES). If a
worker fails to start START_TRIES times in a row, the supervisor gives up: but only at the first start, or if the other
workers do not serve either. While other workers serve, it keeps trying: a file that is invalid for a while must not
take them down. A worker that hangs (`pulse.py`) is killed, and replaced like any other worker that has ended.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from aiaas.errors import EnvironmentFault
from aiaas.plan.model import BackendPlan, Plan
from aiaas.proxy.admin.model import Status
from aiaas.proxy.admin.port import AdminPort
from aiaas.proxy.client.metrics_port import serve_metrics
from aiaas.proxy.client.ports import keeps_metrics_port, take_ports
from aiaas.proxy.client.tls import open_tls
from aiaas.proxy.engines import EngineMaker, Engines
from aiaas.proxy.inside import status_of
from aiaas.proxy.server import (
    Ready,
    Stopping,
    begin_logging,
    ready_of,
    run_engine,
    say_started,
    take_signals,
)
from aiaas.proxy.tasks import Keeper, end_tasks, report_crash
from aiaas.proxy.telemetry.counters import Process
from aiaas.proxy.telemetry.log import LEVELS, JsonLog
from aiaas.proxy.workers.channel import Begin, EngineHealth, Message, Reload, Stop
from aiaas.proxy.workers.last_good import Baseline
from aiaas.proxy.workers.merge import Sums, exposition, of_supervisor, snapshot
from aiaas.proxy.workers.overview import Overview
from aiaas.proxy.workers.process import WorkerProcess
from aiaas.proxy.workers.pulse import PULSE_INTERVAL, Listening
from aiaas.waiting import first_of

# Seconds before the second, third, ... start in a row; the last value applies to all later starts.
PAUSES: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
# A worker that has served for this many seconds was healthy: after its end the count begins again.
SERVED_WELL: Final = 30.0
# Failed starts in a row after which the supervisor gives up.
START_TRIES: Final = 5
# Seconds that a scrape waits for the workers' metrics; for a worker that hangs it shows the last report.
SCRAPE_PATIENCE: Final = 1.0
# Seconds that workers get beyond `drain_timeout`, and after a second signal, for last bytes and last log lines.
STOP_GRACE: Final = 10.0
HURRY_GRACE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Row:
    """How often a worker and its replacements ended in a row, and how often before they could serve."""

    ends: int = 0
    failed_starts: int = 0

    def after(self, served: float | None) -> Row:
        """Return the row after another end; the worker served for `served` seconds, or never (None)."""
        if served is None:
            return Row(self.ends + 1, self.failed_starts + 1)
        return Row(1 if served >= SERVED_WELL else self.ends + 1, 0)

    def is_hopeless(self, in_order: bool) -> bool:
        """Return whether to give up; `in_order` is whether all workers have served before, and some still do."""
        return self.failed_starts >= START_TRIES and not in_order

    @property
    def pause(self) -> float:
        """Seconds to wait before the next start."""
        return PAUSES[min(self.ends, len(PAUSES)) - 1]


async def supervise(
    plan: Plan,
    log: JsonLog,
    *,
    env: Mapping[str, str],
    make_engine: EngineMaker,
    on_ready: Callable[[Ready], None],
    command: Sequence[str],
    log_to: tuple[int, int],
    stop: asyncio.Event | None = None,
    passed: Sequence[socket.socket] = (),
) -> None:
    """Run `plan.server.workers` workers until SIGTERM, SIGINT or `stop`.

    command  the command line of a worker
    log_to   descriptors of the log and of its lock, for the workers
    passed   listening sockets to use for `server.port` (`take_ports`)
    Raises EnvironmentFault if a port is taken, an engine cannot start, or a worker cannot start to serve.
    """
    async with AsyncExitStack() as stack:
        keeper = begin_logging(log, stack)
        open_tls(plan.server.tls)  # report an error in the files once, not once per worker
        listeners, metrics_listener = await take_ports(plan, log, stack, passed)
        stopping = Stopping(stop or asyncio.Event(), asyncio.Event())
        supervisor = _Supervisor(plan, log, env, command, log_to, stopping, keeper)
        await supervisor.live(listeners, metrics_listener, make_engine, on_ready, stack)


class _Supervisor:
    """The supervisor from its start to its end."""

    def __init__(
        self,
        plan: Plan,
        log: JsonLog,
        env: Mapping[str, str],
        command: Sequence[str],
        log_to: tuple[int, int],
        stopping: Stopping,
        keeper: Keeper,
    ) -> None:
        self._plan = plan
        self._log = log
        self._env = env
        self._command = command
        self._log_to = log_to
        self._stopping = stopping
        self._keeper = keeper
        self._running = Engines()
        self._baseline = Baseline(plan, env, self._running.offer, self._follow_plan, self._internal_error)
        self._keepers: list[asyncio.Task[None]] = []
        self._workers: dict[WorkerProcess, asyncio.Task[None]] = {}
        self._all_serve = asyncio.Event()
        self._engines: dict[str, EngineHealth] = {}
        self._failure: EnvironmentFault | None = None
        self._retired = Sums()
        self._process = Process()
        self._ends = 0
        self._hangs = 0
        now = asyncio.get_running_loop().time()
        self._listening = Listening(now, now)
        self._began = time.time()
        self._gives_up: list[Callable[[], None]] = []  # each call closes a port

    async def live(
        self,
        listeners: Sequence[socket.socket],
        metrics_listener: socket.socket | None,
        make_engine: EngineMaker,
        on_ready: Callable[[Ready], None],
        stack: AsyncExitStack,
    ) -> None:
        """Start everything, serve until asked to stop, and drain."""
        self._gives_up += [listener.close for listener in listeners]
        ask, wake = self._stopping.ask, self._reload
        take_signals({signal.SIGTERM: ask, signal.SIGINT: ask, signal.SIGHUP: wake}, stack)
        await self._baseline.begin()
        for watch in self._baseline.watches():
            self._keeper.keep(watch.run, "watch", stack)
        for backend in self._plan.backends:
            if backend.engine is not None:
                engine = make_engine(backend, self._health_of(backend))
                await run_engine(engine, backend.name, self._stopping.impatient, stack)
                self._running.add(backend.name, engine)
        if metrics_listener is not None:
            scrapes = await serve_metrics(metrics_listener, self._expose, self._internal_error, stack)
            if not keeps_metrics_port(self._env):
                self._gives_up.append(scrapes.close)
        overview = Overview(lambda: self._workers, self._sum_up, self._status)
        admin = AdminPort(self._plan.monitoring.admin_port, overview, self._log, self._internal_error)
        await admin.begin(stack)
        self._keeper.keep(admin.run, "admin port", stack)
        if not keeps_metrics_port(self._env):
            self._gives_up.append(admin.close)
        stack.push_async_callback(self._kill)
        self._keeper.keep(self._watch_for_hangs, "hangs", stack)
        for number, listener in enumerate(listeners, 1):
            self._keepers.append(self._keeper.start(partial(self._keep, number, listener), f"worker {number}"))
        await self._or_stop(self._all_serve.wait())
        if not self._stopping.asked.is_set():
            keys = max((worker.keys for worker in self._workers), default=0)
            ready = ready_of(self._plan, listeners[0], metrics_listener, keys)
            say_started(self._log, self._plan, ready)
            on_ready(ready)
        await self._stopping.asked.wait()
        await self._drain()
        if self._failure is not None:
            raise self._failure

    # -- workers --------------------------------------------------------------------------------------------------

    async def _keep(self, number: int, listener: socket.socket) -> None:
        """Run one worker after another on one listening socket, until the gateway stops and the last worker ends."""
        row = Row()
        while not self._stopping.asked.is_set():
            worker = await self._start(number, listener)
            served = None
            if worker is not None:
                await first_of(worker.serving.wait(), worker.gone.wait())
                if worker.serving.is_set():
                    began = time.monotonic()
                    if len(self._serving()) == self._plan.server.workers:
                        self._all_serve.set()
                    await worker.gone.wait()
                    served = time.monotonic() - began
            row = row.after(served)
            in_order = self._all_serve.is_set() and bool(self._serving())
            if row.is_hopeless(in_order) and not self._stopping.asked.is_set():
                self._failure = EnvironmentFault(
                    f"worker {number} ended {row.failed_starts} times before it could serve; "
                    "see its messages above or in the log"
                )
                self._stopping.asked.set()
            await self._or_stop(asyncio.sleep(row.pause))

    async def _start(self, number: int, listener: socket.socket) -> WorkerProcess | None:
        base = self._baseline
        begin = Begin(tuple(map(str, base.files)), base.config, base.before, base.keys)
        try:
            worker = await WorkerProcess.start(self._command, number, begin, listener, self._log_to, self._env)
        except OSError as error:
            self._log.event("error", "worker_not_started", worker=number, error=str(error))
            return None
        for health in self._engines.values():
            worker.send(health)
        if self._stopping.asked.is_set():  # while the worker was starting
            worker.send(Stop(now=False))
        self._workers[worker] = asyncio.create_task(self._follow(worker), name=f"follow worker {number}")
        self._workers[worker].add_done_callback(report_crash(self._log))
        return worker

    async def _follow(self, worker: WorkerProcess) -> None:
        how = await worker.run(self._running.suspect)
        del self._workers[worker]
        self._retired.retire(worker.families, worker.by_key)
        if not self._stopping.asked.is_set():
            self._ends += 1
            self._log.event("error", "worker_ended", worker=worker.number, pid=worker.pid, how=how)

    async def _watch_for_hangs(self) -> None:
        """Kill workers that hang, also during the drain."""
        loop = asyncio.get_running_loop()
        while True:
            self._listening = self._listening.look(now := loop.time())
            for worker in self._workers:
                if not worker.killed and self._listening.hangs(worker.heard, worker.has_spoken, now):
                    self._hangs += 1
                    silence = round(self._listening.silence(worker.heard, now), 1)
                    self._log.event(
                        "error", "worker_hung", worker=worker.number, pid=worker.pid, silent_seconds=silence
                    )
                    worker.kill()
            await asyncio.sleep(PULSE_INTERVAL)

    def _serving(self) -> list[WorkerProcess]:
        """Return the workers that accept connections."""
        return [worker for worker in self._workers if worker.serving.is_set() and not worker.gone.is_set()]

    def _answering(self) -> int:
        """Count the serving workers that have just reported that their event loop runs."""
        now = asyncio.get_running_loop().time()
        return sum(self._listening.answers(worker.heard, now) for worker in self._serving())

    def _tell(self, message: Message) -> None:
        for worker in self._workers:
            worker.send(message)

    def _health_of(self, backend: BackendPlan) -> Callable[[bool, str], None]:
        def healthy(up: bool, reason: str) -> None:
            engine = self._running.settings(backend.name)
            health = self._engines[backend.name] = EngineHealth(backend.name, up, reason, engine)
            self._tell(health)

        return healthy

    def _follow_plan(self, plan: Plan) -> None:
        self._log.threshold = LEVELS[plan.monitoring.log_level]

    def _reload(self) -> None:
        self._baseline.wake()
        self._tell(Reload())

    # -- metrics --------------------------------------------------------------------------------------------------

    async def _expose(self) -> bytes:
        """Return the metrics of all workers, including those that have ended."""
        sums = await self._sum_up()
        return exposition(sums.families(), sums.by_key)

    async def _sum_up(self) -> Sums:
        asked = [asyncio.create_task(worker.report(), name="report") for worker in self._workers]
        if asked:
            await asyncio.wait(asked, timeout=SCRAPE_PATIENCE)
            await end_tasks(asked)
        if self._baseline.key_ids is not None:
            self._retired.forget_removed(self._baseline.key_ids)
        sums = Sums()
        sums.add(self._retired.families(), self._retired.by_key)
        for worker in self._workers:
            sums.add(worker.families, worker.by_key)
        sums.add(of_supervisor(self._answering(), self._ends, self._hangs))
        sums.add(snapshot(self._keeper.collect()))
        sums.add(snapshot(self._running.collect()))
        sums.add(snapshot(self._process.collect()))  # the supervisor's CPU and memory belong to the gateway, too
        return sums

    def _status(self) -> Status:
        """Return the part of the status that the supervisor itself knows."""
        plan, workers = self._baseline.plan, self._plan.server.workers
        return status_of(plan, self._began, workers, self._answering(), draining=self._stopping.asked.is_set())

    # -- ending ---------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Close the sockets here and in the workers, and let the workers end open requests, as a server does."""
        for give_up in self._gives_up:
            give_up()
        self._tell(Stop(now=False))
        timeout = self._baseline.plan.server.drain_timeout + STOP_GRACE
        await first_of(self._all_ended(), self._stopping.impatient.wait(), timeout=timeout)
        if self._workers and self._stopping.impatient.is_set():
            self._tell(Stop(now=True))
            await first_of(self._all_ended(), timeout=HURRY_GRACE)
        self._log.event("info", "stopped", workers_left=len(self._workers))

    async def _all_ended(self) -> None:
        """Wait until all workers have ended. This uses `wait`, not `gather`, so that cancelling the wait does not
        cancel the tasks."""
        while tasks := [task for task in (*self._keepers, *self._workers.values()) if not task.done()]:
            await asyncio.wait(tasks)

    async def _kill(self) -> None:
        """Kill the workers that are left; after a clean drain there are none."""
        self._stopping.asked.set()
        for worker in self._workers:
            self._log.event("error", "worker_killed", worker=worker.number, pid=worker.pid)
            worker.kill()
        await self._all_ended()

    async def _or_stop(self, wait: Coroutine[Any, Any, Any]) -> None:
        await first_of(wait, self._stopping.asked.wait())

    def _internal_error(self, error: BaseException | None) -> None:
        shown = "".join(traceback.format_exception(error))
        self._log.event("error", "internal_error", error=repr(error), traceback=shown)
