"""One run of the benchmark: every measure repeated in turns (nginx, aiaas, nginx, aiaas, ...), so that what else the
machine does in the meantime hits both alike.

The measures
  short         CPU of the proxy a request: keep-alive connections in a closed loop, as fast as it goes
  short paced   the same with a pause between requests, so that neither core is full
  event         CPU of the proxy a streamed event: many streams at a fixed pace, measured in the middle of them
  latency       of one request at a time, direct and through each proxy
  memory        resident after the first answer, and after all loads
  start-up      from starting the process to its first answered inference request, the backend being up
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from tests.bench import process, wire
from tests.bench.load import BadAnswerError, Tally, short_load, stream_load


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured. Seconds, and counts."""

    rounds: int = 3
    connections: int = 32
    short_seconds: float = 2.5
    pause: float = 0.006
    streams: int = 256
    events_per_second: float = 50.0
    stream_seconds: float = 4.0
    latency_seconds: float = 1.5
    starts: int = 5


QUICK = Settings(rounds=1, short_seconds=0.5, streams=32, stream_seconds=0.8, latency_seconds=0.3, starts=1)


@dataclass(frozen=True, slots=True)
class Cost:
    """One window of one load: what the process under test used for it, and how busy everything was.

    micros           CPU microseconds of the process under test, a unit (request or event)
    rate             units a second
    tested_busy      share of its core that the process under test used
    generator_busy   share of the other core that the load generator and the backend used together
    disturbed        share of the tested core that went to others meanwhile: what else this machine was doing
    """

    micros: float
    rate: float
    tested_busy: float
    generator_busy: float
    disturbed: float = 0.0


@dataclass(slots=True)
class Target:
    """A process under test, and what was measured of it."""

    name: str
    port: int
    pid: int
    request: bytes
    stream_request: bytes
    short: list[Cost] = field(default_factory=list)
    paced: list[Cost] = field(default_factory=list)
    event: list[Cost] = field(default_factory=list)
    latencies: list[list[float]] = field(default_factory=list)
    idle_bytes: int = 0
    loaded_bytes: int = 0
    start_seconds: list[float] = field(default_factory=list)
    start_cpu_seconds: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Results:
    """All of a run. `direct` is the backend without a proxy; `nginx` is None where this machine has none."""

    settings: Settings
    aiaas: Target
    nginx: Target | None
    direct: list[list[float]]
    load_before: str
    load_after: str
    seconds: float


class Window:
    """Takes the CPU clocks at the start and at the end of a measured part."""

    def __init__(self, target: int, backend: int, count: Callable[[Tally], int]) -> None:
        self._target = target
        self._backend = backend
        self._count = count
        self._marks: list[tuple[float, float, float, int, float]] = []

    def __call__(self, tally: Tally) -> Sequence[object]:
        """Make a mark."""
        self._marks.append(
            (
                time.perf_counter(),
                process.cpu_seconds(self._target),
                process.cpu_seconds(self._backend) + time.process_time(),
                self._count(tally),
                process.core_busy_seconds(process.TESTED_CORE),
            )
        )
        return self._marks

    def cost(self) -> Cost:
        """What lies between the two marks. Raises BadAnswerError where nothing does."""
        wall, tested, others, units, core = (
            end - start for start, end in zip(self._marks[0], self._marks[1], strict=True)
        )
        if units < 1:
            raise BadAnswerError("nothing was answered while it was measured")
        disturbed = max(0.0, core - tested) / wall
        return Cost(tested / units * 1e6, units / wall, tested / wall, others / wall, disturbed)


def measure(settings: Settings, say: Callable[[str], None]) -> Results:
    """Run the whole benchmark. Raises NotStartedError, BadAnswerError."""
    process.pin(process.OTHER_CORE)
    began, load_before = time.perf_counter(), _load_average()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        bench = _Bench(settings, Path(name), stack, say)
        results = bench.run()
    results.load_before, results.load_after = load_before, _load_average()
    results.seconds = time.perf_counter() - began
    return results


