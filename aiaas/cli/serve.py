"""`aiaas serve`: read the config, then become the gateway (`aiaas.cli.gateway`)."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from aiaas.cli.common import ConfigOption, config_path, new_app
from aiaas.cli.outcome import note

if TYPE_CHECKING:
    from pathlib import Path

    from aiaas.plan.model import Plan

app = new_app()


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
    # The first process of a container has no default handler: a SIGTERM before it listened was lost, and the pod was
    # killed at the end of its grace period.
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))
    become_gateway(read_valid_plan(config_path(config)))


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


def become_gateway(plan: Plan) -> NoReturn:
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
    command = (*python_command("aiaas.cli.gateway"), str(descriptor), "aiaas", *sys.argv[1:])
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    os.execv(command[0], command)


def _anonymous_file() -> int:
    """A descriptor of a file without a name. Where possible it is memory: a Plan has the backends' keys."""
    if sys.platform != "linux":
        import tempfile

        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    return os.memfd_create("plan")
