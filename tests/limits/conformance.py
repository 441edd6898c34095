"""The tests that every store of limits must pass. A test module makes a class of it with its own `store` fixture.

    class TestMemoryStore(StoreConformance):
        @pytest.fixture
        def store(self) -> Store: ...

Times are `now` = NOW + seconds and `wall` = WALL + seconds; WALL is noon in UTC in the middle of a month.
"""

from __future__ import annotations

import calendar

import pytest

from aiaas.limits.model import UNLIMITED, AdmissionResult, Lease, Limits, Rate, Store

NOW = 5000.25
WALL = float(calendar.timegm((2026, 11, 23, 12, 0, 0)))
MIDNIGHT = 12 * 3600.0
MONTH_END = MIDNIGHT + 7 * 86400.0


async def admit(
    store: Store, limits: Limits, tokens: int = 0, at: float = 0.0, key: str = "alice", user: str = ""
) -> AdmissionResult:
    return await store.admit(key, limits, tokens, NOW + at, WALL + at, user)


async def admitted(store: Store, limits: Limits, tokens: int = 0, at: float = 0.0, key: str = "alice") -> Lease:
    admission = await admit(store, limits, tokens, at, key)
    assert admission.refused_by is None
    assert admission.refusal is None
    assert admission.lease is not None
    return admission.lease


async def refused(store: Store, limits: Limits, tokens: int = 0, at: float = 0.0) -> str:
    admission = await admit(store, limits, tokens, at)
    assert admission.lease is None
    assert admission.refusal is not None
    assert not admission.refusal.allowed
    assert admission.refused_by is not None
    return admission.refused_by


def settle(store: Store, lease: Lease, used: int, at: float = 0.0) -> None:
    store.settle(lease, used, NOW + at, WALL + at)


