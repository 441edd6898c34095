"""The wheel, installed as the Dockerfile installs it, and run as the manifests run it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cgroup import Memory, bounded_memory

ROOT = Path(__file__).parents[2]


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


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Bounds what is put into it to 512 MiB."""
    with bounded_memory() as memory:
        yield memory
