"""`aiaas serve`: run the gateway, and the engines that the config describes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aiaas.cli.common import ConfigOption, config_path, new_app, note

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from aiaas.engines.lifecycle import Event
    from aiaas.engines.supervisor import EngineSupervisor
    from aiaas.plan.model import BackendPlan, Plan
    from aiaas.proxy.engines import EngineMaker
    from aiaas.proxy.server import Ready
    from aiaas.proxy.telemetry.log import FdWriter, JsonLog

app = new_app()

# Seconds to wait at the end for a reader of stdout that has stopped reading; then the last lines are dropped.
LAST_LINES_WAIT = 1.0
# Seconds to wait at the end for threads that cannot be interrupted: resolving a name while DNS does not answer takes a
# minute, and the loop would wait for it (seen: a pod killed after its grace period).
LAST_THREADS = 1.0


@app.command(
    epilog="""Examples:

\b
  aiaas serve
  aiaas serve -c deploy/aiaas.yaml
  kill -HUP PID          reload config and keys now (they are watched anyway)
  kill -TERM PID         drain: finish open requests, then exit; a second SIGTERM exits at once

One JSON line per request goes to stdout; messages for people go to stderr. monitoring.metrics_port serves metrics.
Exit codes: 0 stopped as asked, 1 the config is not valid, 3 environment error (port taken, file or vLLM missing).
"""
)
def serve(config: ConfigOption = None) -> None:
    """Run the gateway."""
    with ends_on_sigterm():
        path = config_path(config)
        run_gateway(read_valid_plan(path), announce)


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the process until the server handles the signal itself. The first process of a container has no
    default handler: a SIGTERM before it listened was lost, and the pod was killed at the end of its grace period."""
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def read_valid_plan(path: Path, text: str | None = None) -> Plan:
    """The Plan of a config file, or of a `text` that is to become that file; its warnings go to stderr.

    Raises CheckFailed if there are errors.
    """
    from aiaas.errors import CheckFailed
    from aiaas.plan.read import read

    reading = read(path, os.environ, text)
    plan = reading.plan
    for problem in reading.problems:
        note(str(problem))
    if plan is None:
        raise CheckFailed(f"{path} is not valid, so nothing was started; fix it and run: aiaas validate -c {path}")
    if plan.overrides:
        note(f"overridden by the environment: {', '.join(plan.overrides)}")
    return plan


def run_gateway(
    plan: Plan,
    on_ready: Callable[[Ready], None],
    on_engine_healthy: Callable[[], None] = lambda: None,
    log_to: int | None = None,
) -> None:
    """Serve `plan` until a signal ends it. The log goes to the file descriptor `log_to`, else to stdout."""
    import resource
    import tempfile
    import time

    from aiaas.proxy.client.incoming import require_c_parser
    from aiaas.proxy.server import run_server
    from aiaas.proxy.telemetry.log import FdWriter, JsonLog
    from aiaas.proxy.workers.supervisor import supervise

    require_c_parser()
    # Two descriptors a request; the usual soft limit of 1024 would allow 500 streams.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    env = dict(os.environ)
    fd = sys.stdout.fileno() if log_to is None else log_to
    alone = plan.server.workers == 1
    with tempfile.TemporaryFile() as lock:  # without a name; each process that inherits it can lock it
        writer = FdWriter(fd, None if alone else lock.fileno())
        log = JsonLog(writer, time.time, plan.monitoring.log_level)
        make_engine = engine_maker(log, plan, on_engine_healthy)

        def life() -> Coroutine[Any, Any, None]:
            if alone:
                return run_server(plan, log, env=env, make_engine=make_engine, on_ready=on_ready)
            return supervise(
                plan,
                log,
                env=env,
                make_engine=make_engine,
                on_ready=on_ready,
                command=worker_command(),
                log_to=(fd, lock.fileno()),
            )

        try:
            run_loop(life, writer, log)
        finally:
            log.flush()


def worker_command() -> tuple[str, ...]:
    """The command line of a worker."""
    return (sys.executable, *python_options(sys.path, os.getcwd()), "-m", "aiaas.cli.worker")


def python_options(path: Sequence[str], folder: str) -> tuple[str, ...]:
    """Options for a Python process that we start; `path` is our sys.path, `folder` our working directory.

    By default `-m` searches the working directory first: a worker or a simulator would run a `calendar.py` that lies
    beside the config.
    """
    looks_here = folder in path or "" in path  # as `python -m aiaas` does, maybe to find aiaas itself
    return () if looks_here else ("-P",)


def run_loop(life: Callable[[], Coroutine[Any, Any, None]], writer: FdWriter, log: JsonLog) -> None:
    """Run a server on uvloop. After a normal end, wait at most LAST_LINES_WAIT for the log's reader and LAST_THREADS
    for threads, then exit with code 0."""
    import asyncio
    import logging
    import threading

    import uvloop

    from aiaas.proxy.workers.malloc import fix_threshold

    fix_threshold()
    # Drop what libraries log after the end (a name that still did not resolve when the loop was closed).
    logging.getLogger().addHandler(logging.NullHandler())

    async def run() -> None:
        try:
            await life()
        finally:
            writer.hurry(LAST_LINES_WAIT)

    def leave() -> None:
        log.flush()
        os._exit(0)

    leaving = threading.Timer(LAST_THREADS, leave)
    leaving.daemon = True
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
            leaving.start()
    finally:
        leaving.cancel()


def engine_maker(log: JsonLog, plan: Plan, on_healthy: Callable[[], None]) -> EngineMaker:
    """Connect engines to the log and the terminal: `aiaas.proxy` and `aiaas.engines` do not import each other."""
    from aiaas.engines.lifecycle import (
        AnswersAgain,
        Died,
        GaveUp,
        Healthy,
        NotAnswering,
        Stopped,
        Waiting,
        describe,
    )
    from aiaas.engines.supervisor import EngineSupervisor

    def make(backend: BackendPlan, healthy: Callable[[bool, str], None]) -> EngineSupervisor:
        def on_event(event: Event) -> None:
            text = describe(event)
            if isinstance(event, Died):
                how = {"cause": event.cause, "exit_code": event.exit_code, "seconds": round(event.seconds, 1)}
                log.event("error", "engine_died", backend=backend.name, **how)
            else:
                level = "warning" if isinstance(event, GaveUp | NotAnswering | Waiting) else "info"
                log.event(level, "engine", backend=backend.name, text=text)
            note(f"engine {backend.name}: {text}")
            if isinstance(event, Healthy | AnswersAgain):
                healthy(True, "the engine is healthy")
                if isinstance(event, Healthy):
                    on_healthy()
            elif isinstance(event, Died | GaveUp | NotAnswering | Stopped):
                healthy(False, text)

        def on_line(line: str) -> None:
            log.event("info", "engine_output", backend=backend.name, text=line)

        assert backend.engine is not None
        return EngineSupervisor(
            backend.name,
            backend.engine,
            drain_timeout=plan.server.drain_timeout,
            silence=backend.timeout,
            on_event=on_event,
            on_line=on_line,
            python_options=python_options(sys.path, os.getcwd()),
        )

    return make


def announce(ready: Ready) -> None:
    """Print one line for the operator."""
    keys = f"{ready.keys} key{'' if ready.keys == 1 else 's'}"
    metrics = f", metrics at {ready.metrics_url}" if ready.metrics_url else ""
    note(f"listening on {ready.url} ({keys}){metrics}")
