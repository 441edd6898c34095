"""`aiaas validate --connect`: ask the backends of a config from this machine.

Each address is asked once for its models, with the backend's own key, and with `scheduling: priority` for one token, to
see whether it takes a priority (`prioritytrial.py`). A backend whose engine `aiaas serve` starts is
not asked, since it need not run now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from aiaas.cli.prioritytrial import IGNORED, judge_trial, try_priority
from aiaas.config import codes
from aiaas.config.problem import Problem, Severity
from aiaas.config.tree import problem_at
from aiaas.openai import paths
from aiaas.plan.model import BackendPlan, Plan
from aiaas.plan.read import Reading
from aiaas.proxy.request.served_models import NotAModelList, compare, missing_sentence, own_models_sentence, read_models
from aiaas.proxy.upstream.ask import Fetched, fetch
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.connection import Failure
from aiaas.proxy.upstream.dial import addresses_of, why_unresolved
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.yamltree import Path


@dataclass(frozen=True, slots=True)
class _Asked:
    """The answers of one address.

    models  its list of models; an error text if its name has no address
    trial   its answer to a request with a priority; None if that was not tried
    """

    url: str
    models: Fetched | Failure | str
    trial: Fetched | Failure | None = None


def ask_backends(reading: Reading) -> tuple[tuple[Problem, ...], list[str]]:
    """Problems of a valid config, found by asking its backends, and lines about what asking cannot show.

    Waits `health.timeout` for a silent one, and up to 30 s for one token.
    """
    plan = reading.plan
    assert plan is not None
    results = asyncio.run(_ask_all(plan))
    problems = tuple(
        problem_at(code, severity, path, message, reading.loaded.place(path))
        for backend, answers in results
        for code, severity, path, message in _findings(backend, answers)
    )
    taken = [
        f"backends.{backend.name}.scheduling: {asked.url} {IGNORED}"
        for backend, answers in results
        for asked in answers
        if asked.trial is not None and judge_trial(asked.trial) is None
    ]
    return problems, taken + not_asked(plan)


def not_asked(plan: Plan) -> list[str]:
    """A line for each backend that is not asked."""
    return [
        f"backends.{backend.name}: not asked, since `aiaas serve` starts its engine"
        for backend in plan.backends
        if backend.engine is not None
    ]


async def _ask_all(plan: Plan) -> list[tuple[BackendPlan, list[_Asked]]]:
    asked = [backend for backend in plan.backends if backend.engine is None]
    return list(zip(asked, await asyncio.gather(*[_ask(plan, backend) for backend in asked]), strict=True))


async def _ask(plan: Plan, backend: BackendPlan) -> list[_Asked]:
    state = BackendState(backend, lambda *_: None)
    if backend.dns is not None:
        try:
            state.resolved(await addresses_of(backend.dns.host, backend.dns.port))
        except (OSError, UnicodeError) as error:
            return [_Asked(f"{backend.dns.host}:{backend.dns.port}", why_unresolved(error))]
    return await asyncio.gather(*[_ask_endpoint(plan, endpoint) for endpoint in state.endpoints])


async def _ask_endpoint(plan: Plan, endpoint: EndpointState) -> _Asked:
    backend = endpoint.backend.plan
    answer = await fetch(endpoint, paths.MODELS, backend.health.timeout)
    if backend.scheduling != "priority" or not isinstance(answer, Fetched) or answer.status != 200:
        return _Asked(endpoint.plan.url, answer)
    return _Asked(endpoint.plan.url, answer, await try_priority(plan, endpoint))


def _findings(backend: BackendPlan, answers: list[_Asked]) -> Iterator[tuple[str, Severity, Path, str]]:
    section = ("backends", backend.name)
    for asked in answers:
        url, answer = asked.url, asked.models
        if asked.trial is not None and (fault := judge_trial(asked.trial)) is not None:
            yield codes.SCHEDULING, fault[0], (*section, "scheduling"), f"{url}: {fault[1]}"
        if not isinstance(answer, Fetched):
            reason = answer.detail if isinstance(answer, Failure) else answer
            yield codes.BACKEND_AWAY, "error", section, f"{url}: {reason}"
            continue
        try:
            listed = read_models(answer.status, answer.content_type, answer.body)
        except NotAModelList as error:
            yield codes.NO_MODEL_LIST, "error", section, f"{url}: {error}"
            continue
        found, models = compare(backend, listed), (*section, "models")
        if missing := missing_sentence(found, listed):
            yield codes.MODELS_DISAGREE, "error", models, f"{url}: {missing}"
        if own := own_models_sentence(found):
            yield codes.MODELS_DISAGREE, "warning", models, f"{url}: {own}"
