"""The memory store: the conformance suite, and its own guarantees."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.limits.memory import MemoryStore
from aiaas.limits.model import Lease, Limits, Rate
from aiaas.limits.state import State
from tests.limits.conformance import MIDNIGHT, NOW, WALL, StoreConformance, admit, admitted, refused, settle
from tests.limits.user_conformance import UserConformance


class TestMemoryStore(StoreConformance, UserConformance):
    """The suite that all stores share."""

    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never suspends."""
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    return done.value.value


def test_its_methods_never_suspend() -> None:
    """The request path pays no trip through the event loop."""
    store = MemoryStore()
    admission = run(store.admit("a", Limits(Rate(10, 10), None, 100, None, 1), 5, NOW, WALL))
    store.settle(admission.lease, 3, NOW, WALL)
    assert run(store.close()) is None


async def test_idle_keys_are_forgotten() -> None:
    """After a flood of keys has worked itself off, as many requests of others clear it away."""
    store = MemoryStore()
    limits = Limits(requests=Rate(60, 10))
    for number in range(1000):
        await admitted(store, limits, key=f"flood {number}")
    assert len(store) == 1000
    for number in range(1000):
        await admitted(store, limits, key="alice", at=2.0 + number)
    assert len(store) == 1


async def test_a_flood_of_passing_keys_stays_bounded() -> None:
    """A million addresses, one request each, never hold more than those of the time a bucket needs to fill, twice."""
    store = MemoryStore()
    limits = Limits(requests=Rate(60, 10))
    for number in range(3000):
        await admitted(store, limits, key=f"passing {number}", at=number / 100)
        assert len(store) <= 250


@pytest.mark.parametrize(
    ("limits", "until"),
    [
        pytest.param(Limits(concurrent=1), None, id="a slot"),
        pytest.param(Limits(tokens_per_day=10), MIDNIGHT, id="a quota"),
        pytest.param(Limits(requests=Rate(1, 1)), 60.0, id="a bucket not full"),
    ],
)
async def test_record_that_still_counts_is_not_forgotten(limits: Limits, until: float | None) -> None:
    """A record lives until it would decide as a new one does."""
    store = MemoryStore()
    await admitted(store, limits, 10)
    before = until - 1 if until else 10 * 86400.0
    for _ in range(5):
        await admitted(store, Limits(requests=Rate(6000, 100)), key="other", at=before)
    assert (await admit(store, limits, 10, at=before)).refused_by is not None
    if until is not None:
        for _ in range(3):
            await admitted(store, Limits(requests=Rate(6000, 100)), key="other", at=until)
        assert len(store) == 1


async def test_idle_users_are_forgotten_and_then_their_key() -> None:
    """A record with users is kept as long as one of them counts, and no longer."""
    store = MemoryStore()
    limits = Limits(user=Limits(Rate(60, 1)))
    for number in range(100):
        await admit(store, limits, at=number, user=str(number))
    users = store._states["alice"].users
    assert users is not None
    assert 1 <= len(users) < 5
    for number in range(20):
        await admit(store, Limits(Rate(60_000, 1)), at=200.0 + number, key=f"k{number}")
    assert "alice" not in store._states


async def test_keys_without_limits_leave_no_record_behind() -> None:
    """Unlimited keys cost no memory."""
    store = MemoryStore()
    for number in range(100):
        settle(store, await admitted(store, Limits(), 7, key=str(number)), 9)
    assert len(store) <= 1


def test_its_repr_tells_its_size() -> None:
    """And shows no key."""
    assert repr(MemoryStore()) == "MemoryStore(0 keys)"


_STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 120), st.booleans(), st.floats(0, 20)), max_size=60)


