"""Samples into a file as they come, and out of it again: what was measured survives a crash and a full disk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from aiaas.errors import EnvironmentFault
from aiaas.loadtest.sample import FileLine, Recorded, from_lines, to_line


class SampleFile:
    """A file that is being written. What is in it is never overwritten: a measurement cannot be had again.

    failure   why it takes no more (a full disk), "" while it does; what stands in it is good
    """

    def __init__(self, path: Path) -> None:
        """Raises EnvironmentFault where the file is there already, or cannot be made."""
        self._path = path
        self.failure = ""
        try:
            self._file: IO[bytes] = path.open("xb")
        except FileExistsError as error:
            raise EnvironmentFault(f"{path} is there already and is not overwritten; choose another --out") from error
        except OSError as error:
            raise EnvironmentFault(f"{path}: cannot be written: {error.strerror}") from error

    def write(self, value: FileLine) -> None:
        """Add a line; it may wait for `flush`."""
        self._guard(lambda: self._file.write(to_line(value)))

    def flush(self) -> None:
        """Hand everything to the system."""
        self._guard(self._file.flush)

    def close(self) -> None:
        """The last flush."""
        self._guard(self._file.close)

    def _guard(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            self.failure = self.failure or f"{self._path}: cannot be written: {error.strerror}"


def read_run(path: Path) -> Recorded:
    """A run out of its file. Raises EnvironmentFault where it cannot be read, CheckFailed where it holds no run."""
    try:
        with path.open("rb") as file:
            return from_lines(str(path), file)
    except OSError as error:
        raise EnvironmentFault(f"{path}: {error.strerror}") from error


def write_page(path: Path, text: str) -> None:
    """A report into its file, whole or not at all. Raises EnvironmentFault.

    It can be made again from the samples, so what was there is replaced.
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
    """The lines of a file. Raises EnvironmentFault."""
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise EnvironmentFault(f"{path}: {error.strerror}") from error
