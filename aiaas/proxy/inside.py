"""Describe the state of one gateway process for the admin port (`admin/port.py`).

Views are made in a thread, one by one, so that an answer of 10,000 requests holds up no stream. The state may change
while the thread reads it; each value was true at some moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from heapq import nlargest
from itertools import islice
from operator import itemgetter
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry

from aiaas import __version__
from aiaas.keys.model import Principal
from aiaas.keys.verifier import Verifier
from aiaas.limits.fallback import FallbackStore
from aiaas.limits.memory import MemoryStore
from aiaas.limits.model import Limits
from aiaas.limits.near import nearest
from aiaas.plan.model import Plan
from aiaas.proxy.admin.figures import Figures
from aiaas.proxy.admin.model import (
    CertificateView,
    ConfigView,
    FlightView,
    KeysView,
    NearView,
    Refusals,
    Requests,
    RequestView,
    Status,
    StoreView,
    UsageStoreView,
)
from aiaas.proxy.admin.port import Query
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
    """The state of one process.

    worker  its number among several, None if it is alone
    """

    def __init__(
        self,
        gateway: Gateway,
        reloader: Reloader,
        store: MemoryStore | FallbackStore,
        usage: UsageRecorder,
        worker: int | None = None,
    ) -> None:
        self._gateway = gateway
        self._reloader = reloader
        self._store = store
        self._usage = usage
        self._worker = worker
        self._started = time.time()
        self._begun_with = gateway.active.plan

    # -- as a Source of the admin port -----------------------------------------------------------------------------

    async def status(self) -> bytes:
        """The answer of `/status`."""
        return _ENCODE(await self.look())

    async def requests(self, asked: Query) -> bytes:
        """The answer of `/requests`."""
        return await asyncio.get_running_loop().run_in_executor(None, _encoded, self._found(asked))

    async def refusals(self, asked: Query) -> bytes:
        """The answer of `/refusals`."""
        return _ENCODE(self.refused(asked))

    # -- as values -------------------------------------------------------------------------------------------------

    async def look(self) -> Status:
        """The state of the gateway."""

        def make(registry: CollectorRegistry, _by_key: Mapping[str, KeySums]) -> Status:
            return self._status(Figures(registry.collect()), time.time())

        return await self._gateway.metrics.aside(make)

    def refused(self, asked: Query) -> Refusals:
        """The newest refusals."""
        recent, clock = self._gateway.recent, _clock()
        newest = islice(reversed(recent.refused), asked.limit)
        return Refusals([refusal_view(each, clock, self._worker) for each in newest], dict(recent.by_code))

    def _found(self, asked: Query) -> Iterator[tuple[bool, RequestView]]:
        """The requests that `asked` names, each with whether it is under way; made one by one."""
        recent, live = self._gateway.recent, self._gateway.live
        ended = [] if asked.live else list(recent.ended)
        messages = {id(each.record): each.message for each in recent.refused}
        if asked.id is not None and not asked.live:
            known = set(map(id, ended))
            ended += [each.record for each in recent.refused if id(each.record) not in known]
        clock = _clock()
        return _views(asked, live, ended, messages, clock, self._worker)

    def _status(self, counts: Figures, now: float) -> Status:
        gateway, reloader = self._gateway, self._reloader
        plan, begun_with = gateway.active.plan, self._begun_with
        live = gateway.live
        return Status(
            version=__version__,
            now=round(now, 3),
            started=round(self._started, 3),
            workers=1,
            workers_up=1,
            draining=gateway.draining,
            address=f"{bracketed(begun_with.server.host)}:{begun_with.server.port}",
            config=ConfigView(
                source=str(plan.source) if plan.source else None,
                digest=plan.digest,
                since=round(reloader.in_force_since, 3),
                restart_needed=list(reloader.held),
            ),
            reloads=reloader.reloads.views,
            keys=_keys(plan, gateway.verifier, now),
            store=_store(plan, self._store),
            usage_store=UsageStoreView(_usage_kind(begun_with), self._usage.ok),
            certificate=_certificate(reloader),
            backends=backend_views(gateway.active.backends.values(), counts),
            requests=FlightView(
                in_flight=len(live),
                queued=sum(record.phase == "queued" for record in live),
                output_tokens=sum(record.output_tokens or record.events for record in live),
            ),
            totals=counts.totals,
            models=counts.models,
            keys_near=_keys_near(self._store, gateway.active.admission.known_limits, now),
            process=counts.process,
        )


def _clock() -> Clock:
    return Clock(time.monotonic(), time.time())


def _views(
    asked: Query,
    live: Iterable[Record],
    ended: list[Record],
    messages: Mapping[int, str],
    clock: Clock,
    worker: int | None,
) -> Iterator[tuple[bool, RequestView]]:
    def made(records: Iterable[Record], *, is_live: bool) -> Iterator[tuple[bool, RequestView]]:
        for record in islice((r for r in records if _is_asked_for(r, asked)), asked.limit):
            message = messages.get(id(record))
            yield is_live, request_view(record, clock, live=is_live, worker=worker, message=message)

    yield from made(live, is_live=True)
    yield from made(reversed(ended), is_live=False)


def _is_asked_for(record: Record, asked: Query) -> bool:
    return (
        (asked.id is None or record.request_id.startswith(asked.id))
        and (asked.key is None or asked.key in (record.key_id, record.user))
        and (asked.model is None or asked.model == record.model)
        and (asked.status is None or asked.status == record.status)
    )


def _encoded(found: Iterator[tuple[bool, RequestView]]) -> bytes:
    """The answer of `/requests`, row by row: one call for all of them would keep the GIL for too long."""
    rows: tuple[list[bytes], list[bytes]] = [], []
    for is_live, view in found:
        rows[is_live].append(_ENCODE(view))
    return b'{"live":[%b],"ended":[%b]}' % (b",".join(rows[True]), b",".join(rows[False]))


def all_requests(found: Iterator[tuple[bool, RequestView]]) -> Requests:
    """The same as values."""
    requests = Requests([], [])
    for is_live, view in found:
        (requests.live if is_live else requests.ended).append(view)
    return requests


def _keys(plan: Plan, verifier: Verifier, now: float) -> KeysView:
    if not plan.auth.enabled:
        return KeysView(False, 0, 0, None)
    expired, following = verifier.ring.expiries(now)
    return KeysView(True, len(verifier.ring.ids), expired, following)


def _store(plan: Plan, store: MemoryStore | FallbackStore) -> StoreView:
    limits = plan.limits
    if isinstance(store, MemoryStore):
        return StoreView("memory", None, limits.on_store_failure, limits.processes)
    return StoreView("redis", store.shared.up, limits.on_store_failure, store.processes)


def _keys_near(
    store: MemoryStore | FallbackStore, known: Iterable[tuple[Principal, Limits]], now: float
) -> list[NearView]:
    """The keys that have used most of one of their limits."""
    moment, near = time.monotonic(), []
    for principal, limits in known:
        if isinstance(store, MemoryStore):
            state = store.state_of(principal.key_id)
            seen = None if state is None else (state, limits)
        else:
            seen = store.seen(principal.key_id, limits, moment)
        found = None if seen is None else nearest(*seen, moment, now)
        if found is not None and found.part >= NEAR_FROM:
            near.append((found.part, NearView(principal.key_id, principal.name, *msgspec.structs.astuple(found))))
    return [view for _, view in nlargest(MOST_NEAR, near, key=itemgetter(0))]


def _usage_kind(plan: Plan) -> str:
    if plan.limits.store_url is not None:
        return "redis"
    return "none" if plan.monitoring.usage_file is None else "file"


def _certificate(reloader: Reloader) -> CertificateView | None:
    tls = reloader.tls
    return None if tls is None else CertificateView(tls.validity.ends, str(tls.plan.cert_file))
