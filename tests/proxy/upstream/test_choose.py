"""aiaas.proxy.upstream.choose: which endpoint gets a request."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import pytest

from aiaas.proxy.upstream import affinity
from aiaas.proxy.upstream.affinity import load_bound, number_of, weights
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.choose import choose, choose_by_prefix
from aiaas.proxy.upstream.endpoint import EndpointState
from tests.cputime import cpu_time
from tests.proxy.conftest import config_of, plan_of


def endpoints_of(count: int, **backend: Any) -> tuple[EndpointState, ...]:
    """The endpoints of a backend, `count` of them."""
    urls = [f"http://127.0.0.1:{port}" for port in range(1, count + 1)]
    return BackendState(plan_of(config_of(urls, backend, {})).backends[0], lambda *_: None).endpoints


CHOICES = {
    "the only one": (["up - 9"], 0, True, 0),
    "none is up": (["down - 0", "down - 0"], 0, True, None),
    "no endpoint": ([], 0, True, None),
    "down is never chosen": (["down - 0", "up - 9"], 0, True, 1),
    "down is not chosen though untried": (["down - 0", "up tried 9"], 0, True, 1),
    "least in flight": (["up - 3", "up - 1", "up - 2"], 0, True, 1),
    "ties go round": (["up - 1", "up - 1", "up - 1"], 5, True, 2),
    "ties go round among the least": (["up - 0", "up - 5", "up - 0"], 1, True, 2),
    "untried before less loaded": (["up tried 0", "up - 9"], 0, True, 1),
    "all tried: least in flight": (["up tried 5", "up tried 4"], 0, True, 1),
    "round robin": (["up - 0", "up - 9", "up - 9"], 4, False, 1),
    "round robin skips down": (["up - 0", "down - 0", "up - 9"], 3, False, 2),
    "round robin, untried first": (["up tried 0", "up - 0", "up - 0"], 2, False, 1),
}


@pytest.mark.parametrize(("endpoints", "turn", "by_load", "chosen"), CHOICES.values(), ids=CHOICES)
def test_choose(endpoints: list[str], turn: int, by_load: bool, chosen: int | None) -> None:
    """Up before all, untried before tried, then the least in flight or simply the next in turn."""
    states = endpoints_of(max(1, len(endpoints)))[: len(endpoints)]
    tried = []
    for endpoint, described in zip(states, endpoints, strict=True):
        up, was_tried, inflight = described.split()
        endpoint.up, endpoint.pool.inflight = up == "up", int(inflight)
        if was_tried == "tried":
            tried.append(endpoint)
    result = choose(states, tried, turn, by_load=by_load)
    assert result is (None if chosen is None else states[chosen])


# -- the same prefix to the same endpoint ---------------------------------------------------------------------------


def test_prefix_stays_while_others_go_and_come() -> None:
    """An endpoint's own prefixes come back with it, and no other prefix ever moves."""
    endpoints = endpoints_of(4)
    prefixes = [b"prompt %d" % number for number in range(200)]
    before = [choose_by_prefix(endpoints, (), prefix) for prefix in prefixes]
    assert set(before) == set(endpoints)
    endpoints[1].up = False
    during = [choose_by_prefix(endpoints, (), prefix) for prefix in prefixes]
    assert endpoints[1] not in during
    assert all(now is then for now, then in zip(during, before, strict=True) if then is not endpoints[1])
    endpoints[1].up = True
    assert [choose_by_prefix(endpoints, (), prefix) for prefix in prefixes] == before


def test_prefix_that_everybody_uses_buries_nobody() -> None:
    """One prefix alone keeps each endpoint within its share, and stays where it was while nothing else runs."""
    endpoints = endpoints_of(4)
    own = choose_by_prefix(endpoints, (), b"popular")
    for count in range(200):
        share = load_bound([endpoint.pool.inflight for endpoint in endpoints])
        chosen = choose_by_prefix(endpoints, (), b"popular")
        assert chosen is not None
        assert chosen.pool.inflight <= share
        assert (chosen is own) == (own is not None and own.pool.inflight <= share), count
        chosen.pool.inflight += 1
    assert max(endpoint.pool.inflight for endpoint in endpoints) <= 1.25 * 50 + 2


