"""The clients of package-lock.json and requirements.lock, installed into a cache folder that every clone shares.

    python tests/clients/setup.py          # prints the folder; about a minute the first time, nothing afterwards

The folder is `clients-<12 hex digits>` beside the real vLLM's; the digits are a digest of both locks. It is installed
into a folder of another name and renamed at the end, so that a folder of the right name is complete. (The scripts of a
virtual environment name its path, so they are not used: `venv/bin/python -m ...` works anywhere.)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
FILES: Final = ("package.json", "package-lock.json", "requirements.lock")
CLAUDE_CODE: Final = "node_modules/@anthropic-ai/claude-code"


class SetupError(Exception):
    """The clients cannot be installed here; the message says what to do."""


def cache() -> Path:
    """The folder of all caches: $AIAAS_CACHE, else $XDG_CACHE_HOME/aiaas, else ~/.cache/aiaas."""
    own = os.environ.get("AIAAS_CACHE")
    if own:
        return Path(own)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "aiaas"


def folder() -> Path:
    """The folder of these versions, complete or not there."""
    digest = hashlib.sha256(b"".join(HERE.joinpath(name).read_bytes() for name in FILES)).hexdigest()[:12]
    return cache() / f"clients-{digest}"


def install() -> Path:
    """Install the clients if they are not there yet.

    Raises SetupError where npm is missing or fails.
    """
    final = folder()
    if final.is_dir():
        return final
    npm = shutil.which("npm")
    if npm is None:
        raise SetupError("npm is not on PATH; the clients need Node 20 or later")
    final.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f"{final.name}.", dir=final.parent))
    for name in FILES:
        shutil.copy(HERE / name, building)
    python = str(building / "venv" / "bin" / "python")
    for command in (
        [sys.executable, "-m", "venv", str(building / "venv")],
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "-r", "requirements.lock"],
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
        ["node", f"{CLAUDE_CODE}/install.cjs"],  # puts its binary in place; no other package's script runs
    ):
        ran = subprocess.run(command, cwd=building, capture_output=True, text=True)
        if ran.returncode:
            shutil.rmtree(building)
            raise SetupError(f"{' '.join(command)} failed: {ran.stderr.strip()[-500:]}")
    try:
        building.rename(final)
    except OSError:  # another process was faster
        shutil.rmtree(building)
    return final


if __name__ == "__main__":
    try:
        print(install())
    except SetupError as error:
        sys.exit(f"{error}")
