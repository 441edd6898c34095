"""Which backends are being watched: for each in force a task of probes, one that follows its name where it has one, and
a comparison of the models it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import msgspec

from aiaas.openai import paths
from aiaas.plan.model import BackendPlan
from aiaas.proxy.backends import BackendState, EndpointState
from aiaas.proxy.log import JsonLog
from aiaas.proxy.resolve import Resolver, names_of
from aiaas.proxy.respond import HeaderList
from aiaas.proxy.tasks import Keeper, end_tasks, report_crash
from aiaas.proxy.upstream import Failure, FailureKind, UpstreamConnection


class Probes:
    """The tasks that watch backends. `follow` starts and ends them, `close` ends all."""

    def __init__(self, log: JsonLog, resolver: Resolver, keeper: Keeper) -> None:
        self._log = log
        self._resolver = resolver
        self._keeper = keeper
        self._watched: dict[str, tuple[BackendState, BackendPlan, list[asyncio.Task[None]]]] = {}
        self._comparisons: set[asyncio.Task[None]] = set()

    def follow(self, backends: Mapping[str, BackendState]) -> None:
        """Watch these and no others, each by its present settings. An engine of ours is watched by its supervisor."""
        for name, (state, plan, tasks) in list(self._watched.items()):
            if backends.get(name) is not state or state.plan is not plan:
                for task in tasks:
                    task.cancel()
                del self._watched[name]
        for name, state in backends.items():
            if name not in self._watched and state.plan.engine is None:
                tasks = [self._keeper.start(partial(probe_forever, state, self._recovered), f"probe {name}")]
                for host, port in names_of(state.plan).items():
                    follow = partial(self._resolver.follow, state, host, port)
                    tasks.append(self._keeper.start(follow, f"resolve {host}"))
                self._watched[name] = (state, state.plan, tasks)

    async def close(self) -> None:
        """End all of it."""
        await end_tasks([task for _, _, tasks in self._watched.values() for task in tasks])
        await end_tasks(list(self._comparisons))

    def _recovered(self, backend: BackendState, endpoint: EndpointState) -> None:
        task = asyncio.create_task(self._compare_models(backend, endpoint), name=f"models {backend.plan.name}")
        self._comparisons.add(task)
        task.add_done_callback(self._comparisons.discard)
        task.add_done_callback(report_crash(self._log))

    async def _compare_models(self, backend: BackendState, endpoint: EndpointState) -> None:
        """Two names meant as two models would silently be aliases: say where config and backend disagree."""
        result = await fetch(endpoint, paths.MODELS, backend.plan.health.timeout)
        served = None if isinstance(result, Failure) or result[0] != 200 else listed_models(result[1])
        if served is None:
            return
        missing = [name for name in backend.plan.served_models if name not in served]
        if missing:
            self._log.event(
                "warning",
                "models_disagree",
                backend=backend.plan.name,
                upstream=endpoint.plan.url,
                configured_but_not_served=missing,
                served=sorted(served),
                hint="the first name of `models` is what vLLM serves, the rest are aliases of it",
            )


class _Collector:
    """A Sink for small answers of the gateway's own requests: probes and model lists.

    It ends its connection with the answer. A backend that does not heed `Connection: close` would else leave it among
    the idle ones until `fetch` runs on, and the request that took it in between would lose it without a word.
    """

    LIMIT = 1024 * 1024

    def __init__(self, connection: UpstreamConnection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self.done: asyncio.Future[tuple[int, bytes] | Failure] = loop.create_future()
        self._status = 0
        self._body = bytearray()

    def head(self, status: int, _headers: HeaderList) -> None:
        self._status = status

    def body(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self.LIMIT:
            self.failed(Failure(FailureKind.MALFORMED, "an answer that is too long"))

    def end(self) -> None:
        self._connection.abort()
        if not self.done.done():
            self.done.set_result((self._status, bytes(self._body)))

    def failed(self, failure: Failure) -> None:
        if not self.done.done():
            self.done.set_result(failure)


async def fetch(endpoint: EndpointState, path: str, timeout: float) -> tuple[int, bytes] | Failure:
    """GET a small resource of an endpoint on a connection of its own: status and body, or the failure.

    path  the backend's health path or `/v1/models`, for which the plan has heads
    Never raises; a probe on a reused connection would tell about the connection and not about the backend.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            connection = await endpoint.pool.connect()
            if isinstance(connection, Failure):
                return connection
            collector = _Collector(connection, loop)
            try:
                connection.exchange(endpoint.plan.heads[path] + b"Connection: close\r\n\r\n", collector)
                return await collector.done
            finally:
                connection.abort()
    except TimeoutError:
        return Failure(FailureKind.TIMEOUT, f"no answer within {timeout:g} s")


async def probe_forever(backend: BackendState, on_recovered: Callable[[BackendState, EndpointState], None]) -> None:
    """Probe a backend's endpoints side by side every `health.interval` seconds, the first time and new ones at once.

    Also those that its name does not resolve to any more, as long as they have requests: a vLLM that got SIGTERM goes
    silent on them.

    `on_recovered` is called after the first good probe of an endpoint, and whenever it comes back up.
    """
    greeted: set[EndpointState] = set()
    interval = backend.plan.health.interval

    async def probe(endpoint: EndpointState) -> None:
        health = backend.plan.health
        result = await fetch(endpoint, health.path, health.timeout)
        if isinstance(result, Failure):
            if result.kind is not FailureKind.OURS:
                endpoint.report_failure(f"health check: {result.detail}")
            if result.refused:
                endpoint.report_refused_probe(asyncio.get_running_loop())
        elif result[0] >= 500:
            endpoint.report_failure(f"health check: status {result[0]}")
        else:
            # An engine of ours that is still loading may answer on its port; its supervisor has the last word.
            endpoint.report_success(probe=True)
            if endpoint.up and endpoint not in greeted:
                greeted.add(endpoint)
                on_recovered(backend, endpoint)
        if not endpoint.up:
            greeted.discard(endpoint)

    while True:
        backend.changed.clear()
        await asyncio.gather(*[probe(endpoint) for endpoint in (*backend.endpoints, *backend.leaving)])
        greeted.intersection_update(backend.endpoints)
        with suppress(TimeoutError):
            async with asyncio.timeout(interval):
                await backend.changed.wait()


def listed_models(body: bytes) -> set[str] | None:
    """The ids in a vLLM's list of models; None where it is no such list."""
    try:
        return {str(entry["id"]) for entry in msgspec.json.decode(body)["data"]}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return None