def test_prefix_next_in_its_order() -> None:
    """A retry goes to the prefix's second endpoint, and so does a request whose first one is full; all full is None."""
    endpoints = endpoints_of(3, max_inflight=2)
    first = choose_by_prefix(endpoints, (), b"x")
    assert first is not None
    second = choose_by_prefix(endpoints, (first,), b"x")
    assert second is not None
    assert second is not first
    first.pool.inflight = 2
    assert choose_by_prefix(endpoints, (), b"x") is second
    assert choose_by_prefix(endpoints, (second,), b"x") not in (first, second)
    assert choose_by_prefix(endpoints, endpoints, b"x") is second
    for endpoint in endpoints:
        endpoint.pool.inflight = 2
    assert choose_by_prefix(endpoints, (), b"x") is None
    for endpoint in endpoints:
        endpoint.bound = 3
    assert choose_by_prefix(endpoints, (), b"x") is first


def test_endpoints_that_are_down_have_no_share() -> None:
    """The load of the other endpoints is divided between them alone."""
    endpoints = endpoints_of(3)
    own = choose_by_prefix(endpoints, (), b"x")
    assert own is not None
    other, down = (endpoint for endpoint in endpoints if endpoint is not own)
    own.pool.inflight, other.pool.inflight = 4, 1
    assert choose_by_prefix(endpoints, (), b"x") is not own
    down.up = False
    assert choose_by_prefix(endpoints, (), b"x") is own


def test_untried_endpoint_over_its_share() -> None:
    """Once all endpoints within the share were tried, the least loaded of the others is asked."""
    endpoints = endpoints_of(3)
    endpoints[0].pool.inflight, endpoints[1].pool.inflight = 20, 19
    assert choose_by_prefix(endpoints, (endpoints[2],), b"x") is endpoints[1]


def test_choice_by_prefix_hashes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many endpoints there are: a URL is hashed when its endpoint is made."""
    endpoints, hashed = endpoints_of(50), []
    monkeypatch.setattr(affinity, "blake2b", lambda text, **size: hashed.append(text) or blake2b(text, **size))
    choose_by_prefix(endpoints, (), b"x")
    choose_by_prefix(endpoints, (endpoints[0],), b"y")
    assert hashed == [b"x", b"y"]


@pytest.mark.parametrize("overloaded", [0, 3, 200])
def test_choice_by_prefix_is_cheap_for_each_endpoint(overloaded: int) -> None:
    """Less than ten looks at its state, however many of a prefix's first endpoints have more than their share.

    To hash prefix and URL for each endpoint took 35 looks.
    """
    endpoints = endpoints_of(200, max_inflight=100)
    for _ in range(overloaded):
        endpoint = choose_by_prefix(endpoints, (), b"x")
        assert endpoint is not None
        endpoint.pool.inflight = 100
    look = cpu_time(lambda: [[endpoint.is_free() for endpoint in endpoints] for _ in range(100)])
    assert cpu_time(lambda: [choose_by_prefix(endpoints, (), b"x") for _ in range(100)]) < 10 * look


def test_choice_by_prefix_among_many_equals_full_order() -> None:
    """The first endpoint of the whole order that can take the request, also far back in it."""
    endpoints = endpoints_of(12, max_inflight=1)
    numbers = [endpoint.number for endpoint in endpoints]
    order = [
        endpoint
        for _, endpoint in sorted(
            zip(weights(number_of(b"x"), numbers), endpoints, strict=True), key=lambda pair: -pair[0]
        )
    ]
    for endpoint in order:
        assert choose_by_prefix(endpoints, (), b"x") is endpoint
        endpoint.pool.inflight = 1
    assert choose_by_prefix(endpoints, (), b"x") is None
    for endpoint in order:
        endpoint.pool.inflight = 0
    for count in range(12):
        assert choose_by_prefix(endpoints, order[:count], b"x") is order[count]
