"""The engines that this process started, by backend, as far as the rest of the gateway needs them.

`aiaas.engines` is a peer package, so `cli` ties the two: it passes an EngineMaker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from aiaas.plan.model import BackendPlan, EnginePlan, Plan
from aiaas.proxy.backends import BackendState


class EngineHandle(Protocol):
    """A started engine."""

    async def start(self) -> None:
        """Begin; raises WorldError where it cannot."""

    async def stop(self, grace: float) -> None:
        """End it within `grace` seconds."""

    def hurry(self) -> None:
        """End the grace now."""

    def offer(self, engine: EnginePlan) -> bool:
        """Take changed settings unless it is healthy; whether it now runs, or starts, with these."""

    def suspect(self) -> None:
        """A request has timed out in it: see whether it still does anything."""


# Makes the engine of a backend; gets a callback for (healthy, reason).
EngineMaker = Callable[[BackendPlan, Callable[[bool, str], None]], EngineHandle]


class Engines:
    """The handles, by backend."""

    def __init__(self) -> None:
        self._handles: dict[str, EngineHandle] = {}

    def add(self, backend: str, handle: EngineHandle) -> None:
        """An engine was started."""
        self._handles[backend] = handle

    def suspect(self, backend: str) -> None:
        """A request has timed out in a backend; nothing where it is not an engine of ours."""
        if backend in self._handles:
            self._handles[backend].suspect()

    def offer(self, plan: Plan) -> list[str]:
        """Offer each engine its settings in a changed Plan; the fields that need a restart."""
        wanted = {backend.name: backend.engine for backend in plan.backends if backend.engine is not None}
        kept = {name for name, engine in wanted.items() if name in self._handles and self._handles[name].offer(engine)}
        return [f"backends.{name}.engine" for name in sorted((wanted.keys() | self._handles.keys()) - kept)]

    def watch(self, backends: Iterable[BackendState]) -> None:
        """Hear of requests that time out in our engines."""
        for backend in backends:
            handle = self._handles.get(backend.plan.name)
            if handle is not None and backend.plan.engine is not None:
                for endpoint in backend.endpoints:
                    endpoint.suspect = handle.suspect
