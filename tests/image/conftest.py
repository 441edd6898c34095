"""The wheel, installed as the Dockerfile installs it, and run as the manifests run it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMORY = 512 * 1024**2  # the manifests' limit


@pytest.fixture(scope="session")
def installed() -> Iterator[Path]:
    """A virtual environment with the wheel and what docker/requirements.txt locks, made by the Dockerfile's steps.

    Not among pytest's folders: those are searched for key material at the end, and libraries carry hashes as examples.
    """
    with tempfile.TemporaryDirectory(prefix="aiaas-image-") as name:
        yield install(Path(name))


def install(folder: Path) -> Path:
    """The environment, in `folder`."""
    folder.chmod(0o755)  # another user will run it
    tools, venv, wheels = folder / "build", folder / "aiaas", folder / "dist"
    run(sys.executable, "-m", "venv", str(tools))
    locked = ("--require-hashes", "--only-binary", ":all:", "-q", "-r")
    run(f"{tools}/bin/pip", "install", *locked, "docker/build.txt")
    run(sys.executable, "-m", "venv", "--without-pip", str(venv))
    into = (f"{tools}/bin/pip", "--python", f"{venv}/bin/python", "install")
    run(*into, *locked, "docker/requirements.txt")
    run(f"{tools}/bin/pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), ".")
    run(*into, "-q", "--no-deps", "--no-index", str(next(wheels.glob("*.whl"))))
    run(f"{venv}/bin/python", "-m", "compileall", "-q", f"{venv}/lib")
    return venv


def run(*command: str) -> None:
    """One step; what it printed is in the failure."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


@dataclass(frozen=True)
class Memory:
    """A cgroup with the pod's limit (version 1 or 2)."""

    folder: Path

    @property
    def peak(self) -> int:
        """The most that it held, in bytes."""
        names = ("memory.peak", "memory.max_usage_in_bytes")
        return int(next(path for name in names if (path := self.folder / name).exists()).read_text())


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Bounds what is put into it to 512 MiB: beyond that the kernel kills, as in a pod."""
    first = Path("/sys/fs/cgroup/memory")
    parent, limit = (first, "memory.limit_in_bytes") if first.is_dir() else (first.parent, "memory.max")
    folder = parent / f"aiaas-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.fail(f"a memory cgroup is needed, and none can be made ({error}); run this as root on Linux")
    (folder / limit).write_text(str(MEMORY))
    yield Memory(folder)
    folder.rmdir()
