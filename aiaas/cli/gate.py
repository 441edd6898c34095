"""The one gate of `aiaas validate` and `aiaas render`: every problem of a config, of its files and of its deployment.

With `given`, as `aiaas render` reads it, the result depends on the shell only where the config says so: overrides are
left out of the environment; a `${NAME}` that is deployed by its name need not be set here, and files that come from a
Secret need not exist; a variable inside the `kubernetes` section (`image: x:${TAG}`) must be set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiaas.cli.filechecks import authority_problems, key_file_problems, store_problems, tls_problems
from aiaas.cli.outcome import note
from aiaas.cli.schemas import schema_faults
from aiaas.config import codes
from aiaas.config.accept import accepted_in_vain, without_accepted
from aiaas.config.check import placed
from aiaas.config.deployment import STAND_IN, check_deployment, literal_names, plain_values
from aiaas.config.environment import OVERRIDES, names_in
from aiaas.config.load import load_file
from aiaas.config.problem import Problem, by_place, dotted, has_errors
from aiaas.manifests.render import with_patches
from aiaas.plan.kubernetes import KubernetesPlan, plan_kubernetes
from aiaas.plan.read import Reading, read


@dataclass(frozen=True, slots=True)
class Judged:
    """A config and all its problems.

    in_cluster  whether it was judged for a cluster
    accepted    the warnings that it accepts; `problems` has the others
    cluster     the plan of its manifests, None without a cluster or with an error
    """

    reading: Reading = field(repr=False)
    problems: tuple[Problem, ...]
    accepted: tuple[Problem, ...]
    in_cluster: bool
    cluster: KubernetesPlan | None = field(default=None, repr=False)


def pass_gate(paths: Sequence[Path], *, given: bool) -> Judged:
    """Judge a config, each file laid over those before it: for a cluster if it has a `kubernetes` section, and if
    `given`.

    Raises EnvironmentFault if a file is missing.

    given  take as given what only the cluster has: variables of its Secrets, and files from them
    """
    env = environment_for(paths) if given else os.environ
    reading = read(paths[0], env, overlays=paths[1:], deployed=True if given else None)
    loaded = reading.loaded
    in_cluster = given or has_cluster(reading)
    of_file = reading.problems + reading.accepted_problems
    if in_cluster:
        of_file += check_deployment(loaded)
    if given:
        of_file = tuple(explained(problem, loaded.written, env) for problem in of_file)
    in_order = tuple(sorted(of_file, key=by_place))
    files = key_file_problems(reading, deployed=in_cluster) if not given or makes_keys(reading) else ()
    if not given:
        for judge in (tls_problems, authority_problems, store_problems):
            files += judge(reading, deployed=in_cluster)
    problems, accepted = without_accepted(loaded, in_order + files)
    if has_errors(problems):
        return Judged(reading, problems, accepted, in_cluster)
    problems += accepted_in_vain(loaded, accepted, deployed=in_cluster)
    if not in_cluster:
        return Judged(reading, problems, accepted, in_cluster)
    cluster = plan_kubernetes(loaded, env)
    made = with_patches(cluster, "" if makes_keys(reading) else None)
    findings = (*made.findings, *schema_faults(made))
    problems += placed(loaded, findings)
    return Judged(reading, problems, accepted, in_cluster, None if findings else cluster)


def has_cluster(reading: Reading) -> bool:
    """Whether the config says anything about a cluster."""
    config = reading.loaded.partial
    return config is not None and "kubernetes" in config.model_fields_set


def makes_keys(reading: Reading) -> bool:
    """Whether the Secret with the keys is rendered from the key file."""
    config = reading.loaded.config
    return config is not None and config.auth.enabled and config.kubernetes.keys_secret.create


def environment_for(paths: Sequence[Path]) -> dict[str, str]:
    """The environment for rendering a config: the shell's without the overrides, and with a stand-in for each variable
    that is deployed by its name and not set here; values in the config itself win. Raises EnvironmentFault if the file
    is missing."""
    ignored = [name for name in OVERRIDES if os.environ.get(name)]
    if ignored:
        note(f"ignored, since they apply to this shell only: {', '.join(ignored)}")
    env = {name: value for name, value in os.environ.items() if name not in OVERRIDES}
    written = load_file(paths[0], env, paths[1:]).written
    given = {name: value for name, value in env.items() if value}
    return dict.fromkeys(sorted(literal_names(written)), STAND_IN) | given | plain_values(written)


def explained(problem: Problem, written: Any, env: Mapping[str, str]) -> Problem:
    """The problem itself, or if a stand-in causes it: that the variable has to be set here."""
    unset = sorted(name for name in names_in(_value_at(written, problem.path)) if env.get(name) == STAND_IN)
    if problem.severity != "error" or problem.code == codes.NOT_DEPLOYABLE or not unset:
        return problem
    message = (
        f"{', '.join(unset)} is not set here, and the rendering depends on this field's value; set it where this "
        "command runs, or write the value"
    )
    return replace(problem, code=codes.VARIABLE, message=message)


def _value_at(written: Any, path: str) -> Any:
    """The value of a leaf of the file, by its dotted path; None if it has none."""
    found: list[Any] = []

    def look(value: Any, here: tuple[str | int, ...]) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                look(inner, (*here, key))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                look(inner, (*here, index))
        elif here and dotted(here) == path:
            found.append(value)

    look(written, ())
    return found[0] if found else None
