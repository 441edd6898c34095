"""Watch the backends in force: for each a task that probes, one that resolves its name if it has one, one that
follows its list of models, one that follows its load if that bounds it, and one that looks for engines that hang."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from aiaas.plan.model import BackendPlan, HealthPlan
from aiaas.proxy.tasks import Keeper, end_tasks
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.upstream.ask import fetch
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.bound_watch import ASK_AGAIN, METRICS_INTERVAL, BoundWatch
from aiaas.proxy.upstream.connection import Failure, FailureKind
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.hangs import watch_hangs, writes_again
from aiaas.proxy.upstream.model_watch import INTERVAL, ModelWatch
from aiaas.proxy.upstream.path_watch import PATHS_INTERVAL, PathWatch
from aiaas.proxy.upstream.resolve import Resolver, names_of


class Probes:
    """The tasks that watch backends. `follow` starts and ends them, `close` ends all."""

    def __init__(self, log: JsonLog, metrics: Metrics, resolver: Resolver, keeper: Keeper) -> None:
        self._log = log
        self._metrics = metrics
        self._resolver = resolver
        self._keeper = keeper
        self._watched: dict[str, tuple[BackendState, BackendPlan, list[asyncio.Task[None]]]] = {}

    def follow(self, backends: Mapping[str, BackendState]) -> None:
        """Watch only these, each by its present settings. The supervisor probes an engine that we started."""
        for name, (state, plan, tasks) in list(self._watched.items()):
            if backends.get(name) is not state or state.plan is not plan:
                for task in tasks:
                    task.cancel()
                del self._watched[name]
        for name, state in backends.items():
            if name not in self._watched:
                models = ModelWatch(state, self._log, self._metrics, INTERVAL)
                lacking = PathWatch(state, self._log, self._metrics, PATHS_INTERVAL)
                tasks = [
                    self._keeper.start(models.run, f"models {name}"),
                    self._keeper.start(lacking.run, f"paths {name}"),
                ]
                if state.plan.max_inflight == "auto":
                    bounds = BoundWatch(state, self._log, self._metrics, ASK_AGAIN, METRICS_INTERVAL)
                    tasks.append(self._keeper.start(bounds.run, f"bounds {name}"))
                if state.plan.health.silent_after:
                    tasks.append(self._keeper.start(partial(watch_hangs, state), f"hangs {name}"))
                if state.plan.engine is None:
                    tasks.append(self._keeper.start(partial(probe_forever, state), f"probe {name}"))
                for host, port in names_of(state.plan).items():
                    follow = partial(self._resolver.follow, state, host, port)
                    tasks.append(self._keeper.start(follow, f"resolve {host}"))
                self._watched[name] = (state, state.plan, tasks)

    async def close(self) -> None:
        """End all tasks."""
        await end_tasks([task for _, _, tasks in self._watched.values() for task in tasks])


async def probe_forever(backend: BackendState) -> None:
    """Probe a backend's endpoints side by side every `health.interval` seconds, the first time and new ones at once.

    Also those that its name does not resolve to any more, as long as they have requests: a vLLM that got SIGTERM goes
    silent on them.
    """
    interval = backend.plan.health.interval
    while True:
        backend.changed.clear()
        health = backend.plan.health
        await asyncio.gather(*[_probe(endpoint, health) for endpoint in (*backend.endpoints, *backend.leaving)])
        with suppress(TimeoutError):
            async with asyncio.timeout(interval):
                await backend.changed.wait()


async def _probe(endpoint: EndpointState, health: HealthPlan) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    result = await fetch(endpoint, health.path, health.timeout)
    if isinstance(result, Failure) and result.kind is FailureKind.NO_RESOURCES:
        return
    if isinstance(result, Failure) and _is_lost(result, endpoint):
        endpoint.report_lost_probe(began, loop.time())
    else:
        endpoint.lost.clear()
    if isinstance(result, Failure):
        endpoint.report_failure(f"health check: {result.detail}")
        if result.refused:
            endpoint.report_refused_probe(loop)
            _empty(endpoint, "a probe was refused")
    elif result.status >= 500:
        endpoint.report_failure(f"health check: status {result.status}")
        if result.status == 503:
            _empty(endpoint, "a probe got 503")
    elif endpoint.hangs and not await writes_again(endpoint, health.timeout):
        endpoint.report_failure("health check: it does not write a token")
    else:
        endpoint.report_success(probe=True)


def _empty(endpoint: EndpointState, reason: str) -> None:
    """Let its streams be moved, where it has any: a vLLM that shuts down refuses probes while its streams flow."""
    if endpoint.streams:
        endpoint.empty(reason)


def _is_lost(failure: Failure, endpoint: EndpointState) -> bool:
    """Whether nothing answered: a timeout, or no route to the host. With TLS, a CONNECT may also be an answer that is
    not to our taste, such as an expired certificate."""
    if failure.kind is FailureKind.CONNECT:
        return not failure.refused and not endpoint.plan.tls
    return failure.kind is FailureKind.TIMEOUT
