"""A cgroup with a pod's memory limit: beyond that the kernel kills, as in a cluster. Needs root on Linux."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

MEMORY = 512 * 1024**2  # the manifests' limit


@dataclass(frozen=True)
class Memory:
    """A cgroup with the pod's limit (version 1 or 2)."""

    folder: Path

    @property
    def peak(self) -> int:
        """The most memory that it used, in bytes."""
        names = ("memory.peak", "memory.max_usage_in_bytes")
        return int(next(path for name in names if (path := self.folder / name).exists()).read_text())

    @property
    def prefix(self) -> tuple[str, ...]:
        """In front of a command: it runs in the cgroup."""
        return ("sh", "-c", f'echo $$ >{self.folder}/cgroup.procs; exec "$@"', "sh")


@contextmanager
def bounded_memory() -> Iterator[Memory]:
    """Bounds the processes that are put into it to MEMORY."""
    first = Path("/sys/fs/cgroup/memory")
    parent, limit = (first, "memory.limit_in_bytes") if first.is_dir() else (first.parent, "memory.max")
    folder = parent / f"aiaas-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.fail(f"a memory cgroup is needed, and none can be made ({error}); run this as root on Linux")
    (folder / limit).write_text(str(MEMORY))
    try:
        yield Memory(folder)
    finally:
        folder.rmdir()
