"""File -> Plan in one call: load, check, compile. `aiaas validate` calls it, and `aiaas.proxy.reader` for a gateway."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from aiaas.config.accept import without_accepted
from aiaas.config.check import check
from aiaas.config.load import Loaded, load_file, load_texts
from aiaas.config.problem import Problem, by_place, has_errors
from aiaas.config.restart import hold_back, with_engines
from aiaas.plan.compile import compile_plan
from aiaas.plan.model import EnginePlan, Plan


@dataclass(frozen=True, slots=True)
class Reading:
    """A config file with its Plan and its problems; `plan` is None if there is an error.

    held     the fields that wait for a restart: the Plan has their old values
    engines  if any field is held: the file's settings for each backend's engine
    accepted_problems  the warnings that the config accepts; they are not in `problems`
    """

    loaded: Loaded
    plan: Plan | None
    problems: tuple[Problem, ...]
    held: tuple[str, ...] = ()
    engines: Mapping[str, EnginePlan] = field(default_factory=dict)
    accepted_problems: tuple[Problem, ...] = ()


def read(
    path: Path,
    env: Mapping[str, str],
    texts: tuple[str, ...] | None = None,
    *,
    overlays: Sequence[Path] = (),
    deployed: bool | None = None,
    before: bytes | None = None,
    accepted: Collection[str] = (),
) -> Reading:
    """Load, check and compile. Every fault of the file is a Problem.

    Raises EnvironmentFault if a file is missing.

    overlays  further files, each laid over those before it; relative paths in them are relative to `path`, too
    deployed  whether to check it for a cluster; None: if it has a `kubernetes` section
    texts   an earlier content of each file, to read instead of the present contents
    before  `Plan.config` of a running gateway: the Plan has only the changes that need no restart
    accepted  backends whose engines run with the file's settings
    """
    if texts is None:
        loaded = load_file(path, env, overlays)
    else:
        loaded = load_texts(list(zip(map(str, (path, *overlays)), texts, strict=True)), env)
    found = loaded.problems + check(loaded, env, deployed=deployed)
    in_order = tuple(sorted(found, key=by_place))
    problems, accepted_problems = without_accepted(loaded, in_order)
    if loaded.config is None or has_errors(problems):
        return Reading(loaded, None, problems, accepted_problems=accepted_problems)
    compiled = partial(compile_plan, source=path, overlays=tuple(overlays), overrides=loaded.overrides, env=env)
    if before is None:
        plan = replace(compiled(loaded.config), config=pickle.dumps(loaded.config))
        return Reading(loaded, plan, problems, accepted_problems=accepted_problems)
    running = with_engines(pickle.loads(before), loaded.config, accepted)
    config, held = hold_back(running, loaded.config)
    plan = compiled(config)
    if not held:
        return Reading(loaded, replace(plan, config=pickle.dumps(config)), problems)
    written = compiled(loaded.config)
    engines = {backend.name: backend.engine for backend in written.backends if backend.engine is not None}
    return Reading(loaded, replace(plan, config=pickle.dumps(running)), problems, held, engines)


def read_plan(
    path: Path, env: Mapping[str, str], overlays: Sequence[Path] = ()
) -> tuple[Plan | None, tuple[Problem, ...]]:
    """The Plan of a config (None if there is an error), and all problems. Raises as `read` does."""
    reading = read(path, env, overlays=overlays)
    return reading.plan, reading.problems
