"""aiaas.proxy.upstream.waiter: what a grant is charged, when its prompt counts as read, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.waiter import PREFILL_MOST, Demand, Grant, Waiter
from tests.proxy.conftest import config_of, plan_of


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop to make futures of; it never runs."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


def state(**backend: Any) -> BackendState:
    """A backend with one endpoint."""
    plan = plan_of(config_of(["http://127.0.0.1:1"], {"max_inflight": 8, **backend}, {})).backends[0]
    return BackendState(plan, lambda _endpoint, _up, _reason: None)


def begun(backend: BackendState, key: str, tokens: int) -> Grant:
    """A request that has a slot."""
    grant = backend.begin(backend.endpoints[0], key, tokens)
    assert grant is not None
    return grant


def waits(backend: BackendState, loop: asyncio.AbstractEventLoop, key: str, tokens: int = 100) -> Waiter:
    """A request in the queue."""
    waiter = Waiter(Demand(key, tokens), (), None, loop.create_future())
    assert backend.wait(waiter)
    return waiter


def test_no_bound_stores_nothing() -> None:
    """Where nothing ever waits, no key is charged."""
    backend = state(max_inflight=None)
    assert backend.begin(backend.endpoints[0], "a", 100) is None
    assert backend.endpoints[0].pool.inflight == 1
    assert repr(backend.fair) == "<FairShare: 0 of 100 wait, 0 keys active, 0 known>"


def test_pending_prompts_hold_up_the_next(loop: asyncio.AbstractEventLoop) -> None:
    """With `max_pending_prefill` tokens unread an endpoint is not free; the first byte of one lets the next in."""
    backend = state(max_pending_prefill=1000)
    endpoint = backend.endpoints[0]
    first = begun(backend, "a", 900)
    assert endpoint.is_free()
    second = begun(backend, "a", 1100)
    assert (endpoint.is_free(), endpoint.pending) == (False, 2000)
    waiter = waits(backend, loop, "a")
    first.prompt_read()
    first.prompt_read()
    assert (endpoint.pending, waiter.granted.done()) == (1100, False)
    second.prompt_read()
    assert (endpoint.pending, waiter.granted.result()) == (100, endpoint)


def test_long_prompt_does_not_follow_another(loop: asyncio.AbstractEventLoop) -> None:
    """It waits until the queue's prompts were read, and short ones after it wait with it; one of the reserve does not
    keep it out."""
    backend = state(max_pending_prefill=1000)
    endpoint = backend.endpoints[0]
    first = begun(backend, "a", 900)
    assert [endpoint.is_free(tokens) for tokens in (1100, 1101, 9000)] == [True, False, False]
    second = begun(backend, "a", 100)
    light = waits(backend, loop, "b", 50)
    long, short = waits(backend, loop, "a", 9000), waits(backend, loop, "a", 10)
    assert (light.granted.done(), endpoint.pending_reserved) == (True, 50)
    first.prompt_read()
    assert (long.granted.done(), short.granted.done(), endpoint.pending) == (False, False, 150)
    second.prompt_read()
    assert (long.granted.done(), short.granted.done(), endpoint.pending) == (True, False, 9050)
    assert long.grant is not None
    long.grant.prompt_read()
    assert (short.granted.done(), endpoint.pending) == (True, 60)


def test_short_prompt_passes_long_ones_by_the_reserve(loop: asyncio.AbstractEventLoop) -> None:
    """A key that was idle waits neither for the pending prompts nor for a slot; the others' next request does."""
    backend = state(max_pending_prefill=1000)
    begun(backend, "a", 30_000)
    waiting = waits(backend, loop, "a")
    light = waits(backend, loop, "b")
    assert (waiting.granted.done(), light.granted.done()) == (False, True)
    assert backend.endpoints[0].reserved == 1
    assert light.grant is not None
    light.grant.prompt_read()
    assert (backend.endpoints[0].reserved, backend.endpoints[0].pending_reserved) == (0, 0)
    light.grant.settle(100, 10)
    assert backend.endpoints[0].reserved == 0


