"""`aiaas validate --connect` and `aiaas doctor`: ask the backends of a config from this machine.

Each address is asked once for its models and once for its paths, with the backend's own key, and with `scheduling:
priority` for one token, to see whether it takes a priority (`prioritytrial.py`). A backend whose engine `aiaas serve`
starts is not asked, since it need not run now.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from aiaas.cli.prioritytrial import IGNORED, judge_trial, try_priority
from aiaas.config import codes
from aiaas.config.problem import Problem, Severity
from aiaas.config.tree import problem_at
from aiaas.openai.paths import GENERATE, MODELS, OPENAPI
from aiaas.plan.model import BackendPlan, Plan
from aiaas.plan.read import Reading
from aiaas.proxy.request.served_models import NotAModelList, compare, missing_sentence, own_models_sentence, read_models
from aiaas.proxy.upstream.ask import Fetched, fetch
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.connection import Failure
from aiaas.proxy.upstream.dial import addresses_of, why_unresolved
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.path_watch import lacking_paths
from aiaas.yamltree import Path

# An HTTP date is cut to whole seconds: on average it is this much behind.
HALF_SECOND: Final = 0.5
# A connection's error -> its usual cause, and what to do.
_CAUSES: Final = (
    ("connection refused", "nothing listens on that port: start vLLM there, or fix the port"),
    ("no connection within", "a firewall or a NetworkPolicy drops the packets, or the address is wrong"),
    ("no answer within", "it accepts connections and is silent: does it still load its model, or hang?"),
    ("name or service not known", "no such host: fix the name; names of a cluster resolve only inside of it"),
    ("no address associated", "no such host: fix the name; names of a cluster resolve only inside of it"),
    ("name resolution", "the DNS server does not answer"),
)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The answers of one address.

    models  its list of models; an error text if its name has no address
    lacks   the paths of ours that it does not have
    ahead   seconds by which its clock is ahead of ours; None if unknown
    trial   its answer to a request with a priority; None if that was not tried
    """

    url: str
    models: Fetched | Failure | str
    lacks: frozenset[str] = frozenset()
    ahead: float | None = None
    trial: Fetched | Failure | None = None


@dataclass(frozen=True, slots=True)
class AddressAnswer:
    """One address that was asked: its backend, the models that it lists, and its clock.

    models  empty where it does not list any
    ahead   seconds by which its clock is ahead of ours; None where its answer has no date
    """

    backend: str
    url: str
    models: tuple[str, ...]
    ahead: float | None


@dataclass(frozen=True, slots=True)
class BackendAnswers:
    """The problems that asking showed, lines about what it cannot show, and each address."""

    problems: tuple[Problem, ...]
    lines: tuple[str, ...]
    addresses: tuple[AddressAnswer, ...]


def ask_backends(reading: Reading) -> BackendAnswers:
    """Ask the backends of a valid config.

    Waits `health.timeout` for a silent one, and up to 30 s for one token.
    """
    plan, config = reading.plan, reading.loaded.config
    assert plan is not None
    assert config is not None
    found: list[tuple[str, Severity, Path, str]] = []
    lines: list[str] = []
    addresses: list[AddressAnswer] = []
    for backend, answers in asyncio.run(_ask_all(plan)):
        found += _findings(backend, answers)
        for asked in answers:
            addresses.append(AddressAnswer(backend.name, asked.url, _listed(asked.models), asked.ahead))
            if asked.trial is not None and judge_trial(asked.trial) is None:
                lines.append(f"backends.{backend.name}.scheduling: {asked.url} {IGNORED}")
            problem, line = _lacking(backend.name, asked, config.backends[backend.name].endpoints)
            found += problem
            lines += line
    problems = (problem_at(*finding, reading.loaded.place(finding[2])) for finding in found)
    return BackendAnswers(tuple(problems), (*lines, *not_asked(plan)), tuple(addresses))


def _listed(answer: Fetched | Failure | str) -> tuple[str, ...]:
    if not isinstance(answer, Fetched):
        return ()
    try:
        return tuple(read_models(answer.status, answer.content_type, answer.body))
    except NotAModelList:
        return ()


def seconds_ahead(date: bytes, now: float) -> float | None:
    """By how much the clock of an HTTP answer's `Date` is ahead; None if it is not a date. It counts whole seconds."""
    try:
        return parsedate_to_datetime(date.decode("ascii")).timestamp() + HALF_SECOND - now
    except (ValueError, UnicodeDecodeError):
        return None


def _lacking(
    name: str, asked: _Asked, named: tuple[str, ...] | None
) -> tuple[list[tuple[str, Severity, Path, str]], list[str]]:
    """A problem where the config names a path that the engine lacks; else a line: a backend offers all by default."""
    lacking = ", ".join(path for path in named or GENERATE if path in asked.lacks)
    if not lacking:
        return [], []
    if named is None:
        return [], [f"backends.{name}: {asked.url} does not have {lacking}, so requests to them are 404"]
    place: Path = ("backends", name, "endpoints")
    return [(codes.ENDPOINT_PATH, "warning", place, f"{asked.url} does not have {lacking}; remove it")], []


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
    return await asyncio.gather(
        *[_ask_endpoint(plan, endpoint) for endpoint in state.endpoints if not endpoint.draining]
    )


async def _ask_endpoint(plan: Plan, endpoint: EndpointState) -> _Asked:
    backend = endpoint.backend.plan
    answer = await fetch(endpoint, MODELS, backend.health.timeout)
    ahead = None if isinstance(answer, Failure) else seconds_ahead(answer.date, time.time())
    listed = None if isinstance(answer, Failure) else await fetch(endpoint, OPENAPI, backend.health.timeout)
    lacks = frozenset[str]() if listed is None else lacking_paths(listed) or frozenset()
    if backend.scheduling != "priority" or not isinstance(answer, Fetched) or answer.status != 200:
        return _Asked(endpoint.plan.url, answer, lacks, ahead)
    return _Asked(endpoint.plan.url, answer, lacks, ahead, await try_priority(plan, endpoint))


def _findings(backend: BackendPlan, answers: list[_Asked]) -> Iterator[tuple[str, Severity, Path, str]]:
    section = ("backends", backend.name)
    for asked in answers:
        url, answer = asked.url, asked.models
        if asked.trial is not None and (fault := judge_trial(asked.trial)) is not None:
            yield codes.SCHEDULING, fault[0], (*section, "scheduling"), f"{url}: {fault[1]}"
        if not isinstance(answer, Fetched):
            reason = answer.detail if isinstance(answer, Failure) else answer
            cause = next((f"; {cause}" for words, cause in _CAUSES if words in reason.lower()), "")
            yield codes.BACKEND_AWAY, "error", section, f"{url}: {reason}{cause}"
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
