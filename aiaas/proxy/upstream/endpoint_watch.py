"""Ask each endpoint of a backend something from time to time, for as long as it is up."""

from __future__ import annotations

import asyncio
from typing import Final

from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.endpoint import EndpointState

LOOK: Final = 0.5  # seconds between two looks for endpoints that have come up


class EndpointWatch:
    """One for each backend; a subclass has the question, `_ask`. Seconds.

    interval  from an answer until the same endpoint is asked again, where `_ask` puts that into `_due`
    look      between two looks for endpoints that are due

    _due   when an endpoint is to be asked (the loop's time); only of those that are up
    _said  what was last logged of an endpoint
    """

    def __init__(
        self, backend: BackendState, log: JsonLog, metrics: Metrics, interval: float, look: float = LOOK
    ) -> None:
        self._backend = backend
        self._log = log
        self._metrics = metrics
        self._interval = interval
        self._look = look
        self._due: dict[EndpointState, float] = {}
        self._said: dict[EndpointState, str] = {}

    async def run(self) -> None:
        """Look every `look` seconds for endpoints that are due, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            endpoints = self._backend.endpoints
            self._due = {e: self._due.get(e, 0.0) for e in endpoints if e.up}
            self._said = {e: said for e, said in self._said.items() if e in endpoints}
            await asyncio.gather(*[self._ask(e) for e, due in self._due.items() if due <= loop.time()])
            await asyncio.sleep(self._look)

    async def _ask(self, endpoint: EndpointState) -> None:
        raise NotImplementedError
