"""The engines that this process started, by backend, with the operations that the gateway needs.

`aiaas.proxy` does not import its peer package `aiaas.engines`, so `cli` connects the two: it passes an EngineMaker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from aiaas.plan.model import BackendPlan, EnginePlan
from aiaas.proxy.upstream.backends import BackendState


class EngineHandle(Protocol):
    """A started engine."""

    @property
    def engine(self) -> EnginePlan | None:
        """The settings that it runs with, or starts with; None where it has none of its own."""

    @property
    def starts(self) -> int:
        """How often its process was started here."""

    @property
    def deaths(self) -> int:
        """How often its process ended unasked, or was killed since it was frozen or not healthy in time."""

    async def start(self) -> None:
        """Start the engine. Raises EnvironmentFault if that fails."""

    async def stop(self, grace: float) -> None:
        """Stop the engine within `grace` seconds."""

    def hurry(self) -> None:
        """End the grace period of `stop` now."""

    def offer(self, engine: EnginePlan) -> bool:
        """Take changed settings unless the engine is healthy; return True if it runs, or starts, with them."""

    def suspect(self) -> None:
        """Check whether the engine is frozen, since a request to it has timed out."""


# Makes the engine of a backend; the second argument is a callback for (healthy, reason).
EngineMaker = Callable[[BackendPlan, Callable[[bool, str], None]], EngineHandle]


class Engines(Collector):
    """The handles of the started engines, by backend, with counts of their starts and deaths."""

    def __init__(self) -> None:
        self._handles: dict[str, EngineHandle] = {}

    def add(self, backend: str, handle: EngineHandle) -> None:
        """Add the started engine of a backend."""
        self._handles[backend] = handle

    def suspect(self, backend: str) -> None:
        """Check the engine of a backend, if this process started it, since a request to it has timed out."""
        if backend in self._handles:
            self._handles[backend].suspect()

    def collect(self) -> Iterator[Metric]:
        """As in Collector; without engines there are no series."""
        starts = CounterMetricFamily("aiaas_engine_starts", "Starts of an engine's process", labels=["backend"])
        deaths = CounterMetricFamily(
            "aiaas_engine_deaths", "Engine processes that died, or were killed because they hung", labels=["backend"]
        )
        for backend, handle in list(self._handles.items()):
            starts.add_metric([backend], handle.starts)
            deaths.add_metric([backend], handle.deaths)
        yield from (starts, deaths)

    def settings(self, backend: str) -> EnginePlan | None:
        """Return the settings that the engine of a backend runs with; None if this process did not start it."""
        return self._handles[backend].engine if backend in self._handles else None

    def offer(self, engines: Mapping[str, EnginePlan]) -> frozenset[str]:
        """Offer each engine its settings in a changed config; return the backends whose engines run with them."""
        return frozenset(
            name for name, engine in engines.items() if name in self._handles and self._handles[name].offer(engine)
        )

    def watch(self, backends: Iterable[BackendState]) -> None:
        """Let a timeout at the endpoint of a started engine call the engine's `suspect`."""
        for backend in backends:
            handle = self._handles.get(backend.plan.name)
            if handle is not None and backend.plan.engine is not None:
                for endpoint in backend.endpoints:
                    endpoint.suspect = handle.suspect
