"""Apply the environment to a file: values for `${NAME}`, and the eight variables that override fields (OVERRIDES).

Rules:
  1. `${NAME}` is replaced inside text, never in keys; an unset NAME is a problem, an empty NAME gives empty text.
     `$${NAME}` stands for the literal `${NAME}`.
  2. An override that is set to the empty text counts as unset: ConfigMaps and compose files write "nothing" this way.
  3. The VLLM_ overrides apply to the only backend, or to the backend named `vllm`.
The environment is passed in as a mapping. Messages never show a value taken from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from aiaas.config import codes
from aiaas.config.problem import Problem
from aiaas.config.tree import Flat, problem_at
from aiaas.yamltree import Path, Place

OVERRIDES: Final[Mapping[str, Path]] = MappingProxyType(
    {
        "VLLM_BACKEND_URL": ("backends", "vllm", "url"),
        "VLLM_TIMEOUT": ("backends", "vllm", "timeout"),
        "VLLM_MAX_RETRIES": ("backends", "vllm", "max_retries"),
        "API_KEY_VALIDATION_ENABLED": ("auth", "enabled"),
        "RATE_LIMIT_REQUESTS_PER_MINUTE": ("rate_limit", "requests_per_minute"),
        "PROMETHEUS_ENABLED": ("monitoring", "prometheus"),
        "PROMETHEUS_PORT": ("monitoring", "metrics_port"),
        "LOG_LEVEL": ("monitoring", "log_level"),
    }
)
ADDRESS_FIELDS: Final = ("url", "urls", "dns", "engine")

_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def interpolate(flat: Flat, env: Mapping[str, str]) -> tuple[frozenset[Path], list[Problem]]:
    """Replace every `${NAME}` in `flat.data`. Return the paths that hold values from the environment, and the
    problems."""
    filled: set[Path] = set()
    problems: list[Problem] = []

    def fill(text: str, path: Path) -> str:
        def one(match: re.Match[str]) -> str:
            if match[1] is None:
                return "${"
            if not match[0].endswith("}") or not _NAME.fullmatch(match[1]):
                message = f"{match[0][:40]!r} is not a variable; write ${{NAME}}, or $${{ for a literal ${{"
                problems.append(problem_at(codes.VARIABLE, "error", path, message, flat.values[path]))
                return match[0]
            if match[1] not in env:
                message = f"the environment variable {match[1]} is not set; set it where this command runs"
                problems.append(problem_at(codes.VARIABLE, "error", path, message, flat.values[path]))
            filled.add(path)
            return env.get(match[1], "")

        return _REFERENCE.sub(one, text)

    flat.data = _map_text(flat.data, (), fill)
    return frozenset(filled), problems


def names_in(value: Any) -> frozenset[str]:
    """Return the NAME of every `${NAME}` anywhere inside plain data."""
    found: set[str] = set()

    def look(text: str, _path: Path) -> str:
        found.update(match[1] for match in _REFERENCE.finditer(text) if match[1] and match[0].endswith("}"))
        return text

    _map_text(value, (), look)
    return frozenset(found)


def _map_text(value: Any, path: Path, change: Callable[[str, Path], str]) -> Any:
    if isinstance(value, str):
        return change(value, path) if "${" in value else value
    if isinstance(value, list):
        return [_map_text(item, (*path, index), change) for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _map_text(item, (*path, key), change) for key, item in value.items()}
    return value


def override(flat: Flat, env: Mapping[str, str]) -> tuple[tuple[str, ...], list[Problem]]:
    """Put the override variables into `flat`. Return the names of the variables in force, and the problems."""
    in_force: list[str] = []
    problems: list[Problem] = []
    for name, path in OVERRIDES.items():
        if not env.get(name):
            continue
        target = _backend_path(flat.data, path) if path[0] == "backends" else path
        if target is None:
            message = f"{name} is set but has no effect: there are several backends, but none named vllm"
            problems.append(problem_at(codes.OVERRIDE_UNUSED, "warning", ("backends",), message, Place(f"${name}")))
        elif _put(flat, target, env[name], Place(f"${name}")):
            in_force.append(name)
    return tuple(in_force), problems


def _backend_path(data: Any, path: Path) -> Path | None:
    """Return `path` for the backend that the VLLM_ variables apply to; None if that is ambiguous."""
    backends = data.get("backends") if isinstance(data, dict) else None
    if not isinstance(backends, dict) or "vllm" in backends or not backends:
        return path
    return ("backends", next(iter(backends)), path[2]) if len(backends) == 1 else None


def _put(flat: Flat, path: Path, value: str, place: Place) -> bool:
    """Set one field, creating its section if it is missing. Return False if its parent is not a mapping, which
    `load.py` reports."""
    table = flat.data
    for part in path[:-1]:
        if not isinstance(table, dict) or (path[0] == "backends" and table.get(part) is None):
            return False
        if table.get(part) is None:
            table[part] = {}
        table = table[part]
    if not isinstance(table, dict):
        return False
    if path[-1] == "url":  # the address in the environment replaces any kind of address in the file
        for name in ADDRESS_FIELDS:
            table.pop(name, None)
    table[path[-1]] = value
    flat.values[path] = flat.keys[path] = place
    return True
