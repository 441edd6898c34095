"""Run a load test from the first check to the last line of its file.

    check the server and each key -> write the run's settings -> run the stages; each sample goes to the file, the folds
    and the listener -> write the end, and compute the figures

Ctrl-C (SIGINT) stops sending and cancels the requests in flight; the samples so far are kept and evaluated as for any
run. A second Ctrl-C ends the process. A write error (such as a full disk) ends the run in the same way as Ctrl-C.
"""

from __future__ import annotations

import asyncio
import os
import platform
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from aiaas import __version__
from aiaas.httpclient.client import HttpClient
from aiaas.httpclient.target import HttpTarget
from aiaas.loadtest.compare import Overhead, overhead
from aiaas.loadtest.files import SampleFile
from aiaas.loadtest.gateway_cpu import CpuWatch
from aiaas.loadtest.kill_run import KillOrder, KillRun
from aiaas.loadtest.killed import Killed, killed
from aiaas.loadtest.probe import choose_model, models_of
from aiaas.loadtest.prompts import Asking
from aiaas.loadtest.runner import LoadJob, Runner, Stage
from aiaas.loadtest.sample import FORMAT, Kill, Run, RunEnd, Sample, Window
from aiaas.loadtest.slo import parse_slo
from aiaas.loadtest.summary import Folds, RunSummary, Summary
from aiaas.loadtest.sweep import goes_on

TICK: Final = 0.5  # seconds between two updates of the live view and two flushes of the file
INTERRUPTED: Final = "interrupted"


@dataclass(frozen=True, slots=True)
class LabelledKey:
    """An API key and its label for display."""

    label: str
    value: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """The settings of one load test.

    model    None takes the first model that the server lists
    direct   an engine's own address, to compare with the target
    metrics  the gateway's metrics port, to measure its CPU
    stages   one stage, or a sweep's levels in order
    slo      as written, or ""
    kill     a command to run in the middle of the only stage, or None
    out      file for the samples, or None
    options  the options as given, for the file; never a key
    """

    target: HttpTarget
    keys: tuple[LabelledKey, ...]
    asking: Asking
    stages: tuple[Stage, ...]
    model: str | None = None
    direct: HttpTarget | None = None
    direct_model: str | None = None
    direct_key: str | None = field(default=None, repr=False)
    metrics: HttpTarget | None = None
    slo: str = ""
    timeout: float = 300.0
    abort_share: float = 0.0
    seed: int = 0
    kill: KillOrder | None = None
    out: Path | None = None
    options: dict[str, str] = field(default_factory=dict)


class RunListener(Protocol):
    """Receives the events of a load test."""

    def begun(self, run: Run) -> None:
        """Called when the server has been checked and load begins."""

    def sample(self, sample: Sample) -> None:
        """Called when a request ended."""

    def tick(self, now: float, elapsed: float, inflight: int, stage: Stage) -> None:
        """Called every TICK seconds; `now` counts from the run's start, `elapsed` from the stage's."""

    def level_done(self, summary: Summary) -> None:
        """Called when a level of a sweep ended."""

    def killed(self, kill: Kill) -> None:
        """Called when the command of `--kill-replica` ended."""


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """The result of a load test."""

    run: Run
    end: RunEnd
    summary: RunSummary
    overhead: Overhead | None = None
    killed: Killed | None = None


async def measure(settings: LoadSettings, listener: RunListener) -> LoadOutcome:
    """Run a load test.

    Raises:
        EnvironmentFault: the server is unreachable, or the file of samples cannot be created.
        CheckFailed: a key is refused, the model is unknown to the server, or the metrics port does not report CPU.
    """
    bounds = parse_slo(settings.slo)
    models = await _look(settings)
    run = _describe(settings, models)
    folds = Folds(bounds)
    kept: list[Sample] = []  # those that a comparison, or the figures of a killed replica, need one by one
    killing: KillRun | None = None
    async with AsyncExitStack() as stack:
        cpu = None if settings.metrics is None else CpuWatch(settings.metrics, time.perf_counter)
        if cpu is not None:
            stack.callback(cpu.close)
            await cpu.first_look()
        file = None if settings.out is None else SampleFile(settings.out)
        if file is not None:
            stack.callback(file.close)
            file.write(run)

        def observe(sample: Sample) -> None:
            if file is not None:
                file.write(sample)
            folds.add(sample)
            if settings.direct is not None or (killing is not None and killing.record is not None):
                kept.append(sample)
            listener.sample(sample)

        listener.begun(run)
        runner = await stack.enter_async_context(Runner(_job(settings, models), observe))
        if settings.kill is not None:
            killing = KillRun(settings.kill, runner.now, listener.killed)
        stack.enter_context(stopped_by_ctrl_c(runner.stop))
        windows: list[Window] = []
        done: list[Summary] = []
        for stage in settings.stages:
            if runner.stopped_by or not goes_on(done):
                break
            windows.append(await _stage(runner, stage, listener, file, cpu, killing))
            done.append(folds.level(windows[-1]))
            listener.level_done(done[-1])
        end = runner.end(interrupted=runner.stopped_by == INTERRUPTED)
        kill = None if killing is None else killing.record
        end = msgspec.structs.replace(end, windows=tuple(windows), kill=kill)
        if file is not None:
            file.write(end)
    found = overhead(kept, random.Random(settings.seed).random) if settings.direct is not None else None
    fate = None if end.kill is None else killed(kept, end.kill)
    return LoadOutcome(run, end, folds.summary(end.windows), found, fate)


