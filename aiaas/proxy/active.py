"""A Plan in force: a reload replaces it as a whole, and a request keeps the one that it began with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiaas.plan.model import Plan, Route, Target
from aiaas.proxy.admission import Admission
from aiaas.proxy.backends import BackendState
from aiaas.proxy.cors import Cors
from aiaas.proxy.identity import Networks


@dataclass(frozen=True, slots=True)
class Active:
    """A Plan in force, and what was made from it."""

    plan: Plan
    admission: Admission
    backends: Mapping[str, BackendState]
    targets: Mapping[str, Mapping[str, Sequence[tuple[Target, BackendState]]]]  # by path, by model
    trusted: Networks
    cors: Cors | None


def targets_of(route: Route, backends: Mapping[str, BackendState]) -> Sequence[tuple[Target, BackendState]]:
    """Where a route's requests can go, each target with the state of its backend."""
    return [(target, backends[target.backend.name]) for target in route.targets]
