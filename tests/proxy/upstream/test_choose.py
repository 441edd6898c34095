"""aiaas.proxy.upstream.choose: which endpoint gets a request."""

from __future__ import annotations

from typing import Any

import pytest

from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.choose import choose
from aiaas.proxy.upstream.endpoint import EndpointState
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
