"""aiaas.proxy.upstream.endpoint_watch: which endpoints are asked, and when."""

from __future__ import annotations

import asyncio
import time

from aiaas.proxy.tasks import end_tasks
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.endpoint_watch import EndpointWatch
from tests.proxy.conftest import config_of, plan_of
from tests.waiting import until


class Asking(EndpointWatch):
    """It notes the addresses that it asks, and asks the second one only once."""

    def __init__(self, backend: BackendState) -> None:
        super().__init__(backend, JsonLog(lambda _: None, time.time, "info"), Metrics(), 0.001)
        self.asked: list[str] = []

    async def _ask(self, endpoint: EndpointState) -> None:
        self.asked.append(endpoint.plan.url)
        self._said[endpoint] = "something"
        if endpoint.plan.url.endswith(":2"):
            self._due[endpoint] = asyncio.get_running_loop().time() + 60

    @property
    def known(self) -> int:
        """The endpoints of which something was said."""
        return len(self._said)


async def test_endpoints_that_are_up_and_due_are_asked() -> None:
    """One that comes up is asked at the next look, and one that is not due has to wait."""
    one, two, three = (f"http://127.0.0.1:{number}" for number in (1, 2, 3))
    plan = plan_of(config_of([one, two, three], {}, {})).backends[0]
    backend = BackendState(plan, lambda _endpoint, _up, _reason: None)
    backend.endpoints[2].set_up(False, "it is away")
    watch = Asking(backend)
    task = asyncio.create_task(watch.run(), name="watch")
    await until(lambda: watch.asked.count(one) > 2)
    assert watch.asked.count(two) == 1
    assert three not in watch.asked
    backend.endpoints[2].set_up(True, "it is back")
    await until(lambda: three in watch.asked)
    backend.follow(plan_of(config_of([one], {}, {})).backends[0])
    await until(lambda: watch.known == 1)
    await end_tasks([task])
