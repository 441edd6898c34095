"""One run of the benchmark: every measure repeated in turns, each time in another order, so that what else the machine
does in the meantime hits all alike.

First each subject is started several times by itself: start-up, memory idle and with many streams open. Then all run
at once and are measured in rounds, one at a time: short requests in a closed loop, the same one each time and with a
head that differs, short requests at two fixed rates, many streams at a fixed pace with short streams among them for the
time to the first event, and clients that arrive at once. The backend is measured without a proxy in each round, too,
and the added latencies are less its own.

A failure with one subject is written down for it and for this measure, which is not tried again, and the run goes on.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil
import uvloop

from tests.bench import process, wire
from tests.bench.arrivals import arrivals
from tests.bench.interpreter import described
from tests.bench.load import BadAnswerError, Tally, closed_loop, open_loop
from tests.bench.process import NotStartedError
from tests.bench.streaming import Shape, held_streams, streams_and_probes
from tests.bench.subjects import FAST, SUBJECTS, MissingError, Pace, Subject, aiaas
from tests.ports import free_port

T = TypeVar("T")
OPEN_FILES: Final = 10_000  # what haproxy wants for its 4,096 connections, and a little


SELDOM: Final = 0.2  # events a second of a stream that only has to stay open


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured. Seconds, and counts."""

    rounds: int = 3
    warm_up: float = 0.3
    connections: int = 32
    short_seconds: float = 1.5
    paced_seconds: float = 2.5
    streams: int = 256
    stream_seconds: float = 2.0
    probe_seconds: float = 1.2
    arrivals: int = 256
    arrival_times: int = 2
    open_streams: int = 2000
    starts: int = 2
    memory_repeats: int = 1


