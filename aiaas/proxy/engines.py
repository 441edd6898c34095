"""The engines that this process started, by backend, as far as the rest of the gateway needs them.

`aiaas.engines` is a peer package, so `cli` ties the two: it passes an EngineMaker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from aiaas.plan.model import BackendPlan, EnginePlan
from aiaas.proxy.upstream.backends import BackendState


class EngineHandle(Protocol):
    """A started engine."""

    async def start(self) -> None:
        """Begin; raises EnvironmentFault where it cannot."""

    async def stop(self, grace: float) -> None:
        """End it within `grace` seconds."""

    def hurry(self) -> None:
        """End the grace now."""

    def offer(self, engine: EnginePlan) -> bool:
        """Take changed settings unless the engine is healthy; True if it runs, or starts, with them."""

    def suspect(self) -> None:
        """Check whether the engine still does anything: a request has timed out in it."""


# Makes the engine of a backend; gets a callback for (healthy, reason).
EngineMaker = Callable[[BackendPlan, Callable[[bool, str], None]], EngineHandle]


class Engines:
    """The handles, by backend."""

    def __init__(self) -> None:
        self._handles: dict[str, EngineHandle] = {}

    def add(self, backend: str, handle: EngineHandle) -> None:
        """Add the started engine of a backend."""
        self._handles[backend] = handle

    def suspect(self, backend: str) -> None:
        """Have the engine of a backend checked, if it is ours: a request has timed out in it."""
        if backend in self._handles:
            self._handles[backend].suspect()

    def offer(self, engines: Mapping[str, EnginePlan]) -> frozenset[str]:
        """Offer each engine its settings in a changed config; return the backends whose engines run with them."""
        return frozenset(
            name for name, engine in engines.items() if name in self._handles and self._handles[name].offer(engine)
        )

    def watch(self, backends: Iterable[BackendState]) -> None:
        """Connect the endpoints of our engines with `suspect`."""
        for backend in backends:
            handle = self._handles.get(backend.plan.name)
            if handle is not None and backend.plan.engine is not None:
                for endpoint in backend.endpoints:
                    endpoint.suspect = handle.suspect