class _Bench:
    """The processes of one run, and the order in which they are measured."""

    def __init__(self, settings: Settings, folder: Path, stack: ExitStack, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._folder = folder
        self._stack = stack
        self._say = say
        # A stream lasts from before the first mark, with all others begun, until after the last one.
        self._events = int((settings.stream_seconds + 2.5) * settings.events_per_second)
        self._backend_port = process.free_port()

    def run(self) -> Results:
        settings, say = self._settings, self._say
        command = process.backend_command(self._backend_port, self._events, settings.events_per_second)
        backend = self._stack.enter_context(process.started(command, process.OTHER_CORE, self._folder, "backend"))
        direct_request = wire.request("none", stream=False)
        process.wait_for_answer(self._backend_port, direct_request, backend, self._folder, "backend")

        aiaas = self._start_aiaas()
        nginx = self._start_nginx()
        targets = [target for target in (nginx, aiaas) if target is not None]
        direct: list[list[float]] = []
        for number in range(1, settings.rounds + 1):
            for target in targets:
                say(f"round {number} of {settings.rounds}: {target.name}")
                target.short.append(self._short(target, backend.pid, pause=0.0))
                target.paced.append(self._short(target, backend.pid, pause=settings.pause))
                target.event.append(self._stream(target, backend.pid))
            direct.append(self._latency(self._backend_port, direct_request))
            for target in targets:
                target.latencies.append(self._latency(target.port, target.request))
        for target in targets:
            target.loaded_bytes = process.resident(target.pid)
        return Results(settings, aiaas, nginx, direct, "", "", 0.0)

    def _start_aiaas(self) -> Target:
        self._say("starting aiaas")
        seconds, cpu_seconds = [], []
        command, key = process.aiaas_command(self._folder, port := process.free_port(), self._backend_port)
        request = wire.request(key, stream=False)
        for _ in range(1 + self._settings.starts):
            with process.started(command, process.TESTED_CORE, self._folder, "aiaas") as running:
                seconds.append(process.wait_for_answer(port, request, running, self._folder, "aiaas"))
                cpu_seconds.append(process.cpu_seconds(running.pid))
        running = self._stack.enter_context(process.started(command, process.TESTED_CORE, self._folder, "aiaas"))
        process.wait_for_answer(port, request, running, self._folder, "aiaas")
        target = Target("aiaas", port, running.pid, request, wire.request(key, stream=True))
        # The first one wrote the bytecode, which an installed package has.
        target.start_seconds, target.start_cpu_seconds = seconds[1:], cpu_seconds[1:]
        target.idle_bytes = process.resident(running.pid)
        return target

    def _start_nginx(self) -> Target | None:
        executable = process.nginx_path()
        if executable is None:
            self._say("this machine has no nginx, so nothing is compared with it (Debian: apt-get install nginx-light)")
            return None
        self._say("starting nginx")
        port = process.free_port()
        command = process.nginx_command(executable, self._folder, port, self._backend_port)
        request = wire.request("none", stream=False)
        running = self._stack.enter_context(process.started(command, process.TESTED_CORE, self._folder, "nginx"))
        seconds = [process.wait_for_answer(port, request, running, self._folder, "nginx")]
        target = Target("nginx", port, running.pid, request, wire.request("none", stream=True))
        target.start_seconds, target.start_cpu_seconds = seconds, [process.cpu_seconds(running.pid)]
        target.idle_bytes = process.resident(running.pid)
        return target

    def _short(self, target: Target, backend: int, *, pause: float) -> Cost:
        settings = self._settings
        window = Window(target.pid, backend, lambda tally: tally.answers)
        _run(
            short_load(
                target.port,
                target.request,
                window,
                connections=settings.connections,
                pause=pause,
                warm_up=0.5,
                seconds=settings.short_seconds,
            )
        )
        return window.cost()

    def _stream(self, target: Target, backend: int) -> Cost:
        settings = self._settings
        window = Window(target.pid, backend, lambda tally: tally.events)
        _run(
            stream_load(
                target.port,
                target.stream_request,
                window,
                streams=settings.streams,
                events=self._events,
                warm_up=0.5,
                seconds=settings.stream_seconds,
            )
        )
        return window.cost()

    def _latency(self, port: int, request: bytes) -> list[float]:
        load = short_load(
            port,
            request,
            None,
            connections=1,
            pause=0.002,
            warm_up=0.2,
            seconds=self._settings.latency_seconds,
            timed=True,
        )
        return sorted(_run(load).latencies)


def _run(load: Coroutine[Any, Any, Tally]) -> Tally:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load)


def _load_average() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())
