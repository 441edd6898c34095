"""`python -m aiaas.cli.worker FORM NUMBER CHANNEL LISTENER LOCK`: one worker. Only `aiaas serve` can start it.

FORM is that of the log (`LogForm`), NUMBER the worker's number. The others are descriptors that it inherits: its
channel to the supervisor, its listening socket, the log's lock. Its log goes to stdout, which it shares with the
supervisor and the other workers.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, cast

from aiaas.cli.outcome import guarded

if TYPE_CHECKING:
    from aiaas.proxy.telemetry.readable import LogForm


def main(arguments: list[str]) -> int:
    """Work until the supervisor stops the worker; return the exit code."""
    form, *numbers = arguments
    return guarded(lambda: _work(cast("LogForm", form), *(int(number) for number in numbers)))


def _work(form: LogForm, number: int, channel: int, listener: int, lock: int) -> int:
    import time

    from aiaas.cli.loop import run_loop
    from aiaas.proxy.telemetry.log import FdWriter, JsonLog
    from aiaas.proxy.telemetry.readable import written_as
    from aiaas.proxy.workers.worker import work

    writer = FdWriter(sys.stdout.fileno(), lock)
    log = JsonLog(written_as(form, writer), time.time, "info", number)
    try:
        with socket.socket(fileno=channel) as sock, socket.socket(fileno=listener) as listening:
            run_loop(lambda: work(sock, listening, log, dict(os.environ)), writer, log)
    finally:
        log.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
