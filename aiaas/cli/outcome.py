"""Turn the outcome of a command or a worker into an exit code, with one line on stderr for every error.

Success 0, CommandError its own code, Ctrl-C 130, a closed pipe on stdout 141 (as the shell reports SIGPIPE), an
internal error 70 (EX_SOFTWARE of sysexits.h). Only `--debug` shows a traceback. This module does not import typer: a
worker has no command line.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TextIO

from aiaas.errors import AiaasError, CommandError

EXIT_INTERRUPTED: Final = 130
EXIT_WORLD: Final = 3
EXIT_INTERNAL: Final = 70
EXIT_READER_LEFT: Final = 141


def guarded(work: Callable[[], int], debug: bool = False) -> int:
    """Call `work` and return its exit code. Every error is one line on stderr."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set by aiaas.cli.entry; we catch it now
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = work()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        let_go_of(sys.stdout)
        return EXIT_READER_LEFT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except CommandError as error:
        return _fail(error.message, error.exit_code, debug)
    except AiaasError as error:
        return _fail(str(error), CommandError.exit_code, debug)
    except OSError as error:
        return _fail(_os_message(error), EXIT_WORLD, debug)
    except Exception as error:  # noqa: BLE001  the last resort: an internal error becomes one line, never a traceback
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(f"internal error: {what}; run again with --debug for details", EXIT_INTERNAL, debug)


def note(message: str) -> None:
    """Print one line for a person on stderr. If stderr cannot be written, the line is lost."""
    with suppress(OSError):  # a full disk behind `2>FILE` changes no result and no exit code
        print(message, file=sys.stderr, flush=True)


def _os_message(error: OSError) -> str:
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename is not None else what


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        note(traceback.format_exc().rstrip("\n"))
    note(f"aiaas: {message}")
    return code


def let_go_of(stream: TextIO) -> None:
    """Redirect a stream to /dev/null, so that the interpreter's last flush does not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
