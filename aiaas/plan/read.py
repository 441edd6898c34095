"""File -> Plan in one call: load, check, compile. `aiaas validate` is this; `aiaas serve` begins with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aiaas.config.check import check
from aiaas.config.load import load_file
from aiaas.config.problem import Problem, has_errors
from aiaas.plan.compile import compile_plan
from aiaas.plan.model import Plan


def read_plan(path: Path, env: Mapping[str, str]) -> tuple[Plan | None, tuple[Problem, ...]]:
    """The Plan of a config file, None where there is an error, and all problems. Raises WorldError where there is no
    file."""
    loaded = load_file(path, env)
    problems = loaded.problems + check(loaded, env)
    if loaded.config is None or has_errors(problems):
        return None, problems
    return compile_plan(loaded.config, source=path, overrides=loaded.overrides, env=env), problems
