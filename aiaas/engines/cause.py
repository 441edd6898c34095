"""Find the line that says why an engine died, among hundreds, and hide secrets in all lines. Pure.

vLLM ends with a cascade: a traceback of a worker, then of the engine core which lost the worker, then of the API server
which lost the core. The first traceback names the cause; the last line only says "see root cause above". Use the first
of these that exists:

1. the exception that ends the first traceback, with the indented line after it (pydantic's "Value error, ...");
2. argparse's error (`vllm serve: error: argument --dtype: invalid choice`);
3. the first line that was logged as an ERROR;
4. the last line.

If the engine was healthy, only its last RECENT seconds count: last week's traceback belongs to a request, not to the
death.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

LONGEST_CAUSE: Final = 400  # characters
RECENT: Final = 60.0  # seconds
MOST_KEPT: Final = 64  # errors of each kind; a cascade is a dozen
SHORTEST_SECRET: Final = 6  # characters; replacing shorter secrets would make lines unreadable and protect little
HIDDEN: Final = "***"

# The prefixes of a line: vLLM's process name, then its logger's level and time.
_PROCESS = re.compile(r"\((?P<process>[^()]* pid=\d+)\) ?")
_LEVEL = re.compile(r"(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?")
_TRACEBACK = "Traceback (most recent call last):"
_ARGPARSE = re.compile(r"[\w. -]+: error: \S")
_SECRET_NAME = re.compile(r"key|token|secret|password|passwd|credential", re.IGNORECASE)


class CauseFinder:
    """Reads an engine's output line by line, for `cause` at its end. `now` is seconds on any monotonic clock."""

    def __init__(self) -> None:
        self._exceptions: deque[tuple[float, str]] = deque(maxlen=MOST_KEPT)
        self._usage: deque[tuple[float, str]] = deque(maxlen=MOST_KEPT)
        self._errors: deque[tuple[float, str]] = deque(maxlen=MOST_KEPT)
        self._last = ""
        self._tracing: str | None = None  # the process whose traceback is being read
        self._ended: str | None = None  # the process whose exception was the line before

    def read(self, line: str, now: float) -> None:
        """Read the next line."""
        process, level, text = _parts(line)
        if self._tracing is not None:
            if process != self._tracing:
                return  # another process's line between two lines of the traceback
            if text and not text[0].isspace():
                self._exceptions.append((now, text))
                self._ended, self._tracing = process, None
            return
        if process == self._ended and text[:1].isspace():
            when, exception = self._exceptions.pop()
            self._exceptions.append((when, f"{exception} {text.strip()}"))
        self._ended = None
        if text.startswith(_TRACEBACK):
            self._tracing = process
        elif _ARGPARSE.match(text):
            self._usage.append((now, text))
        elif level in ("ERROR", "CRITICAL") and text.strip():
            self._errors.append((now, text))
        if text.strip():
            self._last = text

    def cause(self, since: float) -> str:
        """Return the cause among the lines after `since`; empty if the engine wrote nothing."""
        for kind in (self._exceptions, self._usage, self._errors):
            for when, text in kind:
                if when >= since:
                    return text[:LONGEST_CAUSE]
        return self._last[:LONGEST_CAUSE]


def _parts(line: str) -> tuple[str, str, str]:
    """Split a line into its process, its level (both may be empty) and its text, still indented."""
    process = level = ""
    if found := _PROCESS.match(line):
        process, line = found["process"], line[found.end() :]
    if found := _LEVEL.match(line):
        level, line = found["level"], line[found.end() :]
    return process, level, line


def secrets_of(args: Iterable[str], env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of arguments and variables whose names mark them as secret, longest first."""
    found = {value for name, value in env.items() if _SECRET_NAME.search(name)}
    option = ""
    for arg in args:
        name, equals, value = arg.partition("=")
        if name.startswith("--"):
            option = name
            found.update({value} if equals and _SECRET_NAME.search(name) else ())
        elif _SECRET_NAME.search(option):
            found.add(arg)
    return tuple(sorted((value for value in found if len(value) >= SHORTEST_SECRET), key=len, reverse=True))


def hide(text: str, secrets: Iterable[str]) -> str:
    """Replace each secret in `text` by HIDDEN."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text
