"""The gateway's process: `python -m aiaas.cli.gateway DESCRIPTOR FORM ...`, which `aiaas serve` becomes.

A gateway needs neither the command line nor the code that reads a config: typer and pydantic take 25 MiB. So `aiaas
serve` reads the config, and then runs this module in its place: for others the same process, with the Plan in a
descriptor, and the form of the log (`LogForm`). The further arguments are for people who look at the list of processes;
`--debug` among them holds here, too.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

from aiaas.cli.loop import run_loop
from aiaas.cli.outcome import guarded, note
from aiaas.interpreter import python_command, python_options
from aiaas.plan.model import BackendPlan, Plan
from aiaas.proxy.client.incoming import require_c_parser
from aiaas.proxy.engines import EngineMaker
from aiaas.proxy.server import Ready, run_server
from aiaas.proxy.systemd import take_from_systemd
from aiaas.proxy.telemetry.log import FdWriter, JsonLog
from aiaas.proxy.telemetry.readable import LogForm, written_as

if TYPE_CHECKING:
    from aiaas.engines.lifecycle import Event
    from aiaas.engines.supervisor import EngineSupervisor


def main(arguments: list[str]) -> int:
    """Serve the Plan in the descriptor `arguments[0]` until a signal; return the exit code."""
    return guarded(lambda: _serve(int(arguments[0]), cast(LogForm, arguments[1])), "--debug" in arguments)


def _serve(descriptor: int, form: LogForm) -> int:
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))  # until the server handles it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))  # `aiaas serve` has blocked them
    with open(descriptor, "rb") as file:
        plan: Plan = pickle.load(file)
    run_gateway(plan, announce, form=form)
    return 0


def run_gateway(
    plan: Plan,
    on_ready: Callable[[Ready], None],
    on_engine_healthy: Callable[[], None] = lambda: None,
    log_to: int | None = None,
    chat_key: str | None = None,
    form: LogForm = "json",
) -> None:
    """Serve `plan` until a signal ends it. The log goes to the file descriptor `log_to`, else to stdout."""
    require_c_parser()
    # Two descriptors a request; the usual soft limit of 1024 would allow 500 streams.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    systemd = take_from_systemd(os.environ)
    env = dict(os.environ)
    fd = sys.stdout.fileno() if log_to is None else log_to
    alone = plan.server.workers == 1
    with tempfile.TemporaryFile() as lock:  # without a name; each process that inherits it can lock it
        writer = FdWriter(fd, None if alone else lock.fileno())
        log = JsonLog(written_as(form, writer), time.time, plan.monitoring.log_level)
        make_engine = engine_maker(log, plan, on_engine_healthy)

        def ready(urls: Ready) -> None:
            on_ready(urls)
            systemd.ready(described(urls))

        def life() -> Coroutine[Any, Any, None]:
            if alone:
                return run_server(
                    plan,
                    log,
                    env=env,
                    make_engine=make_engine,
                    on_ready=ready,
                    chat_key=chat_key,
                    passed=systemd.passed,
                )
            from aiaas.proxy.workers.supervisor import supervise

            return supervise(
                plan,
                log,
                env=env,
                make_engine=make_engine,
                on_ready=ready,
                command=(*python_command("aiaas.cli.worker"), form),
                log_to=(fd, lock.fileno()),
                passed=systemd.passed,
            )

        try:
            run_loop(lambda: systemd.watched(life()), writer, log)
        finally:
            log.flush()


def engine_maker(log: JsonLog, plan: Plan, on_healthy: Callable[[], None]) -> EngineMaker:
    """Connect engines to the log and the terminal: `aiaas.proxy` and `aiaas.engines` do not import each other."""

    def make(backend: BackendPlan, healthy: Callable[[bool, str], None]) -> EngineSupervisor:
        # Without an engine, none of this is imported.
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

        died = ""

        def on_event(event: Event) -> None:
            nonlocal died
            text = describe(event)
            if isinstance(event, Died):
                died = text
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
                healthy(False, f"{text} (it {died})" if isinstance(event, GaveUp) else text)

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
            python_options=python_options(),
        )

    return make


def announce(ready: Ready) -> None:
    """Print one line for the operator."""
    note(described(ready))


def described(ready: Ready) -> str:
    """Where the gateway listens, in one line."""
    keys = f"{ready.keys} key{'' if ready.keys == 1 else 's'}"
    metrics = f", metrics at {ready.metrics_url}" if ready.metrics_url else ""
    return f"listening on {ready.url} ({keys}){metrics}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
