"""File -> Plan in one call: load, check, compile. `aiaas validate` is this; `aiaas serve` begins with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiaas.config.check import check
from aiaas.config.load import Loaded, load_file, load_text
from aiaas.config.problem import Problem, has_errors
from aiaas.plan.compile import compile_plan
from aiaas.plan.model import Plan


@dataclass(frozen=True, slots=True)
class Reading:
    """A config file with all that came of it; `plan` is None where there is an error."""

    loaded: Loaded
    plan: Plan | None
    problems: tuple[Problem, ...]


def read(path: Path, env: Mapping[str, str], text: str | None = None, *, deployed: bool = False) -> Reading:
    """Load, check (`deployed`: for a cluster, in any case) and compile. Raises WorldError where there is no file; every
    other fault is a Problem.

    text  what the file held at some time, to be read in place of what it holds now
    """
    loaded = load_file(path, env) if text is None else load_text(text, file=str(path), env=env)
    found = loaded.problems + check(loaded, env, deployed=deployed)
    problems = tuple(sorted(found, key=lambda problem: (problem.line, problem.column)))
    if loaded.config is None or has_errors(problems):
        return Reading(loaded, None, problems)
    plan = compile_plan(loaded.config, source=path, overrides=loaded.overrides, env=env)
    return Reading(loaded, plan, problems)


def read_plan(path: Path, env: Mapping[str, str]) -> tuple[Plan | None, tuple[Problem, ...]]:
    """The Plan of a config file, None where there is an error, and all problems. Raises as `read`."""
    reading = read(path, env)
    return reading.plan, reading.problems
