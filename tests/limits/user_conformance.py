"""The tests of limits for each user of a key, which every store must pass, as those of `conformance.py`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aiaas.limits.model import AdmissionResult, Lease, Limits, Rate, Store
from aiaas.limits.state import MOST_USERS
from tests.limits.conformance import MIDNIGHT, NOW, WALL, admit


def outcome(admission: AdmissionResult) -> tuple[str | None, bool]:
    return admission.refused_by, admission.of_user


async def by(store: Store, user: str, limits: Limits, tokens: int = 0, at: float = 0.0) -> tuple[str | None, bool]:
    """The limit that refuses a request of the user, and whether it is the user's."""
    return outcome(await admit(store, limits, tokens, at, user=user))


async def lease_of(store: Store, user: str, limits: Limits, tokens: int = 0, at: float = 0.0) -> Lease:
    lease = (await admit(store, limits, tokens, at, user=user)).lease
    assert lease is not None
    return lease


LET_IN = (None, False)


class UserConformance:
    """Behaviours of any store."""

    async def test_limit_of_a_user_refuses_that_user_alone(self, store: Store) -> None:
        """Others are served until the key's own limit is reached, by all of them together."""
        limits = Limits(Rate(6, 3), user=Limits(Rate(6, 1)))
        assert await by(store, "ann", limits) == LET_IN
        assert await by(store, "ann", limits) == ("requests", True)
        assert await by(store, "bob", limits) == LET_IN
        assert await by(store, "", limits) == LET_IN
        assert await by(store, "cat", limits) == ("requests", False)
        assert await by(store, "cat", limits, at=10.0) == LET_IN
        assert await by(store, "ann", limits, at=20.0) == LET_IN

    async def test_refusal_by_the_user_takes_nothing_from_the_key(self, store: Store) -> None:
        """However often it comes: requests, tokens, slots and quotas are there for the others."""
        limits = Limits(Rate(60, 9), Rate(100, 100), 100, 100, 9, user=Limits(tokens=Rate(10, 10)))
        assert await by(store, "ann", limits, 10) == LET_IN
        for _ in range(20):
            assert await by(store, "ann", limits, 10) == ("tokens", True)
        key = replace(limits, user=None)
        looked = await store.look("alice", key, NOW)
        assert (looked.requests and looked.requests.remaining, looked.tokens and looked.tokens.remaining) == (8, 90)
        assert outcome(await admit(store, key, 90)) == LET_IN

    async def test_refusal_by_the_key_takes_nothing_from_the_user(self, store: Store) -> None:
        """Its bucket, slot and quota are as before."""
        limits = Limits(concurrent=1, user=Limits(Rate(60, 2), Rate(100, 100), 50, 50, 2))
        lease = await lease_of(store, "bob", limits, 40)
        for _ in range(20):
            assert await by(store, "ann", limits, 50) == ("concurrency", False)
        looked = await store.look("alice", limits, NOW, "ann")
        assert (looked.requests and looked.requests.remaining, looked.tokens and looked.tokens.remaining) == (2, 100)
        store.settle(lease, 40, NOW, WALL)
        assert await by(store, "ann", limits, 50) == LET_IN

    async def test_settlement_gives_back_to_user_and_key(self, store: Store) -> None:
        """The slots of both, and the tokens that were not used; more than was reserved is taken from both."""
        limits = Limits(None, Rate(100, 100), 100, concurrent=1, user=Limits(None, Rate(90, 90), 90, concurrent=1))
        lease = await lease_of(store, "ann", limits, 90)
        assert (await admit(store, limits, 1, user="ann")).lease is None
        store.settle(lease, 20, NOW, WALL)
        lease = await lease_of(store, "ann", limits, 70)
        assert await by(store, "bob", limits, 10) == ("concurrency", False)
        store.settle(lease, 75, NOW, WALL)
        looked = await store.look("alice", limits, NOW, "ann")
        assert looked.tokens is not None
        assert (looked.tokens.limit, looked.tokens.remaining, looked.tokens.allowed) == (90, 0, False)
        looked = await store.look("alice", limits, NOW, "bob")
        assert looked.tokens is not None
        assert (looked.tokens.limit, looked.tokens.remaining) == (100, 5)
        assert await by(store, "bob", limits, 5) == LET_IN

    async def test_request_that_did_not_run_costs_the_user_nothing(self, store: Store) -> None:
        """Neither a request, nor tokens, nor its place."""
        limits = Limits(user=Limits(Rate(1, 1), Rate(10, 10), concurrent=1))
        for _ in range(3):
            lease = await lease_of(store, "ann", limits, 10)
            store.settle(lease, 0, NOW, WALL, ran=False)

    async def test_headers_tell_the_tightest_limit(self, store: Store) -> None:
        """By what is left, for requests and tokens each."""
        limits = Limits(Rate(60, 3), Rate(500, 500), user=Limits(Rate(6, 2), Rate(900, 900)))
        first = await admit(store, limits, 100, user="ann")
        assert first.requests is not None
        assert first.tokens is not None
        assert (first.requests.limit, first.requests.remaining) == (6, 1)
        assert (first.tokens.limit, first.tokens.remaining) == (500, 400)
        await admit(store, limits, 100, user="bob")
        third = await admit(store, limits, 100, user="cat")
        assert third.requests is not None
        assert (third.requests.limit, third.requests.remaining) == (60, 0)

    async def test_the_longer_wait_is_named_of_user_and_key(self, store: Store) -> None:
        """After the shorter one the client would be refused again; a reservation that never fits comes first."""
        limits = Limits(Rate(6, 1), Rate(100, 100), user=Limits(Rate(1, 1), Rate(50, 50)))
        assert await by(store, "ann", limits) == LET_IN
        refused = await admit(store, limits, user="ann")
        assert outcome(refused) == ("requests", True)
        assert refused.refusal is not None
        assert refused.refusal.retry_after == pytest.approx(60.0)
        other = await admit(store, limits, user="bob")
        assert outcome(other) == ("requests", False)
        assert other.refusal is not None
        assert other.refusal.retry_after == pytest.approx(10.0)
        never = await admit(store, limits, 60, at=600.0, user="ann")
        assert outcome(never) == ("tokens", True)
        assert never.refusal is not None
        assert (never.refusal.limit, never.refusal.retry_after) == (50, None)

    async def test_quota_of_a_user_is_of_its_day(self, store: Store) -> None:
        """Another user has its own, and the next day a new one."""
        limits = Limits(tokens_per_day=1000, user=Limits(tokens_per_day=10, tokens_per_month=15))
        assert await by(store, "ann", limits, 10) == LET_IN
        assert await by(store, "ann", limits, 1) == ("quota", True)
        assert await by(store, "bob", limits, 10) == LET_IN
        assert await by(store, "ann", limits, 6, at=MIDNIGHT) == ("quota", True)
        assert await by(store, "ann", limits, 5, at=MIDNIGHT) == LET_IN

    async def test_cheap_requests_of_a_user_have_their_own_bucket(self, store: Store) -> None:
        """As those of the key."""
        limits = Limits(user=Limits(Rate(6, 1), other=Rate(60, 2)))
        cheap = Limits(cheap=True, user=Limits(Rate(60, 2), cheap=True, other=Rate(6, 1)))
        assert [await by(store, "ann", cheap) for _ in range(3)] == [LET_IN, LET_IN, ("requests", True)]
        assert [await by(store, "ann", limits) for _ in range(2)] == [LET_IN, ("requests", True)]
        assert await by(store, "ann", cheap, at=1.0) == LET_IN

    async def test_limits_on_users_may_come_and_go(self, store: Store) -> None:
        """A reload: the key's counts go on, and a request settles under the limits of its admission."""
        with_users, without = Limits(concurrent=3, user=Limits(concurrent=1)), Limits(concurrent=3)
        first = await lease_of(store, "ann", without)
        second = await lease_of(store, "ann", with_users)
        assert await by(store, "ann", with_users) == ("concurrency", True)
        assert await by(store, "ann", without) == LET_IN
        assert await by(store, "bob", with_users) == ("concurrency", False)
        store.settle(first, 0, NOW, WALL)
        assert await by(store, "ann", with_users) == ("concurrency", True)
        store.settle(second, 0, NOW, WALL)
        assert await by(store, "ann", with_users) == LET_IN

    async def test_least_recently_used_user_begins_anew(self, store: Store) -> None:
        """After MOST_USERS others; the key's own limit holds, and a user who came again meanwhile is known."""
        limits = Limits(Rate(1, MOST_USERS + 2), user=Limits(tokens_per_day=1))
        for number, user in enumerate(("first", "second", *range(MOST_USERS - 2))):
            assert await by(store, str(user), limits, 1, at=number / 1000) == LET_IN
        at = MOST_USERS / 1000
        assert await by(store, "first", limits, at=at) == LET_IN
        assert await by(store, "another", limits, 1, at=at + 0.1) == LET_IN
        assert await by(store, "first", limits, 1, at=at + 0.2) == ("quota", True)
        assert await by(store, "second", limits, 1, at=at + 0.2) == ("requests", False)
        of_user = replace(limits, requests=None)
        assert await by(store, "0", of_user, 1, at=at + 0.3) == ("quota", True)
        assert await by(store, "second", of_user, 1, at=at + 0.4) == LET_IN
        assert await by(store, "0", of_user, 1, at=at + 0.5) == LET_IN

    async def test_users_of_two_keys_are_not_the_same(self, store: Store) -> None:
        """Also where they have one name."""
        limits = Limits(user=Limits(Rate(1, 1)))
        for key in ("alice", "bob"):
            assert outcome(await admit(store, limits, key=key, user="ann")) == LET_IN
