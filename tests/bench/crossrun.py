"""The runs of the cross-check: every tool on the simulator with a script, then on a backend that sends more and more.

The tool has the first core to itself, the server the second. Each tool gets the same number of requests, users or rate,
and length of answers; its own start is in no figure.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from tests.bench import process, wire
from tests.bench.script import Figures, Script
from tests.bench.tools import OUT, Load, NotAnsweredError, Report, Tool
from tests.ports import free_port

MODEL: Final = "m"
LIMIT: Final = 240.0  # seconds for one run of a tool; the longest takes 40 on a quiet machine

SCRIPTS: Final = (
    Script("Closed loop: 20 users", 20, None, 100, 50, 0.2, 0.02),
    Script("Open loop: 20 requests a second, evenly", None, 20.0, 100, 50, 0.2, 0.02),
    Script("Closed loop, uneven: each time varied by up to half", 20, None, 100, 50, 0.2, 0.02, jitter=0.5),
)
STREAMS: Final = 100
PACES: Final = (50, 100, 200, 400, 1000)  # events a second of each stream; a load test is to bear 20,000 of all
PACED_SECONDS: Final = 5
KEPT_UP: Final = 0.9  # of what was offered
FEW: Final = 2  # events of the run whose cost is taken off: starting, making prompts, connecting


@dataclass(slots=True)
class Outcome:
    """A tool's reports, by script; and by the pace of the streams what it received, at what cost.

    problems   what went wrong, by script or pace
    """

    tool: Tool
    reports: dict[str, list[Figures]] = field(default_factory=dict)
    received: dict[int, Received] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def figures(self, script: Script) -> Figures:
        """The median of the rounds; empty where there were none."""
        rounds = self.reports.get(script.title, [])
        return {key: median(each[key] for each in rounds) for key in (rounds[0] if rounds else ())}


@dataclass(frozen=True, slots=True)
class Received:
    """The result of a rate in events a second: CPU seconds an event, and the reported figures."""

    offered: float
    cpu: float
    report: Report
    true_itl: float

    @property
    def rate(self) -> float:
        """Events received a second of the whole run, each of them a token. Not by E2E: guidellm starts streams late."""
        return self.report.figures["tokens_per_second"]

    @property
    def kept_up(self) -> bool:
        """Whether that is about what was offered."""
        return self.rate >= KEPT_UP * self.offered


def run(outcomes: Sequence[Outcome], rounds: int, paces: Sequence[int]) -> None:
    """Everything, in turns: each round measures each tool once, so that a disturbance meets all alike."""
    present = [outcome for outcome in outcomes if not outcome.tool.missing]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for script in SCRIPTS:
            with simulator(script, folder) as url:
                load = Load(url, MODEL, script.requests, script.tokens, script.users, script.rate)
                for number in range(rounds):
                    for outcome in present[number % len(present) :] + present[: number % len(present)]:
                        _follow(outcome, script, load, folder)
        for outcome in present:
            _press(outcome, paces, folder)


def _follow(outcome: Outcome, script: Script, load: Load, folder: Path) -> None:
    with _noting(outcome, script.title):
        report, _ = measure(outcome.tool, load, folder)
        outcome.reports.setdefault(script.title, []).append(report.figures)


def _press(outcome: Outcome, paces: Sequence[int], folder: Path) -> None:
    """More and more events a second. A run that fails ends it."""
    with _noting(outcome, f"{STREAMS} streams"):
        _, idle = _streams(outcome.tool, FEW, FEW, folder)
        for pace in paces:
            events = pace * PACED_SECONDS
            report, cpu = _streams(outcome.tool, events, pace, folder)
            cost = (cpu - idle) / (STREAMS * (events - FEW))
            outcome.received[pace] = Received(STREAMS * pace, cost, report, 1 / pace)


def _streams(tool: Tool, events: int, per_second: int, folder: Path) -> tuple[Report, float]:
    with backend(events, per_second, folder) as url:
        return measure(tool, Load(url, wire.SERVED_MODEL, STREAMS, events, users=STREAMS), folder)


def measure(tool: Tool, load: Load, folder: Path) -> tuple[Report, float]:
    """Its report and the CPU seconds that it took, with all its processes, on one core.

    Raises:
        NotAnsweredError: it failed, or requests did; the message is one line.
    """
    print(f"{tool.name}: {load}", file=sys.stderr)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        _run(tool, load, Path(own))
        report = tool.read(Path(own))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return report, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _run(tool: Tool, load: Load, folder: Path) -> None:
    command = [*process.on_core(process.TESTED_CORE), *tool.command(load, folder)]
    environment = os.environ | {"HF_HOME": str(folder / "huggingface")} | dict(tool.environment)
    with (folder / OUT).open("wb") as out, (folder / "err").open("wb") as err:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment,
                                 start_new_session=True)  # fmt: skip
        try:
            code = child.wait(LIMIT)
        except subprocess.TimeoutExpired as error:
            raise NotAnsweredError(f"not done after {LIMIT:.0f} s") from error
        finally:
            with contextlib.suppress(ProcessLookupError):  # guidellm has ten processes of its own
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if code != 0:
        wrote = ((folder / OUT).read_text() + (folder / "err").read_text()).strip().splitlines() or ["nothing"]
        raise NotAnsweredError(f"ended with {code}; the last line was: {wrote[-1][:300]}")


@contextlib.contextmanager
def simulator(script: Script, folder: Path) -> Iterator[str]:
    """`aiaas simulate` with the script, on the other core."""
    port = free_port()
    times = ["--ttft", f"{script.ttft * 1e3:g}ms", "--itl", f"{script.itl * 1e3:g}ms", "--jitter", f"{script.jitter}"]
    command = [sys.executable, "-m", "aiaas", "simulate", "--port", str(port), "--served-model-name", MODEL, *times]
    with _serving(command, port, folder) as url:
        yield url


@contextlib.contextmanager
def backend(events: int, per_second: int, folder: Path) -> Iterator[str]:
    """The scripted backend, on the other core."""
    port = free_port()
    with _serving(process.backend_command(port, str(events), str(per_second)), port, folder) as url:
        yield url


@contextlib.contextmanager
def _serving(command: list[str], port: int, folder: Path) -> Iterator[str]:
    with process.started(command, process.OTHER_CORE, folder, "server", {}) as child:
        process.wait_for_answer(port, b"GET /v1/models HTTP/1.1\r\nHost: bench\r\n\r\n", child, folder, "server")
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _noting(outcome: Outcome, what: str) -> Iterator[None]:
    try:
        yield
    except (NotAnsweredError, process.NotStartedError) as error:
        outcome.problems[what] = str(error)