async def _stage(
    runner: Runner,
    stage: Stage,
    listener: RunListener,
    file: SampleFile | None,
    cpu: CpuWatch | None,
    killing: KillRun | None,
) -> Window:
    """Run one level; meanwhile flush the file, call the listener, measure the gateway's CPU and kill a replica."""
    began = runner.now()

    async def tick() -> None:
        while True:
            now = runner.now()
            listener.tick(now, now - began, runner.inflight, stage)
            if file is not None:
                file.flush()
                if file.failure:
                    runner.stop(file.failure)
            await asyncio.sleep(TICK)

    ticking = asyncio.create_task(tick(), name="loadtest-tick")
    ended = asyncio.Event()
    killer = None if killing is None else asyncio.create_task(killing.run(), name="loadtest-kill-replica")
    watching = None if cpu is None else asyncio.create_task(cpu.over(stage, ended), name="loadtest-gateway-cpu")
    try:
        window = await runner.stage(stage)
        ended.set()
        if watching is None or runner.stopped_by:
            return window
        return msgspec.structs.replace(window, gateway=await watching)
    finally:
        await _end(ticking)
        if killer is not None:
            await _end(killer)
        if watching is not None:
            await _end(watching)


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _look(settings: LoadSettings) -> dict[str, str]:
    """Check the server and choose each way's model. Raises as `measure`."""
    client = HttpClient(settings.target)
    try:
        listed = [await models_of(client, key.value) for key in settings.keys]
    finally:
        client.close()
    models = {"gateway": choose_model(settings.target.url, settings.model, listed[0])}
    for more in listed[1:]:
        choose_model(settings.target.url, models["gateway"], more)
    if settings.direct is not None:
        client = HttpClient(settings.direct)
        try:
            served = await models_of(client, settings.direct_key)
        finally:
            client.close()
        models["direct"] = choose_model(settings.direct.url, settings.direct_model, served)
    return models


def _job(settings: LoadSettings, models: dict[str, str]) -> LoadJob:
    ways = [("gateway", settings.target)]
    if settings.direct is not None:
        ways.append(("direct", settings.direct))
    return LoadJob(
        ways=tuple(ways),
        asking=settings.asking,
        models=models,
        keys=tuple(key.value for key in settings.keys),
        direct_key=settings.direct_key,
        timeout=settings.timeout,
        abort_share=settings.abort_share,
        seed=settings.seed,
        counted=settings.kill is not None,
    )


def _describe(settings: LoadSettings, models: dict[str, str]) -> Run:
    return Run(
        format=FORMAT,
        version=__version__,
        url=settings.target.url,
        model=models["gateway"],
        started=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        loop="closed" if settings.stages[0].rate is None else "open",
        keys=tuple(key.label for key in settings.keys),
        options=settings.options,
        machine={
            "system": f"{platform.system()} {platform.release()}",
            "processor": platform.machine(),
            "processors": str(os.cpu_count() or 0),
            "python": platform.python_version(),
        },
        slo=settings.slo,
        direct="" if settings.direct is None else settings.direct.url,
    )


@contextmanager
def stopped_by_ctrl_c(stop_run: Callable[[str], None]) -> Iterator[None]:
    """Call `stop_run` with INTERRUPTED on the first SIGINT; a second SIGINT has its usual effect."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop_run(INTERRUPTED)

    try:
        loop.add_signal_handler(signal.SIGINT, stop)
    except (ValueError, RuntimeError):  # not in the main thread: the owner of the loop stops the run by cancelling
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
