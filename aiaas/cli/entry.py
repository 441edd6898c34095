"""The first lines of the program: set up SIGINT and the standard streams before the slow imports.

1. Ctrl-C while typer is being imported ends the process as the signal does for any program, without a traceback. From
   `aiaas.cli.main.run` on Ctrl-C is an exception again, so that a command can clean up.
2. The descriptors 0, 1 and 2 are open. Otherwise the next socket or file gets the number of the closed one, and
   Python has None where `print` expects a stream. A closed stdin reads as empty, and text for a closed stderr is
   lost. A closed stdout refuses every write (EBADF, as it would itself), since a result that nobody gets is an error:
   `aiaas keys create` has to say that the key is lost.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """The `aiaas` program."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # unless the parent made us ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    open_closed_streams()
    from aiaas.cli.main import main as program

    program()


def open_closed_streams() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed."""
    if _opened(0, os.O_RDONLY) or sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if _opened(1, os.O_RDONLY) or sys.stdout is None:  # not O_WRONLY: see above
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if _opened(2, os.O_WRONLY) or sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _opened(descriptor: int, flags: int) -> bool:
    """Open /dev/null as `descriptor` if that is closed; children inherit it. Returns whether it was closed."""
    try:
        os.fstat(descriptor)
    except OSError:
        nowhere = os.open(os.devnull, flags)  # the lowest free number, so often the right one
        if nowhere == descriptor:
            os.set_inheritable(descriptor, True)
        else:
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
        return True
    return False
