"""`aiaas validate --connect`: ask the backends of a config from this machine.

Each address is asked once for its models, with the backend's own key. A backend whose engine `aiaas serve` starts is
not asked, since it need not run now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

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
from aiaas.yamltree import Path

# A URL and its answer; an error text if its name has no address.
Answers = list[tuple[str, Fetched | Failure | str]]


def connect_problems(reading: Reading) -> tuple[Problem, ...]:
    """Problems of a valid config, found by asking its backends. Waits `health.timeout` for a silent one."""
    assert reading.plan is not None
    return tuple(
        problem_at(code, severity, path, message, reading.loaded.place(path))
        for backend, answers in asyncio.run(_ask_all(reading.plan))
        for code, severity, path, message in _findings(backend, answers)
    )


def not_asked(plan: Plan) -> list[str]:
    """A line for each backend that is not asked."""
    return [
        f"backends.{backend.name}: not asked, since `aiaas serve` starts its engine"
        for backend in plan.backends
        if backend.engine is not None
    ]


async def _ask_all(plan: Plan) -> list[tuple[BackendPlan, Answers]]:
    asked = [backend for backend in plan.backends if backend.engine is None]
    return list(zip(asked, await asyncio.gather(*map(_ask, asked)), strict=True))


async def _ask(plan: BackendPlan) -> Answers:
    backend = BackendState(plan, lambda *_: None)
    if plan.dns is not None:
        try:
            backend.resolved(await addresses_of(plan.dns.host, plan.dns.port))
        except (OSError, UnicodeError) as error:
            return [(f"{plan.dns.host}:{plan.dns.port}", why_unresolved(error))]
    answers = [fetch(endpoint, paths.MODELS, plan.health.timeout) for endpoint in backend.endpoints]
    urls = [endpoint.plan.url for endpoint in backend.endpoints]
    return list(zip(urls, await asyncio.gather(*answers), strict=True))


def _findings(backend: BackendPlan, answers: Answers) -> Iterator[tuple[str, Severity, Path, str]]:
    section = ("backends", backend.name)
    for url, answer in answers:
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
