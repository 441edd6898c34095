"""Keep the endpoints' lists of models, and report where they differ from the config (`served_models.py`).

Each endpoint is asked when it has come up and every INTERVAL: a vLLM that was restarted with another model may have
been away for less than the time between two probes. An endpoint that does not answer is asked again with the probes,
and keeps its last list. A finding is logged when it is new, and stays in the metrics for as long as it holds.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiaas.openai import paths
from aiaas.proxy.request.served_models import MOST_NAMED, NOTHING_LISTED, NotAModelList, compare, read_models, sentence
from aiaas.proxy.upstream.ask import fetch
from aiaas.proxy.upstream.connection import Failure
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.endpoint_watch import EndpointWatch

INTERVAL: Final = 60.0


class ModelWatch(EndpointWatch):
    """One for each backend."""

    async def _ask(self, endpoint: EndpointState) -> None:
        health = self._backend.plan.health
        answer = await fetch(endpoint, paths.MODELS, health.timeout)
        now = asyncio.get_running_loop().time()
        if isinstance(answer, Failure):
            self._due[endpoint] = now + min(health.interval, self._interval)
            return
        self._due[endpoint] = now + self._interval
        if endpoint not in self._backend.endpoints:
            return
        try:
            endpoint.listed = read_models(answer.status, answer.content_type, answer.body)
        except NotAModelList as error:
            endpoint.listed = NOTHING_LISTED
            self._found(endpoint, len(self._backend.plan.served_models), "models_unknown", str(error))
            return
        found = compare(self._backend.plan, endpoint.listed)
        details = {
            "configured_but_not_served": found.missing[:MOST_NAMED],
            "own_models": [alias for alias, _ in found.own_models[:MOST_NAMED]],
            "served": sorted(endpoint.listed)[:MOST_NAMED],
        }
        self._found(endpoint, found.names, "models_disagree", sentence(found, endpoint.listed), **details)

    def _found(self, endpoint: EndpointState, names: int, event: str, problem: str, **details: object) -> None:
        """Report a finding; `problem` is empty if list and config agree."""
        name, upstream = self._backend.plan.name, endpoint.plan.url
        self._metrics.models_wrong(name, upstream, names)
        before = self._said.get(endpoint, "")
        self._said[endpoint] = endpoint.problem = problem
        if problem and problem != before:
            self._log.event("warning", event, backend=name, upstream=upstream, problem=problem, **details)
        elif before and not problem:
            self._log.event("info", "models_agree", backend=name, upstream=upstream)
