"""Which backends are being watched: a task of probes for each in force, and a comparison of the models they serve."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from aiaas.openai import paths
from aiaas.proxy.backends import BackendState, EndpointState, fetch, probe_forever
from aiaas.proxy.log import JsonLog
from aiaas.proxy.tasks import end_tasks, report_crash
from aiaas.proxy.upstream import Failure


class Probes:
    """The tasks that watch backends. `follow` starts and ends them, `close` ends all."""

    def __init__(self, log: JsonLog) -> None:
        self._log = log
        self._watched: dict[str, tuple[BackendState, asyncio.Task[None]]] = {}
        self._comparisons: set[asyncio.Task[None]] = set()

    def follow(self, backends: Mapping[str, BackendState]) -> None:
        """Watch these and no others. An engine of ours is watched by its supervisor instead."""
        for name, (state, task) in list(self._watched.items()):
            if backends.get(name) is not state:
                task.cancel()
                del self._watched[name]
        for name, state in backends.items():
            if name not in self._watched and state.plan.engine is None:
                task = asyncio.create_task(probe_forever(state, self._recovered), name=f"probe {name}")
                task.add_done_callback(report_crash(self._log))
                self._watched[name] = (state, task)

    async def close(self) -> None:
        """End all of it."""
        await end_tasks([task for _, task in self._watched.values()])
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


def listed_models(body: bytes) -> set[str] | None:
    """The ids in a vLLM's list of models; None where it is no such list."""
    try:
        return {str(entry["id"]) for entry in msgspec.json.decode(body)["data"]}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return None
