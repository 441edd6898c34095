"""Describe the state of one gateway process for the admin port (`admin/port.py`).

Views are made in a thread, one by one, so that an answer of 10,000 requests holds up no stream. The state may change
while the thread reads it; each value was true at some moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from heapq import nlargest
from itertools import islice
from operator import itemgetter
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry

from aiaas import __version__
from aiaas.keys.model import Principal
from aiaas.keys.ring import EMPTY_RING, KeyRing
from aiaas.limits.fallback import FallbackStore
from aiaas.limits.memory import MemoryStore
from aiaas.limits.model import Limits
from aiaas.limits.near import nearest
from aiaas.plan.model import Plan
from aiaas.proxy.admin.attention import attention
from aiaas.proxy.admin.figures import Figures
from aiaas.proxy.admin.model import (
    CertificateView,
    ConfigView,
    FlightView,
    KeysView,
    NearView,
    ProcessView,
    Status,
    StoreView,
    TotalsView,
    UsageStoreView,
)
from aiaas.proxy.admin.port import Query
from aiaas.proxy.admin.rows import LIVE, EncodedRow, Rows, encoded_rows, row
from aiaas.proxy.admin.views import Clock, backend_views, refusal_view, request_view
from aiaas.proxy.client.ports import bracketed
from aiaas.proxy.gateway import Gateway
from aiaas.proxy.reload import Reloader
from aiaas.proxy.telemetry.key_counters import KeySums
from aiaas.proxy.telemetry.record import Record
from aiaas.proxy.usage import UsageRecorder

# A key is near a limit of which it has used this part; so many keys are shown.
NEAR_FROM: Final = 0.8
MOST_NEAR: Final = 50
_ENCODE: Final = msgspec.json.Encoder().encode


class Inside:
    """The state of one process."""

    def __init__(
        self,
        gateway: Gateway,
        reloader: Reloader,
        store: MemoryStore | FallbackStore,
        usage: UsageRecorder,
    ) -> None:
        self._gateway = gateway
        self._reloader = reloader
        self._store = store
        self._usage = usage
        self._started = time.time()
        self._counted = EMPTY_RING, KeysView(True, 0, 0, None)

    # -- as a Source of the admin port -----------------------------------------------------------------------------

    async def status(self) -> bytes:
        """The answer of `/status`."""
        found = await self.look()
        found.attention = attention(found)
        return _ENCODE(found)

    async def requests(self, query: Query) -> bytes:
        """The answer of `/requests`."""
        rows = await self.requests_found(query, None)
        return await asyncio.to_thread(encoded_rows, rows)

    async def refusals(self, query: Query) -> bytes:
        """The answer of `/refusals`."""
        return encoded_rows(self.refusals_found(query, None))

    # -- as values; `worker` is this process's number among several ------------------------------------------------

    async def look(self) -> Status:
        """The state of the gateway."""

        def make(registry: CollectorRegistry, _by_key: Mapping[str, KeySums]) -> Status:
            return self._status(Figures(registry.collect()), time.time())

        return await self._gateway.metrics.aside(make)

    def refusals_found(self, query: Query, worker: int | None) -> Rows:
        """The newest refusals."""
        last, clock = self._gateway.recent, _clock()
        views = (refusal_view(each, clock, worker) for each in islice(reversed(last.refused), query.limit))
        return Rows({"refusals": [row(view.at, view) for view in views]}, dict(last.by_code))

    async def requests_found(self, query: Query, worker: int | None) -> Rows:
        """The requests that `query` names."""
        last, live = self._gateway.recent, self._gateway.live
        ended = [] if query.live else list(last.ended)
        messages = {id(each.record): each.message for each in last.refused}
        if query.id is not None and not query.live:
            known = set(map(id, ended))
            ended += [each.record for each in last.refused if id(each.record) not in known]
        clock = _clock()

        def rows(records: Iterable[Record], *, is_live: bool) -> list[EncodedRow]:
            found = islice((record for record in records if _is_asked_for(record, query)), query.limit)
            views = (
                request_view(each, clock, live=is_live, worker=worker, message=messages.get(id(each))) for each in found
            )
            return [row(view.at if is_live else view.at + view.duration, view) for view in views]

        def work() -> Rows:
            return Rows({LIVE: rows(live, is_live=True), "ended": rows(reversed(ended), is_live=False)})

        return await asyncio.get_running_loop().run_in_executor(None, work)

    def _status(self, figures: Figures, now: float) -> Status:
        gateway, reloader = self._gateway, self._reloader
        plan, live = gateway.active.plan, gateway.live
        status = status_of(plan, self._started, 1, 1, draining=gateway.draining)
        status.config.since, status.config.restart_needed = round(reloader.in_force_since, 3), list(reloader.held)
        status.reloads = reloader.reloads.views
        status.keys = self._keys(plan, gateway.verifier.ring, now)
        status.usage_store.ok = self._usage.ok
        if isinstance(self._store, FallbackStore):
            status.store.up, status.store.processes = self._store.shared.up, self._store.processes
        if (tls := reloader.tls) is not None:
            status.certificate = CertificateView(tls.validity.ends, str(tls.plan.cert_file))
        status.backends = backend_views(gateway.active.backends.values(), figures)
        status.requests = FlightView(
            in_flight=len(live),
            queued=sum(record.phase == "queued" for record in live),
            output_tokens=sum(record.output_tokens or record.events for record in live),
        )
        status.totals, status.models, status.process = figures.totals, figures.models, figures.process
        status.keys_near = _keys_near(self._store, gateway.active.admission.known_limits, now)
        return status

    def _keys(self, plan: Plan, ring: KeyRing, now: float) -> KeysView:
        """The keys; counted again only where they have changed or one has expired: 50,000 take 6 ms."""
        if not plan.auth.enabled:
            return KeysView(False, 0, 0, None)
        counted, view = self._counted
        if counted is not ring or (view.next_expiry is not None and view.next_expiry <= now):
            view = KeysView(True, len(ring.ids), *ring.expiries(now))
            self._counted = ring, view
        return view


def status_of(plan: Plan, started: float, workers: int, workers_up: int, *, draining: bool) -> Status:
    """The part of a status that the Plan alone tells."""
    usage = "none" if plan.monitoring.usage_file is None else "file"
    shared = plan.limits.store_url is not None
    source, overlays = str(plan.source) if plan.source else None, [str(file) for file in plan.overlays]
    return Status(
        version=__version__,
        now=round(time.time(), 3),
        started=round(started, 3),
        workers=workers,
        workers_up=workers_up,
        draining=draining,
        address=f"{bracketed(plan.server.host)}:{plan.server.port}",
        config=ConfigView(source, plan.digest, round(started, 3), [], overlays),
        reloads=[],
        keys=KeysView(plan.auth.enabled, 0, 0, None),
        store=StoreView("redis" if shared else "memory", None, plan.limits.on_store_failure, plan.limits.processes),
        usage_store=UsageStoreView("redis" if shared else usage, None),
        certificate=None,
        backends=[],
        requests=FlightView(0, 0, 0),
        totals=TotalsView(),
        models=[],
        keys_near=[],
        process=ProcessView(),
    )


def _clock() -> Clock:
    return Clock(time.monotonic(), time.time())


def _is_asked_for(record: Record, query: Query) -> bool:
    return (
        (query.id is None or record.request_id.startswith(query.id))
        and (query.key is None or query.key in (record.key_id, record.user))
        and (query.model is None or query.model == record.model)
        and (query.status is None or query.status == record.status)
    )


def _keys_near(
    store: MemoryStore | FallbackStore, known: Iterable[tuple[Principal, Limits]], now: float
) -> list[NearView]:
    """The keys that have used most of one of their limits."""
    moment, near = time.monotonic(), []
    for principal, limits in known:
        seen = store.seen(principal.key_id, limits, moment)
        found = None if seen is None else nearest(*seen, moment, now)
        if found is not None and found.part >= NEAR_FROM:
            near.append((found.part, NearView(principal.key_id, principal.name, *msgspec.structs.astuple(found))))
    return [view for _, view in nlargest(MOST_NEAR, near, key=itemgetter(0))]
