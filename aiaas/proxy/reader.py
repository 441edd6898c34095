"""`python -m aiaas.proxy.reader`: read one config for another process of ours (`aside.py`), and end."""

from __future__ import annotations

import pickle
import sys
from functools import partial

from aiaas import __version__
from aiaas.config.files import config_name
from aiaas.errors import EnvironmentFault
from aiaas.plan.read import read
from aiaas.proxy.aside import PlanReading, ReadRequest, packed


def reading_of(request: ReadRequest) -> PlanReading | str:
    """Return the reading, or the message of an EnvironmentFault."""
    if request.version != __version__:
        named = config_name(request.files)
        return f"aiaas {__version__} has replaced the running {request.version}: restart it to read {named}"
    path, *overlays = request.files
    read_it = partial(read, path, request.env, overlays=overlays, deployed=False)
    before = request.before
    try:
        if isinstance(before, tuple):
            whole = read_it(before).plan
            if whole is None:
                return PlanReading(None, ())
            before = whole.config
        reading = read_it(request.texts, before=before, accepted=request.accepted)
    except EnvironmentFault as error:
        return error.message
    return PlanReading(reading.plan, tuple(map(str, reading.problems)), reading.held, reading.engines)


def main() -> None:
    """Answer the request on stdin."""
    request: ReadRequest = pickle.load(sys.stdin.buffer)
    sys.stdout.buffer.write(packed(reading_of(request)))


if __name__ == "__main__":
    main()
