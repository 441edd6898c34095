"""`aiaas serve`: read the config, then become the gateway (`aiaas.cli.gateway`)."""

from __future__ import annotations

import os
import signal
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from aiaas.cli.common import ConfigOption, config_paths, new_app, wants_colours
from aiaas.cli.outcome import note

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aiaas.plan.model import Plan
    from aiaas.proxy.telemetry.readable import LogForm

app = new_app()


class LogFormat(StrEnum):
    """The lines of the log."""

    json = "json"
    text = "text"


@app.command(
    epilog="""Examples:

\b
  aiaas serve
  aiaas serve -c deploy/aiaas.yaml
  aiaas serve -c aiaas.yaml -c prod.yaml   prod.yaml over aiaas.yaml; both are watched
  kill -HUP PID          reload config and keys now (they are watched anyway)
  kill -TERM PID         drain: finish open requests, then exit; a second SIGTERM exits at once

One line per request goes to stdout: JSON, or on a terminal the readable lines of `aiaas logs`; messages for people go
to stderr. monitoring.metrics_port serves metrics.
Exit codes: 0 stopped as asked, 1 the config is not valid, 3 environment error (port taken, file or vLLM missing).
"""
)
def serve(
    config: ConfigOption = None,
    log_format: Annotated[
        LogFormat | None,
        typer.Option(metavar="json|text", help="The log's lines. [default: text on a terminal]", show_default=False),
    ] = None,
) -> None:
    """Run the gateway."""
    paths = config_paths(config)
    # The first process of a container has no default handler: a SIGTERM before it listened was lost, and the pod was
    # killed at the end of its grace period.
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))
    become_gateway(read_valid_plan(paths), log_form(log_format))


def log_form(log_format: LogFormat | None) -> LogForm:
    """The form of the log: as asked for, else by whether a person reads it; colours only on a terminal."""
    if log_format is LogFormat.json or (log_format is None and not sys.stdout.isatty()):
        return "json"
    return "colours" if wants_colours() else "text"


def read_valid_plan(paths: Sequence[Path], texts: tuple[str, ...] | None = None) -> Plan:
    """The Plan of a config's files, or of `texts` that are to become these files; its warnings go to stderr.

    Raises CheckFailed if there are errors.
    """
    from aiaas.config.files import config_name, config_options
    from aiaas.errors import CheckFailed
    from aiaas.plan.read import read

    reading = read(paths[0], os.environ, texts, overlays=paths[1:], deployed=False)
    plan = reading.plan
    for problem in reading.problems:
        note(str(problem))
    if plan is None:
        check = f"aiaas validate {config_options(paths)}"
        raise CheckFailed(f"{config_name(paths)} is not valid, so nothing was started; fix it and run: {check}")
    if plan.overrides:
        note(f"overridden by the environment: {', '.join(plan.overrides)}")
    return plan


def become_gateway(plan: Plan, form: LogForm) -> NoReturn:
    """Run `aiaas.cli.gateway` in place of this program, in the same process, with `plan` in a descriptor.

    Signals that arrive in between wait until that program handles them.
    """
    from aiaas.interpreter import python_command
    from aiaas.proxy.aside import packed

    descriptor = _anonymous_file()
    with open(descriptor, "wb", closefd=False) as file:
        file.write(packed(plan))
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.set_inheritable(descriptor, True)
    command = (*python_command("aiaas.cli.gateway"), str(descriptor), form, "aiaas", *sys.argv[1:])
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    os.execv(command[0], command)


def _anonymous_file() -> int:
    """A descriptor of a file without a name. Where possible it is memory: a Plan has the backends' keys."""
    if sys.platform != "linux":
        import tempfile

        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    return os.memfd_create("plan")
