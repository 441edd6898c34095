"""The tests that every store of usage must pass. A test module makes a class of it with its own `store` and `other`
fixtures: two connections to the same place, as two processes have them."""

from __future__ import annotations

import asyncio

from aiaas.limits.usage import MOST_USERS_A_DAY, OTHER_USERS, UsageKey, UsageStore, UsageSums

TODAY = 20_780
ALICE = UsageKey(TODAY, "4hT0bQ2x", "m")
BOB = UsageKey(TODAY, "Zk2vQ8xL", "m")
ANN = UsageKey(TODAY, "4hT0bQ2x", "", "0123456789abcdef")


def sums(requests: int = 1, *, name: str = "alice", used: int = 100) -> UsageSums:
    """Some usage, each count its own."""
    return UsageSums(name, requests, 10 * requests, 20 * requests, 3 * requests, 4 * requests, used)


class UsageConformance:
    """Behaviours of any store of usage."""

    async def test_nothing_is_kept_at_first(self, store: UsageStore) -> None:
        """A place that nobody has written to is empty, without an error."""
        assert await store.read(0) == {}
        assert await store.last_used() == {}

    async def test_added_usage_is_there(self, store: UsageStore, other: UsageStore) -> None:
        """For everybody, count by count."""
        await store.add("1", {ALICE: sums(2), BOB: sums(name="bob")})
        assert await other.read(0) == {ALICE: sums(2), BOB: sums(name="bob")}

    async def test_batches_add_up(self, store: UsageStore, other: UsageStore) -> None:
        """From one writer and from several; the later name and the latest use win."""
        await store.add("1", {ALICE: sums(2, used=300)})
        await other.add("2", {ALICE: sums(3, name="alice2", used=200)})
        await store.add("3", {ALICE: sums(1, name="alice3", used=250)})
        assert await store.read(0) == {ALICE: sums(6, name="alice3", used=300)}

    async def test_days_keys_and_models_are_kept_apart(self, store: UsageStore) -> None:
        """Each has sums of its own, and `read` begins with the day that it is asked for."""
        days = {UsageKey(TODAY + day, "k", model): sums(day + 1) for day in range(3) for model in ("m", "org/m: 1|x")}
        await store.add("1", days)
        assert await store.read(0) == days
        assert await store.read(TODAY + 1) == {key: value for key, value in days.items() if key.day > TODAY}
        assert await store.read(TODAY + 3) == {}

    async def test_the_last_use_of_a_key_is_the_latest_of_all(self, store: UsageStore) -> None:
        """Over days and models."""
        await store.add("1", {ALICE: sums(used=500), ALICE._replace(day=TODAY - 1): sums(used=400)})
        await store.add("2", {ALICE._replace(model="n"): sums(used=700), BOB: sums(used=100)})
        assert await store.last_used() == {ALICE.key_id: 700, BOB.key_id: 100}

    async def test_users_have_sums_beside_those_of_models(self, store: UsageStore, other: UsageStore) -> None:
        """Each kind is read alone, and adds up alone."""
        await store.add("1", {ALICE: sums(3), ANN: sums(2), ANN._replace(user="-"): sums(1)})
        await other.add("2", {ALICE: sums(1), ANN: sums(1), ANN._replace(day=TODAY + 1): sums(5)})
        assert await store.read(0) == {ALICE: sums(4)}
        users = {ANN: sums(3), ANN._replace(user="-"): sums(1), ANN._replace(day=TODAY + 1): sums(5)}
        assert await store.read(0, by_user=True) == users
        assert await store.read(TODAY + 1, by_user=True) == {ANN._replace(day=TODAY + 1): sums(5)}

    async def test_no_usage_by_user_is_kept_at_first(self, store: UsageStore) -> None:
        """Nor where there is usage by model."""
        assert await store.read(0, by_user=True) == {}
        await store.add("1", {ALICE: sums()})
        assert await store.read(0, by_user=True) == {}

    async def test_users_beyond_the_most_share_one_sum(self, store: UsageStore) -> None:
        """Of a key and day, whichever came first; known ones go on, and so do other keys and days."""

        def user(number: int) -> UsageKey:
            return ANN._replace(user=f"{number:016x}")

        await store.add("1", {user(number): sums() for number in range(MOST_USERS_A_DAY - 1)})
        late = {user(number): sums() for number in range(MOST_USERS_A_DAY - 2, MOST_USERS_A_DAY + 3)}
        others = {ANN._replace(day=TODAY + 1): sums(), BOB._replace(model="", user="ann"): sums(name="bob")}
        await store.add("2", late | others)
        kept = await store.read(0, by_user=True)
        assert len(kept) == MOST_USERS_A_DAY + 1 + len(others)
        assert kept[ANN._replace(user=OTHER_USERS)] == sums(3)
        assert kept[user(MOST_USERS_A_DAY - 2)] == sums(2)
        assert kept[user(MOST_USERS_A_DAY - 1)] == sums(1)
        assert {at: kept[at] for at in others} == others

    async def test_large_counts_stay_exact(self, store: UsageStore) -> None:
        """A busy year has more LLM tokens than 32 bits hold."""
        await store.add("1", {ALICE: sums(10**13)})
        await store.add("2", {ALICE: sums(1)})
        assert (await store.read(0))[ALICE].output_tokens == 20 * 10**13 + 20

    async def test_writers_at_once_lose_nothing(self, store: UsageStore, other: UsageStore) -> None:
        """Every batch of every writer is in the sums."""

        async def write(to: UsageStore, name: str) -> None:
            for number in range(20):
                await to.add(f"{name}{number}", {ALICE: sums()})

        await asyncio.gather(write(store, "a"), write(other, "b"))
        assert await store.read(0) == {ALICE: sums(40)}
