"""aiaas.proxy.admin.merge: several workers as one gateway."""

from __future__ import annotations

from typing import Any

import msgspec

from aiaas.proxy.admin.figures import Figures
from aiaas.proxy.admin.merge import all_of, merged_status
from aiaas.proxy.admin.model import (
    BackendView,
    CachedView,
    CertificateView,
    ConfigView,
    EndpointView,
    FlightView,
    KeysView,
    NearView,
    ProcessView,
    ReloadView,
    Status,
    StoreView,
    TotalsView,
    UsageStoreView,
)

UP = EndpointView("http://a", True, None, 5.0, 2, 8, ["m"], [], None, [], None)


def status(**facts: Any) -> Status:
    """A worker's status."""
    made = Status(
        "1", 9.0, 1.0, 1, 1, False, "0.0.0.0:1", ConfigView("a.yaml", "d", 1.0, []), [], KeysView(True, 3, 0, None),
        StoreView("redis", True, "local", 2), UsageStoreView("file", True), None, [], FlightView(1, 0, 10),
        TotalsView(), [], [], ProcessView(),
    )  # fmt: skip
    return msgspec.structs.replace(made, **facts)


def backend(*endpoints: EndpointView) -> BackendView:
    """A backend with one request in the queue."""
    return BackendView("chat", "auto", 1, ["m"], list(endpoints), CachedView(), {})


def merge(*statuses: Status) -> Status:
    """All of them under a supervisor with two workers."""
    return merged_status(status(workers=2, workers_up=len(statuses)), statuses, Figures([]))


def test_supervisor_stands_alone_while_no_worker_answers() -> None:
    """Nothing is known then but its own facts."""
    found = merge()
    assert (found.workers, found.workers_up, found.requests) == (2, 0, FlightView(0, 0, 0))


def test_fault_of_one_worker_is_the_gateways() -> None:
    """An endpoint that is down for one, a store that is away for one, a file that one could not read."""
    down = msgspec.structs.replace(UP, up=False, reason="refused", since=7.0, in_flight=1, missing=["n"])
    good, bad = ReloadView("keys", True, 8.0, 8.0, None), ReloadView("keys", False, 9.0, 2.0, "broken")
    found = merge(
        status(backends=[backend(UP)], reloads=[good], certificate=CertificateView(90.0, "x")),
        status(
            backends=[backend(down)],
            reloads=[bad],
            store=StoreView("redis", False, "local", 1),
            usage_store=UsageStoreView("file", False),
            certificate=CertificateView(80.0, "x"),
        ),
    )
    (chat,) = found.backends
    (endpoint,) = chat.endpoints
    assert (endpoint.up, endpoint.reason, endpoint.since, endpoint.missing) == (False, "refused", 7.0, ["n"])
    assert (endpoint.in_flight, endpoint.max_inflight, endpoint.offered, chat.queued) == (3, 16, ["m"], 2)
    assert (found.store.up, found.store.processes, found.usage_store.ok) == (False, 1, False)
    assert found.reloads == [ReloadView("keys", False, 9.0, 2.0, "broken")]
    assert found.certificate == CertificateView(80.0, "x")
    assert found.requests == FlightView(2, 0, 20)


def test_key_near_a_limit_is_named_once() -> None:
    """By the worker that has seen the most of it."""
    low, high = NearView("k", "alice", "requests", 8, 10, 1.0), NearView("k", "alice", "requests", 9, 10, 1.0)
    other = NearView("l", "bob", "tokens", 10, 10, 1.0)
    assert merge(status(keys_near=[low]), status(keys_near=[high, other])).keys_near == [other, high]


def test_file_that_a_worker_never_read_has_no_success() -> None:
    """A replaced worker may have begun after the file broke."""
    good, never = ReloadView("tls", True, 8.0, 8.0, None), ReloadView("tls", False, 9.0, None, "no")
    assert merge(status(reloads=[good]), status(reloads=[never])).reloads[0].last_success is None


def test_nothing_known_is_not_a_fault() -> None:
    """The memory store is neither up nor away."""
    assert [all_of(states) for states in ([], [None, None], [None, True], [True, False])] == [None, None, True, False]