class StoreConformance:
    """Behaviours of any store."""

    async def test_without_limits_everything_is_admitted(self, store: Store) -> None:
        """A key without limits is let in, without headers about limits."""
        for _ in range(3):
            admission = await admit(store, UNLIMITED, 10**9)
            assert (admission.refused_by, admission.requests, admission.tokens) == (None, None, None)
            assert admission.lease is not None
            settle(store, admission.lease, 5)

    async def test_requests_are_limited_by_burst_and_rate(self, store: Store) -> None:
        """Two at once, the third when one has been worked off."""
        limits = Limits(requests=Rate(6, 2))
        first = await admit(store, limits)
        assert first.requests is not None
        assert (first.requests.allowed, first.requests.limit, first.requests.remaining) == (True, 6, 1)
        await admitted(store, limits)
        admission = await admit(store, limits)
        assert admission.refused_by == "requests"
        assert admission.refusal == admission.requests
        assert admission.refusal is not None
        assert admission.refusal.retry_after == pytest.approx(10.0)
        assert await refused(store, limits, at=9.9) == "requests"
        await admitted(store, limits, at=10.0)

    async def test_cheap_requests_have_a_bucket_of_their_own(self, store: Store) -> None:
        """Neither bucket takes from the other; the answer tells the bucket of its request."""
        limits = Limits(Rate(6, 1), other=Rate(60, 2))
        cheap = Limits(Rate(60, 2), cheap=True, other=Rate(6, 1))
        await admitted(store, limits)
        for remaining in (1, 0):
            admission = await admit(store, cheap)
            assert admission.requests is not None
            assert (admission.requests.allowed, admission.requests.limit, admission.requests.remaining) == (
                True, 60, remaining,
            )  # fmt: skip
        admission = await admit(store, cheap)
        assert admission.refusal is not None
        assert (admission.refused_by, admission.refusal.limit) == ("requests", 60)
        assert admission.refusal.retry_after == pytest.approx(1.0)
        assert await refused(store, limits, at=1.0) == "requests"
        await admitted(store, cheap, at=1.0)
        await admitted(store, limits, at=10.0)

    async def test_cheap_request_that_did_not_run_gives_its_own_back(self, store: Store) -> None:
        """Of the bucket that it was taken from."""
        limits, cheap = Limits(Rate(1, 1)), Limits(Rate(1, 1), cheap=True)
        await admitted(store, limits)
        lease = await admitted(store, cheap)
        store.settle(lease, 0, NOW, WALL, ran=False)
        assert await refused(store, limits) == "requests"
        await admitted(store, cheap)
        looked = await store.look("alice", cheap, NOW)
        assert looked.requests is not None
        assert looked.requests.remaining == 0

    async def test_cheap_requests_and_others_share_the_slots(self, store: Store) -> None:
        """One key has one number of requests in flight."""
        limits, cheap = Limits(concurrent=1), Limits(concurrent=1, cheap=True)
        lease = await admitted(store, cheap)
        assert await refused(store, limits) == "concurrency"
        settle(store, lease, 0)
        await admitted(store, limits)
        assert await refused(store, cheap) == "concurrency"

    async def test_keys_do_not_share(self, store: Store) -> None:
        """One key's requests are not another's."""
        limits = Limits(Rate(1, 1), Rate(10, 10), 10, 10, 1)
        await admitted(store, limits, 10)
        await admitted(store, limits, 10, key="bob")
        assert (await admit(store, limits, 10)).refused_by is not None

    async def test_tokens_are_reserved_and_settled_to_what_was_used(self, store: Store) -> None:
        """The reservation counts until the use is known; then the rest comes back."""
        limits = Limits(tokens=Rate(100, 100))
        lease = await admitted(store, limits, 80)
        assert await refused(store, limits, 21) == "tokens"
        settle(store, lease, 30)
        await admitted(store, limits, 70)
        assert await refused(store, limits, 1) == "tokens"

    async def test_tokens_used_beyond_the_reservation_are_taken(self, store: Store) -> None:
        """Tokens beyond the reservation have to be worked off before the next."""
        limits = Limits(tokens=Rate(60, 100))
        lease = await admitted(store, limits, 50)
        settle(store, lease, 120)
        admission = await admit(store, limits, 10)
        assert admission.refusal is not None
        assert (admission.refused_by, admission.refusal.remaining) == ("tokens", 0)
        assert admission.refusal.retry_after == pytest.approx(30.0)
        assert await refused(store, limits, 10, at=29.9) == "tokens"
        await admitted(store, limits, 10, at=30.0)

    async def test_tokens_used_beyond_are_taken_from_a_key_long_idle(self, store: Store) -> None:
        """A stream may outlast its reservation, and others may have come and gone meanwhile."""
        limits = Limits(tokens=Rate(60, 100))
        lease = await admitted(store, limits, 1)
        for number in range(20):
            await admitted(store, limits, 0, at=500.0, key=f"other {number}")
        settle(store, lease, 101, at=500.0)
        assert await refused(store, limits, 1, at=500.5) == "tokens"
        await admitted(store, limits, 1, at=501.0)

    async def test_a_reservation_larger_than_the_bucket_cannot_wait(self, store: Store) -> None:
        """There is no retry_after where waiting cannot help, whatever else refuses."""
        limits = Limits(requests=Rate(1, 1), tokens=Rate(100, 100))
        await admitted(store, limits, 0)
        admission = await admit(store, limits, 101)
        assert admission.refusal is not None
        assert (admission.refused_by, admission.refusal.retry_after) == ("tokens", None)

    async def test_a_refusal_charges_nothing(self, store: Store) -> None:
        """When one limit refuses, no other is charged, and the answer says the state of the others."""
        limits = Limits(Rate(60, 3), Rate(100, 100), 1000, 1000, 2)
        first = await admitted(store, limits, 60)
        for _ in range(5):
            admission = await admit(store, limits, 50)
            assert admission.refused_by == "tokens"
            assert admission.requests is not None
            assert (admission.requests.allowed, admission.requests.remaining) == (True, 2)
        await admitted(store, limits, 40)
        for _ in range(5):
            assert await refused(store, limits, 0) == "concurrency"
        settle(store, first, 60)
        admission = await admit(store, limits, 0)
        assert admission.requests is not None
        assert (admission.refused_by, admission.requests.remaining) == (None, 0)

    async def test_slots_come_back_when_settled(self, store: Store) -> None:
        """Requests in flight are counted, however long they take."""
        limits = Limits(concurrent=2)
        first = await admitted(store, limits)
        second = await admitted(store, limits)
        assert first.slot
        admission = await admit(store, limits, at=30.0)
        assert admission.refusal is not None
        assert (admission.refused_by, admission.refusal.retry_after, admission.refusal.limit) == ("concurrency", 1.0, 2)
        settle(store, first, 0, at=30.0)
        third = await admitted(store, limits, at=30.0)
        assert await refused(store, limits, at=30.0) == "concurrency"
        for lease in (second, third):
            settle(store, lease, 0, at=30.0)
        for _ in range(2):
            await admitted(store, limits, at=30.0)

    @pytest.mark.parametrize(
        ("limits", "end"),
        [
            pytest.param(Limits(tokens_per_day=100), MIDNIGHT, id="day"),
            pytest.param(Limits(tokens_per_month=100), MONTH_END, id="month"),
        ],
    )
    async def test_a_quota_starts_anew_with_its_utc_window(self, store: Store, limits: Limits, end: float) -> None:
        """A used quota stays used until the day or month ends in UTC."""
        settle(store, await admitted(store, limits, 100), 90)
        await admitted(store, limits, 10)
        admission = await admit(store, limits, 1)
        assert admission.refusal is not None
        assert (admission.refused_by, admission.refusal.limit, admission.refusal.remaining) == ("quota", 100, 0)
        assert admission.refusal.retry_after == pytest.approx(end)
        assert await refused(store, limits, 1, at=end - 1) == "quota"
        await admitted(store, limits, 100, at=end)
        assert await refused(store, limits, 1, at=end) == "quota"

    async def test_a_quota_is_settled_to_what_was_used(self, store: Store) -> None:
        """Used beyond the reservation counts, even past the quota."""
        limits = Limits(tokens_per_day=100)
        lease = await admitted(store, limits, 10)
        settle(store, lease, 150)
        admission = await admit(store, limits, 0)
        assert admission.refusal is not None
        assert admission.refusal.remaining == 0

    async def test_a_reservation_larger_than_the_quota_cannot_wait(self, store: Store) -> None:
        """Tomorrow's quota is the same size."""
        admission = await admit(store, Limits(tokens_per_day=100), 101)
        assert admission.refusal is not None
        assert (admission.refused_by, admission.refusal.retry_after) == ("quota", None)

    async def test_tokens_count_in_the_day_of_their_admission(self, store: Store) -> None:
        """A stream over midnight neither burdens nor relieves the new day."""
        limits = Limits(tokens_per_day=100, tokens_per_month=1000)
        late = await admitted(store, limits, 50, at=MIDNIGHT - 1)
        await admitted(store, limits, 100, at=MIDNIGHT + 1)
        settle(store, late, 10, at=MIDNIGHT + 2)
        assert await refused(store, limits, 1, at=MIDNIGHT + 3) == "quota"
        admission = await admit(store, Limits(tokens_per_month=1000), 891, at=MIDNIGHT + 3)
        assert admission.refused_by == "quota"
        await admitted(store, Limits(tokens_per_month=1000), 890, at=MIDNIGHT + 3)

    async def test_the_longest_wait_is_named(self, store: Store) -> None:
        """Where several limits refuse, a client that waits as told is not refused by the next one."""
        limits = Limits(Rate(60, 1), Rate(60, 60), None, None, 1)
        lease = await admitted(store, limits, 60)
        admission = await admit(store, limits, 60)
        assert admission.refusal is not None
        assert (admission.refused_by, admission.refusal.retry_after) == ("tokens", pytest.approx(60.0))
        settle(store, lease, 60)
        await admitted(store, limits, 60, at=60.0)

    async def test_changed_limits_hold_from_the_next_request_on(self, store: Store) -> None:
        """A reload neither empties nor fills a bucket; a lease is settled under the limits of its admission."""
        slow, fast = Limits(Rate(10, 10), Rate(100, 100)), Limits(Rate(1000, 1000), Rate(1000, 1000))
        lease = await admitted(store, slow, 100)
        assert await refused(store, fast, 1) == "tokens"
        settle(store, lease, 50)
        admission = await admit(store, fast, 500)
        assert admission.refused_by is None
        assert await refused(store, fast, 1) == "tokens"

    async def test_a_slot_limit_that_comes_or_goes_leaks_nothing(self, store: Store) -> None:
        """A lease knows whether it holds a slot."""
        limits = Limits(concurrent=1)
        before = await admitted(store, UNLIMITED)
        held = await admitted(store, limits)
        assert not before.slot
        settle(store, before, 0)
        assert await refused(store, limits) == "concurrency"
        settle(store, held, 0)
        await admitted(store, limits)

    async def test_a_look_says_how_limits_stand_and_charges_nothing(self, store: Store) -> None:
        """As often as asked; a key that never came has full limits."""
        limits = Limits(Rate(60, 10), Rate(600, 600), 1000, None, 1)
        fresh = await store.look("alice", limits, NOW)
        assert (fresh.refused_by, fresh.refusal, fresh.lease) == (None, None, None)
        assert fresh.requests is not None
        assert fresh.tokens is not None
        assert (fresh.requests.remaining, fresh.tokens.remaining) == (10, 600)
        await admitted(store, limits, 100)
        for _ in range(3):
            seen = await store.look("alice", limits, NOW + 2.0)
            assert seen.requests is not None
            assert seen.tokens is not None
            assert (seen.requests.allowed, seen.requests.limit, seen.requests.remaining) == (True, 60, 10)
            assert (seen.tokens.remaining, seen.tokens.reset_after) == (520, pytest.approx(8.0))
        assert (await store.look("alice", UNLIMITED, NOW)).requests is None

    async def test_a_request_that_never_ran_costs_nothing(self, store: Store) -> None:
        """No backend saw the request: its count, its tokens and its slot come back."""
        limits = Limits(Rate(1, 1), Rate(100, 100), 100, 100, 1)
        lease = await admitted(store, limits, 100)
        assert await refused(store, limits, 1) is not None
        store.settle(lease, 0, NOW, WALL, ran=False)
        await admitted(store, limits, 100)

    async def test_only_one_that_never_ran_gives_its_request_back(self, store: Store) -> None:
        """One request for each, also where its key has no other limit; one that ran stays charged."""
        limits = Limits(requests=Rate(1, 3))
        ran, never_ran, _ = [await admitted(store, limits) for _ in range(3)]
        settle(store, ran, 0)
        assert await refused(store, limits) == "requests"
        store.settle(never_ran, 0, NOW, WALL, ran=False)
        await admitted(store, limits)
        assert await refused(store, limits) == "requests"

    async def test_one_that_never_ran_gives_tokens_back_without_a_request(self, store: Store) -> None:
        """Its key has a limit of tokens only."""
        limits = Limits(tokens=Rate(100, 100))
        lease = await admitted(store, limits, 80)
        store.settle(lease, 0, NOW, WALL, ran=False)
        await admitted(store, limits, 100)
        assert await refused(store, limits, 1) == "tokens"

    async def test_a_request_without_a_slot_gives_none_back(self, store: Store) -> None:
        """It was admitted under limits without concurrency, and its tokens are corrected all the same."""
        free, bounded = Limits(tokens=Rate(100, 100)), Limits(tokens=Rate(100, 100), concurrent=1)
        without = await admitted(store, free, 50)
        await admitted(store, bounded, 50)
        settle(store, without, 0)
        assert await refused(store, bounded, 50) == "concurrency"
        await admitted(store, free, 50)
        assert await refused(store, free, 1) == "tokens"

    async def test_closing_is_possible_at_any_time(self, store: Store) -> None:
        """Closing twice is possible too."""
        await store.close()
        await store.close()