def test_reserve_is_bounded(loop: asyncio.AbstractEventLoop) -> None:
    """A quarter of the bound at the most, whatever is configured, and none beside a small bound."""
    backend = state(fair={"reserve": 100})
    for _ in range(8):
        begun(backend, "a", 10)
    waiters = [waits(backend, loop, key) for key in "bcd"]
    assert [waiter.granted.done() for waiter in waiters] == [True, True, False]
    assert backend.endpoints[0].pool.inflight == 10
    small = state(max_inflight=3, fair={"reserve": 100})
    for _ in range(3):
        begun(small, "a", 10)
    assert not waits(small, loop, "b").granted.done()


@pytest.mark.parametrize("read", [True, False], ids=["after its first byte", "before"])
def test_grant_ends_once(read: bool) -> None:
    """Whatever is called, and however often: its tokens are pending no more, and its key is charged once."""
    backend = state()
    stays = begun(backend, "b", 1)
    grant = begun(backend, "a", 100)
    share = backend.fair.charge("a", 0.0)
    if read:
        grant.prompt_read()
    for _ in range(2):
        grant.settle(50, 20)
        grant.prompt_read()
    assert (backend.endpoints[0].pending, share.inflight, share.prompts) == (1, 1, 0)
    assert share.finish == backend.fair.base + 50 + 4 * 20
    stays.settle(0, None)


def test_client_that_leaves_with_its_grant_pays_nothing(loop: asyncio.AbstractEventLoop) -> None:
    """The slot that came in that moment goes on, and so does the charge."""
    backend = state(max_inflight=1)
    first = begun(backend, "a", 10)
    waiter = waits(backend, loop, "b")
    first.settle(10, 10)
    first.endpoint.give_back()
    assert waiter.granted.done()
    backend.leave(waiter)
    assert (backend.endpoints[0].pool.inflight, backend.endpoints[0].pending, backend.fair.active) == (0, 0, 0)


def test_prompt_without_a_first_byte_counts_for_a_while() -> None:
    """By its length, and never for long: an answer that is not a stream comes at its end."""
    backend = state()
    assert begun(backend, "a", 2000).reading_time == pytest.approx(0.1)
    assert begun(backend, "a", 10**6).reading_time == PREFILL_MOST


def test_full_queue_sends_the_newest_of_the_longest_away(loop: asyncio.AbstractEventLoop) -> None:
    """It stays in another backend's queue where it waits in two."""
    backend, other = state(max_inflight=1, queue={"size": 2}), state(max_inflight=1)
    for one in (backend, other):
        begun(one, "a", 10)
    old = waits(backend, loop, "a")
    both = waits(backend, loop, "a")
    assert other.wait(both)
    light = waits(backend, loop, "b")
    assert (old.granted.done(), both.granted.done(), light.granted.done()) == (False, False, False)
    assert (backend.waiting, other.waiting) == (2, 1)
    assert not backend.wait(Waiter(Demand("a"), (), None, loop.create_future()))
    alone = waits(state(max_inflight=1), loop, "x")
    assert (alone.displaced, alone.granted.done()) == (False, True)


def test_settings_of_a_reload_hold_for_those_that_wait(loop: asyncio.AbstractEventLoop) -> None:
    """Size, weight of output, credit, reserve and pending prompts change; nobody that waits is sent away."""
    backend = state(max_inflight=4)
    for _ in range(4):
        begun(backend, "a", 10)
    waiters = [waits(backend, loop, "a") for _ in range(2)]
    fields = {"max_inflight": 8, "fair": {"output_weight": 2, "credit": 5, "reserve": 1}, "max_pending_prefill": 7}
    plan = plan_of(config_of(["http://127.0.0.1:1"], {**fields, "queue": {"size": 1}}, {})).backends[0]
    backend.follow(plan)
    backend.hand_over()
    assert [waiter.granted.done() for waiter in waiters] == [False, False]  # 40 tokens are pending
    endpoint, fair = backend.endpoints[0], backend.fair
    assert (endpoint.reserve, endpoint.most_pending, fair.size) == (1, 7, 1)
    assert (fair.output_weight, fair.credit) == (2, 5)
