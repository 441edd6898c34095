"""Write samples to a file as they arrive and read them back: they survive a crash and a full disk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from aiaas.errors import EnvironmentFault
from aiaas.loadtest.sample import FileLine, Recorded, from_lines, to_line


class SampleFile:
    """A file of samples, open for writing. An existing file is never overwritten: a measurement cannot be repeated.

    failure   the error that stopped writing (such as a full disk), or ""; lines written before the error are valid
    """

    def __init__(self, path: Path) -> None:
        """Raises EnvironmentFault if the file already exists or cannot be created."""
        self._path = path
        self.failure = ""
        try:
            self._file: IO[bytes] = path.open("xb")
        except FileExistsError as error:
            raise EnvironmentFault(f"{path} already exists and is not overwritten; choose another --out") from error
        except OSError as error:
            raise EnvironmentFault(f"{path}: cannot be written: {error.strerror}") from error

    def write(self, value: FileLine) -> None:
        """Add a line; it may stay in the buffer until `flush`."""
        self._guard(lambda: self._file.write(to_line(value)))

    def flush(self) -> None:
        """Write the buffer to the operating system."""
        self._guard(self._file.flush)

    def close(self) -> None:
        """Flush and close the file."""
        self._guard(self._file.close)

    def _guard(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            self.failure = self.failure or f"{self._path}: cannot be written: {error.strerror}"


def read_run(path: Path) -> Recorded:
    """Read a run's file. Raises EnvironmentFault if it is unreadable, CheckFailed if it does not contain a run."""
    try:
        with path.open("rb") as file:
            return from_lines(str(path), file)
    except OSError as error:
        raise EnvironmentFault(f"{path}: {error.strerror}") from error


def write_page(path: Path, text: str) -> None:
    """Write a report's file atomically. Raises EnvironmentFault.

    An existing report is replaced, since it can be made again from the samples.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise EnvironmentFault(f"{path}: cannot be written: {error.strerror}") from error


def read_file_lines(path: Path) -> list[bytes]:
    """Read the lines of a file. Raises EnvironmentFault."""
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise EnvironmentFault(f"{path}: {error.strerror}") from error