QUICK: Final = Settings(rounds=1, short_seconds=0.4, paced_seconds=0.6, stream_seconds=0.6, probe_seconds=0.4,
                        streams=32, open_streams=200, starts=1, arrival_times=1)  # fmt: skip


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
class Findings:
    """The measurements of one subject.

    missing    why there is nothing at all; empty where there is
    values     of each measure (the keys of report.MEASURES), in the order of the repetitions
    costs      of each load: `short`, `varied`, `paced`, `brisk`, `event`
    problems   of each phase that failed, why
    """

    name: str
    version: str = ""
    pace: Pace = FAST
    missing: str = ""
    values: dict[str, list[float]] = field(default_factory=dict)
    costs: dict[str, list[Cost]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def add(self, measure: str, value: float) -> None:
        """One more repetition."""
        self.values.setdefault(measure, []).append(value)

    @contextmanager
    def attempt(self, phase: str) -> Iterator[None]:
        """Write down what goes wrong, and go on."""
        try:
            yield
        except (BadAnswerError, NotStartedError, OSError, psutil.Error) as error:  # the last two: it has ended
            self.problems.setdefault(phase, str(error))


@dataclass(slots=True)
class Results:
    """All of a run; `direct` is the backend without a proxy, `interpreter` the one that aiaas ran on."""

    settings: Settings
    findings: list[Findings]
    direct: Findings
    interpreter: str
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

    def __call__(self, tally: Tally) -> None:
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

    def cost(self) -> Cost:
        """The bytes between the two marks. Raises BadAnswerError where there are none."""
        wall, tested, others, units, core = (
            end - start for start, end in zip(self._marks[0], self._marks[1], strict=True)
        )
        if units < 1:
            raise BadAnswerError("nothing was answered while it was measured")
        disturbed = max(0.0, core - tested) / wall
        return Cost(tested / units * 1e6, units / wall, tested / wall, others / wall, disturbed)


def measure(
    settings: Settings, names: Sequence[str], say: Callable[[str], None], python: str = sys.executable
) -> Results:
    """Measure the subjects of these names, aiaas under `python`. Raises NotStartedError where the backend fails."""
    began, load_before = time.perf_counter(), _load_average()
    interpreter = described(python)
    process.raise_file_limit(OPEN_FILES)
    process.pin(process.OTHER_CORE)
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        bench = _Bench(settings, Path(name), stack, say, python)
        findings = bench.run(names)
    seconds = time.perf_counter() - began
    return Results(settings, findings, bench.direct, interpreter, load_before, _load_average(), seconds)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of an ordered, not empty sequence lies (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@dataclass(slots=True)
class _Running:
    """A subject whose process is up."""

    subject: Subject
    findings: Findings
    pid: int


class _Bench:
    """The processes of one run, and the order in which they are measured."""

    def __init__(
        self, settings: Settings, folder: Path, stack: ExitStack, say: Callable[[str], None], python: str
    ) -> None:
        self._settings = settings
        self._makers: dict[str, Callable[[Path, int], Subject]] = {**SUBJECTS, "aiaas": partial(aiaas, python=python)}
        self._folder = folder
        self._stack = stack
        self._say = say
        self._port = free_port()
        backend = Subject("backend", "", self._port, process.backend_command(self._port))
        self.direct = Findings("direct")
        running, _ = self._start(backend, process.OTHER_CORE, stack)
        self._backend = running.pid
        self._unproxied = _Running(backend, self.direct, running.pid)

    def run(self, names: Sequence[str]) -> list[Findings]:
        findings = {name: Findings(name) for name in names}
        subjects = [subject for name in names if (subject := self._prepare(findings[name])) is not None]
        for number in range(1 + self._settings.starts):
            for subject in [each for each in subjects if "start" not in findings[each.name].problems]:
                self._say(f"start {number} of {self._settings.starts}: {subject.name}")
                with findings[subject.name].attempt("start"):
                    self._single_start(subject, findings[subject.name], number)
        running = []
        for subject in [each for each in subjects if "start" not in findings[each.name].problems]:
            with findings[subject.name].attempt("start"):
                process_, _ = self._start(subject, process.TESTED_CORE, self._stack)
                running.append(_Running(subject, findings[subject.name], process_.pid))
        for number in range(self._settings.rounds):
            self._round(running[number % len(running) :] + running[: number % len(running)] if running else [], number)
        return list(findings.values())

    def _prepare(self, findings: Findings) -> Subject | None:
        try:
            subject = self._makers[findings.name](self._folder, self._port)
        except (MissingError, NotStartedError) as error:
            self._say(f"{findings.name}: {error}")
            findings.missing = str(error)
            return None
        findings.version, findings.pace = subject.version, subject.pace
        return subject

    def _start(self, subject: Subject, core: int, stack: ExitStack) -> tuple[subprocess.Popen[bytes], float]:
        """Its process, and the seconds from its start to its first answer."""
        started = process.started(subject.command, core, self._folder, subject.name, subject.environment)
        running = stack.enter_context(started)
        request = wire.request(subject.key)
        return running, process.wait_for_answer(subject.port, request, running, self._folder, subject.name)

    def _single_start(self, subject: Subject, findings: Findings, number: int) -> None:
        """Start it alone. The first time only warms caches: files, and the bytecode of what is written in Python."""
        with ExitStack() as stack:
            running, seconds = self._start(subject, process.TESTED_CORE, stack)
            if number > 0:
                findings.add("start", seconds)
                findings.add("start_cpu", process.cpu_seconds(running.pid))
            if 0 < number <= self._settings.memory_repeats:
                with findings.attempt("open streams"):
                    self._memory(_Running(subject, findings, running.pid))

    def _memory(self, running: _Running) -> None:
        settings, subject, findings = self._settings, running.subject, running.findings
        seen: list[int] = []

        def look(_: Tally) -> None:
            seen.append(process.resident(running.pid))

        # Memory that is taken for the first stream only must not count as a cost of each.
        _run(held_streams(subject.port, subject.key, Shape(1, 0.0, wire.Stream(100, 10.0)), look, settle=0.3))
        findings.add("idle", seen[0])
        ramp = settings.open_streams / subject.pace.opened
        shape = Shape(settings.open_streams, ramp, wire.Stream(100, SELDOM))
        _run(held_streams(subject.port, subject.key, shape, look, settle=1.0))
        findings.add("per_stream", (seen[1] - seen[0]) / settings.open_streams)

    def _round(self, running: Sequence[_Running], number: int) -> None:
        self._say(f"round {number + 1} of {self._settings.rounds}: direct")
        base: dict[str, float] = {}
        with self.direct.attempt("direct"):
            paced, brisk = FAST.requests, FAST.brisk
            direct = self._unproxied
            base = self._paced(direct, "paced", paced) | self._paced(direct, "brisk", brisk) | self._streams(direct)
            self._arrivals(direct)
        for measure, value in base.items():
            self.direct.add(measure, value)
        for each in running:
            self._say(f"round {number + 1} of {self._settings.rounds}: {each.subject.name}")
            for phase, work in self._phases(each).items():
                if phase not in each.findings.problems:
                    with each.findings.attempt(phase):
                        for measure, value in work().items():
                            if measure in base:
                                each.findings.add(measure, value - base[measure])

    def _phases(self, each: _Running) -> dict[str, Callable[[], dict[str, float]]]:
        """Each load, as a function that returns latencies, from which the backend's own are still to be taken off."""
        key, pace = each.subject.key, each.subject.pace
        return {
            "short requests, closed loop": partial(self._short, each, "short", repeat(wire.request(key))),
            "short requests, each head another": partial(self._short, each, "varied", wire.varied(key)),
            "short requests at a fixed rate": partial(self._paced, each, "paced", pace.requests),
            "short requests at the faster rate": partial(self._paced, each, "brisk", pace.brisk),
            "streams": partial(self._streams, each),
            "clients that arrive at once": partial(self._arrivals, each),
        }

    def _short(self, running: _Running, load: str, requests: Iterator[bytes]) -> dict[str, float]:
        settings = self._settings
        window = Window(running.pid, self._backend, lambda tally: tally.answers)
        _run(closed_loop(running.subject.port, requests, window, connections=settings.connections,
                         warm_up=settings.warm_up, seconds=settings.short_seconds))  # fmt: skip
        self._count(running, load, window)
        if load == "short":
            running.findings.add("short_rate", running.findings.costs[load][-1].rate)
        return {}

    def _paced(self, running: _Running, load: str, per_second: float) -> dict[str, float]:
        settings = self._settings
        window = Window(running.pid, self._backend, lambda tally: tally.answers)
        requests = repeat(wire.request(running.subject.key))
        tally = _run(open_loop(running.subject.port, requests, window, connections=4 * settings.connections,
                               per_second=per_second, warm_up=settings.warm_up,
                               seconds=settings.paced_seconds))  # fmt: skip
        self._count(running, load, window)
        latencies = sorted(tally.latencies)
        shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
        return {f"{load}_{name}": percentile(latencies, share) for name, share in shares.items()}

    def _arrivals(self, running: _Running) -> dict[str, float]:
        """As the clients see it: the backend's own part is left in."""
        settings, subject = self._settings, running.subject
        request = wire.request(subject.key, wire.Stream(2, 5.0))
        waited: list[float] = []
        for _ in range(settings.arrival_times):
            waited += arrivals(subject.port, request, settings.arrivals)
        waited.sort()
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            running.findings.add(f"arrival_{name}", percentile(waited, share))
        return {}

    def _streams(self, running: _Running) -> dict[str, float]:
        settings, subject = self._settings, running.subject
        pace = subject.pace
        # A stream lasts from before the first mark, with all others begun, until after the last probe.
        lasts = 2 * pace.ramp + settings.warm_up + settings.stream_seconds + settings.probe_seconds + 0.8
        stream = wire.Stream(int(lasts * pace.events), pace.events)
        shape = Shape(settings.streams, pace.ramp, stream, subject.extra_events)
        window = Window(running.pid, self._backend, lambda tally: tally.events)
        load = streams_and_probes(subject.port, subject.key, shape, window, warm_up=settings.warm_up,
                                  seconds=settings.stream_seconds, probes=settings.probe_seconds,
                                  probe_rate=pace.probes)  # fmt: skip
        first_events = sorted(_run(load))
        self._count(running, "event", window)
        return {"ttft_p50": percentile(first_events, 0.5), "ttft_p95": percentile(first_events, 0.95)}

    def _count(self, running: _Running, load: str, window: Window) -> None:
        cost = window.cost()
        running.findings.costs.setdefault(load, []).append(cost)
        running.findings.add(f"{load}_cpu", cost.micros)


def _run(load: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load)


def _load_average() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())
