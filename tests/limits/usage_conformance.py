"""What every store of usage must do. A test module makes a class of it with its own `store` and `other` fixtures:
two connections to the same place, as two processes have them."""

from __future__ import annotations

import threading

from aiaas.limits.usage import UsageKey, UsageStore, UsageSums

TODAY = 20_780
ALICE = UsageKey(TODAY, "4hT0bQ2x", "m")
BOB = UsageKey(TODAY, "Zk2vQ8xL", "m")


def sums(requests: int = 1, *, name: str = "alice", used: int = 100) -> UsageSums:
    """Some usage, each count its own."""
    return UsageSums(name, requests, 10 * requests, 20 * requests, 3 * requests, 4 * requests, used)


class UsageConformance:
    """Behaviours of any store of usage."""

    def test_nothing_is_kept_at_first(self, store: UsageStore) -> None:
        """A place that nobody has written to holds nothing, and that is no error."""
        assert store.read(0) == {}
        assert store.last_used() == {}

    def test_what_was_added_is_there(self, store: UsageStore, other: UsageStore) -> None:
        """For everybody, count by count."""
        store.add("1", {ALICE: sums(2), BOB: sums(name="bob")})
        assert other.read(0) == {ALICE: sums(2), BOB: sums(name="bob")}

    def test_batches_add_up(self, store: UsageStore, other: UsageStore) -> None:
        """From one writer and from several; the later name and the latest use win."""
        store.add("1", {ALICE: sums(2, used=300)})
        other.add("2", {ALICE: sums(3, name="alice2", used=200)})
        store.add("3", {ALICE: sums(1, name="alice3", used=250)})
        assert store.read(0) == {ALICE: sums(6, name="alice3", used=300)}

    def test_days_keys_and_models_are_kept_apart(self, store: UsageStore) -> None:
        """Each has sums of its own, and `read` begins with the day that it is asked for."""
        days = {UsageKey(TODAY + day, "k", model): sums(day + 1) for day in range(3) for model in ("m", "org/m: 1|x")}
        store.add("1", days)
        assert store.read(0) == days
        assert store.read(TODAY + 1) == {key: value for key, value in days.items() if key.day > TODAY}
        assert store.read(TODAY + 3) == {}

    def test_the_last_use_of_a_key_is_the_latest_of_all(self, store: UsageStore) -> None:
        """Over days and models."""
        store.add("1", {ALICE: sums(used=500), ALICE._replace(day=TODAY - 1): sums(used=400)})
        store.add("2", {ALICE._replace(model="n"): sums(used=700), BOB: sums(used=100)})
        assert store.last_used() == {ALICE.key_id: 700, BOB.key_id: 100}

    def test_large_counts_stay_exact(self, store: UsageStore) -> None:
        """A busy year has more LLM tokens than 32 bits hold."""
        store.add("1", {ALICE: sums(10**13)})
        store.add("2", {ALICE: sums(1)})
        assert store.read(0)[ALICE].output_tokens == 20 * 10**13 + 20

    def test_writers_at_once_lose_nothing(self, store: UsageStore, other: UsageStore) -> None:
        """Every batch of every writer is in the sums."""

        def write(to: UsageStore, name: str) -> None:
            for number in range(20):
                to.add(f"{name}{number}", {ALICE: sums()})

        threads = [threading.Thread(target=write, args=(to, name)) for to, name in ((store, "a"), (other, "b"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.read(0) == {ALICE: sums(40)}
