"""Read a config in a process of its own (`reader.py`), for a gateway that runs.

The code that loads and checks a config, pydantic above all, takes 20 MiB and works for half a second. In a process that
ends, that memory is not kept; a reload does not make the gateway's heap grow, and a file that takes its reader too much
memory leaves the gateway as it is.

The request goes to the reader's stdin and its answer comes from stdout, both pickled: both processes are ours. If the
files of aiaas were replaced by another version's meanwhile, the reader refuses: its Plan may have other fields.
"""

from __future__ import annotations

import io
import pickle
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aiaas import __version__
from aiaas.config.files import config_name
from aiaas.errors import EnvironmentFault
from aiaas.interpreter import python_command
from aiaas.plan.model import EnginePlan, Plan

READER = "aiaas.proxy.reader"


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """The files of a config to read, as `aiaas.plan.read.read` takes them.

    files    the config's file and its overlays
    before   `Plan.config` of a running gateway, or the texts of a config that it began with
    version  the version of the asking process
    """

    files: tuple[Path, ...]
    env: Mapping[str, str] = field(repr=False)
    texts: tuple[str, ...] | None = field(default=None, repr=False)
    before: bytes | tuple[str, ...] | None = field(default=None, repr=False)
    accepted: frozenset[str] = frozenset()
    version: str = __version__


@dataclass(frozen=True, slots=True)
class PlanReading:
    """An `aiaas.plan.read.Reading` without the config itself; the problems are lines of text."""

    plan: Plan | None
    problems: tuple[str, ...]
    held: tuple[str, ...] = ()
    engines: Mapping[str, EnginePlan] = field(default_factory=dict)


def read_aside(request: ReadRequest) -> PlanReading:
    """Read the config in a process of its own, and wait for it.

    Raises EnvironmentFault if a file is missing, or the reader cannot be started or ends early.
    """
    named = config_name(request.files)
    try:
        # In a session of its own: a Ctrl-C at the terminal is for this process.
        reader = subprocess.run(
            python_command(READER), input=packed(request), capture_output=True, check=False, start_new_session=True
        )
    except OSError as error:
        raise EnvironmentFault(f"{named} could not be read: no process could be started ({error})") from error
    if reader.returncode != 0:
        lines = reader.stderr.decode(errors="replace").strip().splitlines()
        how = lines[-1] if lines else f"exit code {reader.returncode}"
        raise EnvironmentFault(f"{named} could not be read: its reader ended early ({how})")
    answer: PlanReading | str = pickle.loads(reader.stdout)
    if isinstance(answer, str):
        raise EnvironmentFault(answer)
    return answer


def packed(value: object) -> bytes:
    """Pickle a value; read-only mappings, which pickle refuses, too."""
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return (_read_only, (dict(value),)) if isinstance(value, MappingProxyType) else NotImplemented


def _read_only(values: dict[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(values)
