"""The status of a gateway of several workers, from the statuses of all. Pure.

A fault that one worker sees is the gateway's: an endpoint that is down for one is down, and a file that one could not
read was not read. Numbers are summed; the counts since the start come from the summed metrics (`figures.py`), which
include workers that have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from aiaas.proxy.admin.figures import Figures
from aiaas.proxy.admin.model import BackendView, EndpointView, FlightView, NearView, ReloadView, Status

_T = TypeVar("_T")
_K = TypeVar("_K")


def merged_status(base: Status, statuses: Sequence[Status], figures: Figures) -> Status:
    """The status of the whole gateway. `base` is the supervisor's: it stands alone while no worker answers."""
    whole = msgspec.structs.replace(
        base, totals=figures.totals, models=figures.models, process=figures.process, requests=FlightView(0, 0, 0)
    )
    if not statuses:
        return whole
    first = statuses[0]
    whole.config = msgspec.structs.replace(first.config, since=max(s.config.since for s in statuses))
    whole.keys, whole.usage_store = first.keys, msgspec.structs.replace(first.usage_store)
    whole.usage_store.ok = all_of(s.usage_store.ok for s in statuses)
    whole.store = msgspec.structs.replace(first.store, processes=min(s.store.processes for s in statuses))
    whole.store.up = all_of(s.store.up for s in statuses)
    whole.certificate = min(
        (s.certificate for s in statuses if s.certificate is not None), key=lambda c: c.expires, default=None
    )
    whole.reloads = [_reload(same) for same in grouped((r for s in statuses for r in s.reloads), lambda r: r.what)]
    whole.backends = [
        _backend(same, figures) for same in grouped((b for s in statuses for b in s.backends), lambda b: b.name)
    ]
    for status in statuses:
        whole.requests.in_flight += status.requests.in_flight
        whole.requests.queued += status.requests.queued
        whole.requests.output_tokens += status.requests.output_tokens
    near = sorted((n for s in statuses for n in s.keys_near), key=lambda n: -n.used / n.of)
    whole.keys_near = [same[0] for same in grouped(near, _key)]
    return whole


def grouped(items: Iterable[_T], key: Callable[[_T], _K]) -> list[list[_T]]:
    """Those with the same key together, in the order in which the keys came first."""
    groups: dict[_K, list[_T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def all_of(states: Iterable[bool | None]) -> bool | None:
    """Whether all are well; None where there is nothing to be well."""
    known = [state for state in states if state is not None]
    return all(known) if known else None


def _key(near: NearView) -> str:
    return near.key_id


def _reload(same: Sequence[ReloadView]) -> ReloadView:
    successes = [each.last_success for each in same if each.last_success is not None]
    return ReloadView(
        same[0].what,
        all(each.ok for each in same),
        max(each.at for each in same),
        min(successes) if len(successes) == len(same) else None,
        next((each.error for each in same if each.error is not None), None),
    )


def _backend(same: Sequence[BackendView], figures: Figures) -> BackendView:
    first = same[0]
    return BackendView(
        name=first.name,
        balance=first.balance,
        queued=sum(each.queued for each in same),
        models=first.models,
        endpoints=[_endpoint(e) for e in grouped((e for each in same for e in each.endpoints), lambda e: e.url)],
        cached_tokens=figures.cached[first.name],
        turns=figures.turns[first.name],
    )


def _endpoint(same: Sequence[EndpointView]) -> EndpointView:
    worst = next((each for each in same if not each.up), same[0])
    bounds = [each.max_inflight for each in same if each.max_inflight is not None]
    return EndpointView(
        url=worst.url,
        up=worst.up,
        reason=worst.reason,
        since=worst.since,
        in_flight=sum(each.in_flight for each in same),
        max_inflight=sum(bounds) if len(bounds) == len(same) else None,
        offered=next((each.offered for each in same if each.offered is not None), None),
        missing=sorted({name for each in same for name in each.missing}),
        problem=next((each.problem for each in same if each.problem is not None), None),
        lacks=sorted({path for each in same for path in each.lacks}),
        engine=worst.engine,
        draining=worst.draining,
    )
