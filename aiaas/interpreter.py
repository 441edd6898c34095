"""How we start a Python process of our own: a worker, a simulator, a reader of configs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def python_command(module: str) -> tuple[str, ...]:
    """The command line that runs a module of ours under this interpreter."""
    return (sys.executable, *python_options(), "-m", module)


def python_options() -> tuple[str, ...]:
    """Options for a Python process that we start."""
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # it was removed while we ran, with all that was in it
        return ("-P",)
    return options_in(sys.path, folder)


def options_in(path: Sequence[str], folder: str) -> tuple[str, ...]:
    """Options for a child of a process whose sys.path is `path`, started in `folder`.

    By default `-m` searches the working directory first: a worker or a simulator would run a `calendar.py` that lies
    beside the config.
    """
    looks_here = folder in path or "" in path  # as `python -m aiaas` does, maybe to find aiaas itself
    return () if looks_here else ("-P",)
