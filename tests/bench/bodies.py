"""Milliseconds that the slowest bodies take to read: `python -m tests.bench.bodies`.

on the loop    a body of ON_LOOP bytes, all that is done with it
one step       of 10 MiB in the examiner's thread, the longest call of C code: the loop waits as long for the GIL
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, ParamSpec

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.lenient import as_utf8
from aiaas.openai.peek import peek
from aiaas.openai.splice import replace_model, set_fields
from aiaas.proxy.request.examiner import ON_LOOP
from tests.openai.shapes import SHAPES

P = ParamSpec("P")
TIMES = 3
# They call Python code in turn, which hands the GIL over.
_NO_STEPS = frozenset({"sum", "any", "all", "enumerate"})


def read(body: bytes, path: str) -> None:
    """All that is done with a body on its way through, and some more."""
    try:
        body = as_utf8(body)
        found = peek(body, path)
        set_fields(body, {"stream_options": b'{"include_usage":true}', "max_tokens": b"5"})
        if found.model is not None:
            replace_model(body, found.model, b'"x"', plain=found.plain)
    except ClientError:
        pass


def seconds(work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    """CPU seconds of this thread, the best of a few."""
    best = sys.float_info.max
    for _ in range(TIMES):
        began = time.thread_time()
        work(*args, **kwargs)
        best = min(best, time.thread_time() - began)
    return best


def longest_step(body: bytes, path: str) -> tuple[float, str]:
    """CPU seconds of the longest call of a C function, the best of a few, and its name."""
    return min(_longest_step(body, path) for _ in range(TIMES))


def _longest_step(body: bytes, path: str) -> tuple[float, str]:
    began: list[float] = []
    worst = (0.0, "")

    def watch(_: FrameType, event: str, function: Any) -> None:
        nonlocal worst
        if event == "c_call":
            began.append(time.thread_time())
        elif event in ("c_return", "c_exception") and began:
            took = time.thread_time() - began.pop()
            if took > worst[0] and function.__qualname__ not in _NO_STEPS:
                worst = (took, function.__qualname__)

    sys.setprofile(watch)
    try:
        read(body, path)
    finally:
        sys.setprofile(None)
    return worst


def main() -> None:
    """Measure all shapes and print them, the slowest last."""
    rows = []
    for name, make in SHAPES.items():
        for path in (paths.CHAT, paths.MESSAGES):
            on_loop = seconds(read, make(ON_LOOP - 200), path) * 1000
            step, function = longest_step(make(10_400_000), path)
            rows.append((on_loop, step * 1000, function, name, path))
    for on_loop, step, function, name, path in sorted(rows):
        print(f"on the loop {on_loop:6.2f} ms   one step {step:6.2f} ms {function:20} {name}, {path}")


if __name__ == "__main__":
    main()
