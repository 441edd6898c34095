"""The files of one config, each laid over those before it, as messages name them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def config_name(files: Iterable[Path | str]) -> str:
    """Return the names of all files: `aiaas.yaml + prod.yaml`."""
    return " + ".join(map(str, files))


def config_options(files: Iterable[Path | str]) -> str:
    """Return the options by which a command reads the same files: `-c aiaas.yaml -c prod.yaml`."""
    return " ".join(f"-c {file}" for file in files)