@given(_STEPS)
def test_quotas_and_slots_are_exact_in_any_order(steps: list[tuple[str, int, bool, float]]) -> None:
    """Admitted tokens never exceed the quota, slots never their number, and settling all leaves all slots free."""
    store = MemoryStore()
    limits = Limits(None, None, 500, None, 3)
    held: dict[str, list[Lease]] = {"a": [], "b": [], "c": []}
    reserved = dict.fromkeys("abc", 0)
    at = 0.0
    for key, tokens, settles, gap in steps:
        at += gap
        if settles and held[key]:
            lease = held[key].pop()
            used = min(tokens, lease.reserved_tokens)
            store.settle(lease, used, NOW + at, WALL + at)
            reserved[key] += used - lease.reserved_tokens
            continue
        admission = run(store.admit(key, limits, tokens, NOW + at, WALL + at))
        fits = reserved[key] + tokens <= 500 and len(held[key]) < 3
        assert (admission.refused_by is None) is fits
        if fits:
            held[key].append(admission.lease)
            reserved[key] += tokens
    for key, leases in held.items():
        for lease in leases:
            store.settle(lease, 0, NOW + at, WALL + at)
        for _ in range(3):
            assert run(store.admit(key, Limits(concurrent=3), 0, NOW + at, WALL + at)).refused_by is None


_JUMPS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 400), st.booleans(), st.floats(-1e5, 1e5), st.floats(-4e6, 4e6)),
    max_size=40,
)


@given(_JUMPS)
def test_clocks_that_jump_break_nothing(steps: list[tuple[str, int, bool, float, float]]) -> None:
    """Whatever the order of both clocks: every wait is a valid time, slots stay exact, and once the clocks go on from
    the latest moment that was seen, a key that was let alone for a month is as good as new."""
    store, limits = MemoryStore(), Limits(Rate(60, 10), Rate(600, 600), 1000, 2000, 3)
    held: dict[str, list[Lease]] = {"a": [], "b": []}
    latest_now, latest_wall = NOW, WALL
    for key, tokens, settles, at, wall in steps:
        latest_now, latest_wall = max(latest_now, NOW + at), max(latest_wall, WALL + wall)
        if settles and held[key]:
            store.settle(held[key].pop(), tokens, NOW + at, WALL + wall)
            continue
        admission = run(store.admit(key, limits, tokens, NOW + at, WALL + wall))
        if admission.lease is not None:
            held[key].append(admission.lease)
            assert len(held[key]) <= 3
        elif (refusal := admission.refusal) is not None and refusal.retry_after is not None:
            assert 0 <= refusal.retry_after < 4e6
            assert refusal.remaining >= 0
    for key, leases in held.items():
        for lease in leases:
            store.settle(lease, 0, latest_now, latest_wall)
        later = 62 * 86400.0
        for _ in range(3):
            assert run(store.admit(key, limits, 100, latest_now + later, latest_wall + later)).refused_by is None


async def test_a_key_that_begins_anew_keeps_its_slots() -> None:
    """Running requests go on, whatever else is known of the key by now."""
    store, limits = MemoryStore(), Limits(Rate(1, 5), concurrent=1)
    lease = await admitted(store, limits)
    store.begin("alice", State())
    assert await refused(store, limits) == "concurrency"
    settle(store, lease, 0)
    admission = await admit(store, limits)
    assert admission.requests is not None
    assert admission.requests.remaining == 4


async def test_a_slot_that_is_not_known_is_given_back_to_nobody() -> None:
    """The slot was taken in another store: there is no more room afterwards than before."""
    store, limits = MemoryStore(), Limits(concurrent=1)
    for _ in range(2):
        settle(store, Lease("alice", limits, 0, True, WALL), 0)
    await admitted(store, limits)
    assert await refused(store, limits) == "concurrency"


async def test_a_key_may_begin_unknown() -> None:
    """None of its requests runs here then."""
    store, limits = MemoryStore(), Limits(Rate(1, 5), concurrent=1)
    state = State()
    state.requests = NOW + 4 * 60.0
    store.begin("alice", state)
    await admitted(store, limits)
    assert await refused(store, limits) == "requests"
