"""From a presented key to a principal: compared once, without delaying others, and without keeping secrets."""

import asyncio
import random
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aiaas.keys import verifier as verifier_module
from aiaas.keys.changes import rotated
from aiaas.keys.format import NewKey, make_key, tag_of
from aiaas.keys.hashing import digest_key, hash_key
from aiaas.keys.model import KeyLimits, KeyRecord, Principal, Rejection
from aiaas.keys.ring import KeyRing
from aiaas.keys.throttle import BURST
from aiaas.keys.verifier import (
    HASH_WORKERS,
    MAX_REFUSED,
    MAX_WAITING,
    TooManyWrongKeys,
    Verifier,
    VerifierBusy,
)

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW = START.timestamp()
HOME, AWAY = "192.0.2.1", "192.0.2.2"  # addresses of clients


def make(name: str = "alice", *, tagged: bool = True) -> tuple[NewKey, KeyRecord]:
    """A key that has to be hashed slowly. Without a tag every key with its id has to be, which a forger can use."""
    key = make_key("sk-", secrets.token_bytes)
    tag = tag_of(key.text) if tagged else None
    return key, KeyRecord(id=key.key_id, name=name, hash="hash of " + key.text, tag=tag, created=START)


def made_by_us(name: str = "alice") -> tuple[NewKey, KeyRecord]:
    """A key as `keys create` makes it, which is compared at once."""
    key = make_key("sk-", secrets.token_bytes)
    return key, KeyRecord(id=key.key_id, name=name, hash=digest_key(key.text), created=START)


def forge(key: NewKey, seed: int) -> str:
    return make_key("sk-", random.Random(seed).randbytes, key.key_id).text


class Hasher:
    """Stands in for the slow hash: counts, and can be held. (The real one has its own tests.)"""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.running = 0
        self.most = 0
        self._lock = threading.Lock()

    def __call__(self, key: str, stored: str) -> bool:
        with self._lock:
            self.calls.append(key)
            self.running += 1
            self.most = max(self.most, self.running)
        self.gate.wait(10)
        with self._lock:
            self.running -= 1
        return stored == "hash of " + key


@pytest.fixture
def hasher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hasher]:
    stand_in = Hasher()
    monkeypatch.setattr(verifier_module, "verify_key", stand_in)
    yield stand_in
    stand_in.gate.set()


def is_known(answer: object) -> bool:
    return isinstance(answer, Principal)


def is_rejected(answer: object) -> bool:
    return isinstance(answer, Rejection)


async def held(hasher: Hasher, count: int) -> None:
    """Wait until `count` hashes run."""
    while hasher.running < count:
        await asyncio.sleep(0.001)


async def test_a_key_is_hashed_once_and_then_looked_up() -> None:
    """With the real hash: unknown to `lookup`, verified, and from then on known without a thread."""
    key, record = make()
    record = replace(record, hash=hash_key(key.text), models=("m",))
    verifier = Verifier(KeyRing.from_records([record]))
    assert verifier.lookup(key.text.encode(), NOW) is None
    principal = await verifier.verify(key.text, NOW, HOME)
    assert isinstance(principal, Principal)
    assert (principal.name, principal.models) == ("alice", {"m"})
    assert verifier.lookup(key.text.encode(), NOW) is principal
    assert verifier.lookup(key.text.encode() + b"x", NOW) is None
    verifier.close()


async def test_junk_costs_no_hash(hasher: Hasher) -> None:
    """Typos, unknown ids, empty, huge and non-ASCII texts are refused without a thread."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    for text in ("", "sk-", key.text[:-1], "x" * 10_000, "schlüssel", make()[0].text, key.text + " "):
        assert isinstance(await verifier.verify(text, NOW, HOME), Rejection)
    assert hasher.calls == []


async def test_the_same_key_at_once_is_hashed_once(hasher: Hasher) -> None:
    """Fifty requests with one new key wait for one hash."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    principals = await asyncio.gather(*(verifier.verify(key.text, NOW, HOME) for _ in range(50)))
    assert all(map(is_known, principals))
    assert hasher.calls == [key.text]


async def test_a_wrong_key_is_remembered(hasher: Hasher) -> None:
    """The second time it costs no hash; after a swap of the ring it is checked again."""
    key, record = make(tagged=False)
    wrong = forge(key, 1)
    verifier = Verifier(KeyRing.from_records([record]))
    assert is_rejected(await verifier.verify(wrong, NOW, HOME))
    assert is_rejected(await verifier.verify(wrong, NOW, HOME))
    assert len(hasher.calls) == 1
    verifier.swap(KeyRing.from_records([record]))
    assert is_rejected(await verifier.verify(wrong, NOW, HOME))
    assert len(hasher.calls) == 2


async def test_the_memory_of_wrong_keys_is_bounded(hasher: Hasher) -> None:
    """However many wrong keys come, the number of remembered digests is bounded."""
    key, record = make(tagged=False)
    verifier = Verifier(KeyRing.from_records([record]))
    for number in range(MAX_REFUSED + 50):
        verifier._remember_refused(number.to_bytes(16), Rejection("malformed"))
    assert len(verifier._refused) == MAX_REFUSED
    assert is_rejected(await verifier.verify(forge(key, 1), NOW, HOME))
    assert len(verifier._refused) == MAX_REFUSED


async def test_at_most_two_hashes_run_at_once(hasher: Hasher) -> None:
    """Thirty new keys use two threads."""
    made = [make(f"u{n}") for n in range(30)]
    verifier = Verifier(KeyRing.from_records(record for _, record in made))
    hasher.gate.clear()
    tasks = [asyncio.ensure_future(verifier.verify(key.text, NOW, HOME)) for key, _ in made]
    await held(hasher, HASH_WORKERS)
    hasher.gate.set()
    assert all(map(is_known, await asyncio.gather(*tasks)))
    assert hasher.most == HASH_WORKERS


async def test_a_flood_never_delays_a_verified_key(hasher: Hasher) -> None:
    """With every thread stuck and the queue full, a key that was verified before is answered at once."""
    key, record = make(tagged=False)
    verifier = Verifier(KeyRing.from_records([record]))
    assert is_known(await verifier.verify(key.text, NOW, HOME))
    hasher.gate.clear()
    flood = [asyncio.ensure_future(verifier.verify(forge(key, n), NOW, f"10.0.0.{n}")) for n in range(200)]
    await held(hasher, HASH_WORKERS)
    assert verifier.lookup(key.text.encode(), NOW) is not None
    assert is_known(await asyncio.wait_for(verifier.verify(key.text, NOW, HOME), 1))
    hasher.gate.set()
    assert all(map(is_rejected, await asyncio.gather(*flood)))


async def test_generated_keys_never_wait(hasher: Hasher) -> None:
    """A thousand that this process has never seen are known at once, with the queue full and no thread free."""
    attacked, record = make(tagged=False)
    made = [made_by_us(f"u{n}") for n in range(1000)]
    verifier = Verifier(KeyRing.from_records([record, *(each for _, each in made)]))
    hasher.gate.clear()
    sources = MAX_WAITING // 20
    flood = [
        asyncio.ensure_future(verifier.verify(forge(attacked, n), NOW, f"10.0.{n % sources}.1")) for n in range(2000)
    ]
    await held(hasher, HASH_WORKERS)
    for key, each in made:
        verification = verifier.verify(key.text, NOW, HOME)
        with pytest.raises(StopIteration) as done:
            verification.send(None)
        assert is_known(done.value.value)
        assert done.value.value.key_id == each.id
        assert verifier.lookup(key.text.encode(), NOW) is done.value.value
    hasher.gate.set()
    await asyncio.gather(*flood, return_exceptions=True)


async def test_a_flood_from_one_source_does_not_push_others_out(hasher: Hasher) -> None:
    """The flood gets half of the places and no more; another source is served in its turn, before the flood's."""
    (attacked, record), (key, other) = make(tagged=False), make("bob")
    verifier = Verifier(KeyRing.from_records([record, other]))
    hasher.gate.clear()
    flood = [asyncio.ensure_future(verifier.verify(forge(attacked, n), NOW, AWAY)) for n in range(MAX_WAITING)]
    await held(hasher, HASH_WORKERS)
    first = asyncio.ensure_future(verifier.verify(key.text, NOW, HOME))
    await asyncio.sleep(0)
    hasher.gate.set()
    assert is_known(await first)
    answers = await asyncio.gather(*flood, return_exceptions=True)
    assert hasher.calls.index(key.text) <= HASH_WORKERS + 1
    assert sum(isinstance(answer, VerifierBusy) for answer in answers) == MAX_WAITING - MAX_WAITING // 2 - HASH_WORKERS


async def test_floods_from_many_sources_leave_places_free(hasher: Hasher) -> None:
    """A source may hold as many places as are free; the queue itself is bounded."""
    (attacked, record), (key, other) = make(tagged=False), make("bob")
    verifier = Verifier(KeyRing.from_records([record, other]), patience=60)
    hasher.gate.clear()
    flood = [
        asyncio.ensure_future(verifier.verify(forge(attacked, n), NOW, f"10.0.0.{n % 9}"))
        for n in range(2 * MAX_WAITING)
    ]
    await held(hasher, HASH_WORKERS)
    while sum(task.done() for task in flood) < len(flood) - MAX_WAITING:
        await asyncio.sleep(0)
    assert verifier._waiting <= MAX_WAITING * 9 // 10 + 9
    first = asyncio.ensure_future(verifier.verify(key.text, NOW, HOME))
    await asyncio.sleep(0)
    hasher.gate.set()
    assert is_known(await first)
    assert hasher.calls.index(key.text) <= HASH_WORKERS + 9 + 1
    await asyncio.gather(*flood, return_exceptions=True)


async def test_sources_take_turns(hasher: Hasher) -> None:
    """Of two that wait with as many keys, the one that came first is not served to its end first, nor last."""
    made = [make(f"u{n}") for n in range(HASH_WORKERS + 20)]
    verifier = Verifier(KeyRing.from_records(record for _, record in made), patience=60)
    hasher.gate.clear()
    addresses = ["10.0.0.1"] * HASH_WORKERS + [AWAY] * 10 + [HOME] * 10
    waiting = [
        asyncio.ensure_future(verifier.verify(key.text, NOW, address))
        for (key, _), address in zip(made, addresses, strict=True)
    ]
    await held(hasher, HASH_WORKERS)
    hasher.gate.set()
    assert all(map(is_known, await asyncio.gather(*waiting)))
    away = {key.text for key, _ in made[HASH_WORKERS : HASH_WORKERS + 10]}
    assert sum(text in away for text in hasher.calls[HASH_WORKERS : HASH_WORKERS + 10]) in (4, 5, 6)


async def test_a_hash_that_fails_is_an_error_of_its_own_key(hasher: Hasher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller that waits for it learns at once, and the thread serves the next key."""
    (bad, record), (good, other) = make(), make("bob")

    def fail(key: str, stored: str) -> bool:
        if key == bad.text:
            raise MemoryError("argon2")
        return hasher(key, stored)

    monkeypatch.setattr(verifier_module, "verify_key", fail)
    verifier = Verifier(KeyRing.from_records([record, other]), patience=60)
    for _ in range(2 * HASH_WORKERS):
        with pytest.raises(MemoryError, match="argon2"):
            await verifier.verify(bad.text, NOW, HOME)
    assert is_known(await verifier.verify(good.text, NOW, HOME))


def test_a_new_verifier_holds_its_ring_and_nothing_else() -> None:
    """All places of the queue are free."""
    ring = KeyRing.from_records([make()[1]])
    assert Verifier(ring).ring is ring
    assert repr(Verifier(ring)) == "Verifier(KeyRing(1 keys), 0 verified, 0 waiting)"


def test_digests_are_this_process_own() -> None:
    """Nobody who sees a digest can tell which key it is of."""
    assert Verifier()._digest(b"key") != Verifier()._digest(b"key")


async def test_a_flood_that_turns_out_wrong_is_not_hashed_to_its_end(hasher: Hasher) -> None:
    """The throttle holds for keys that wait already: a few are hashed, the others get a time to come back."""
    attacked, record = make(tagged=False)
    verifier = Verifier(KeyRing.from_records([record]))
    answers = await asyncio.gather(
        *(verifier.verify(forge(attacked, n), NOW, AWAY) for n in range(300)), return_exceptions=True
    )
    assert BURST <= len(hasher.calls) <= BURST + HASH_WORKERS
    assert sum(isinstance(answer, TooManyWrongKeys) for answer in answers) == 300 - len(hasher.calls)


async def test_key_that_waits_in_a_flood_is_hashed_for_another_source(hasher: Hasher) -> None:
    """The key came from the flood's address first; the request from elsewhere asks again on its own account."""
    (attacked, record), (key, other) = make(tagged=False), make("bob")
    verifier = Verifier(KeyRing.from_records([record, other]))
    hasher.gate.clear()
    flood = [asyncio.ensure_future(verifier.verify(forge(attacked, n), NOW, AWAY)) for n in range(BURST + 20)]
    await held(hasher, HASH_WORKERS)
    both = [asyncio.ensure_future(verifier.verify(key.text, NOW, address)) for address in (AWAY, HOME)]
    await asyncio.sleep(0)
    hasher.gate.set()
    refused, served = await asyncio.gather(*both, return_exceptions=True)
    assert isinstance(refused, TooManyWrongKeys)
    assert is_known(served)
    await asyncio.gather(*flood, return_exceptions=True)


async def test_a_key_waits_as_long_as_it_is_told_to(hasher: Hasher) -> None:
    """Then the answer is VerifierBusy, which says nothing about the key, and nobody hashes it any more."""
    made = [make(f"u{n}") for n in range(HASH_WORKERS + 1)]
    verifier = Verifier(KeyRing.from_records(record for _, record in made), patience=0.05)
    hasher.gate.clear()
    answers = await asyncio.gather(*(verifier.verify(key.text, NOW, HOME) for key, _ in made), return_exceptions=True)
    assert [type(answer) for answer in answers] == [VerifierBusy] * len(made)
    assert VerifierBusy.retry_after == 1
    hasher.gate.set()
    while verifier._jobs:
        await asyncio.sleep(0.001)
    assert sorted(hasher.calls) == sorted(key.text for key, _ in made[:HASH_WORKERS])
    assert is_known(await verifier.verify(made[-1][0].text, NOW, HOME))


async def test_address_with_many_wrong_keys_is_refused_unhashed(hasher: Hasher) -> None:
    """The answer does not say whether they are valid; other addresses and known keys do not notice."""
    (attacked, record), (known, other), (new, third) = make(tagged=False), make("bob"), make("carol")
    verifier = Verifier(KeyRing.from_records([record, other, third]))
    assert is_known(await verifier.verify(known.text, NOW, HOME))
    for seed in range(BURST):
        assert is_rejected(await verifier.verify(forge(attacked, seed), NOW, HOME))
    hashed = len(hasher.calls)
    for text in (forge(attacked, 99), new.text):
        with pytest.raises(TooManyWrongKeys) as raised:
            await verifier.verify(text, NOW, HOME)
        assert raised.value.retry_after == 10
        assert text not in f"{raised.value!r}"
    assert len(hasher.calls) == hashed
    assert verifier.lookup(known.text.encode(), NOW) is not None
    assert is_known(await verifier.verify(known.text, NOW, HOME))
    assert is_known(await verifier.verify(new.text, NOW, AWAY))


async def test_client_that_waits_as_told_has_a_key_checked(hasher: Hasher) -> None:
    """A valid key that was held up is let in then, and counts against nobody."""
    (attacked, record), (new, other) = make(tagged=False), make("bob")
    verifier = Verifier(KeyRing.from_records([record, other]))
    for seed in range(BURST):
        await verifier.verify(forge(attacked, seed), NOW, HOME)
    with pytest.raises(TooManyWrongKeys) as raised:
        await verifier.verify(new.text, NOW, HOME)
    assert is_known(await verifier.verify(new.text, NOW + raised.value.retry_after, HOME))
    assert is_rejected(await verifier.verify(forge(attacked, 98), NOW + raised.value.retry_after, HOME))
    with pytest.raises(TooManyWrongKeys):
        await verifier.verify(forge(attacked, 99), NOW + raised.value.retry_after, HOME)


async def test_keys_refused_without_a_hash_delay_nobody(hasher: Hasher) -> None:
    """A client that goes on with a mistyped or revoked key must not keep its neighbours out."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record, replace(make("bob")[1], disabled=True)]))
    for seed in range(5 * BURST):
        assert is_rejected(await verifier.verify(forge(make()[0], seed), NOW, HOME))
    assert is_known(await verifier.verify(key.text, NOW, HOME))


async def test_a_caller_that_leaves_does_not_take_the_answer_along(hasher: Hasher) -> None:
    """Another caller that waits for the same key still gets it."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    hasher.gate.clear()
    leaving, staying = (asyncio.ensure_future(verifier.verify(key.text, NOW, HOME)) for _ in range(2))
    await held(hasher, 1)
    leaving.cancel()
    await asyncio.sleep(0)
    hasher.gate.set()
    assert is_known(await staying)
    assert leaving.cancelled()
    assert verifier.lookup(key.text.encode(), NOW) is not None


async def test_a_swap_takes_what_was_prepared_for_it() -> None:
    """A key verified after that is verified again; one whose record is gone is unknown at once."""
    (kept, first), (gone, second), (late, third) = made_by_us("kept"), made_by_us("gone"), made_by_us("late")
    verifier = Verifier(KeyRing.from_records([first, second, third]))
    for key in (kept, gone):
        assert is_known(await verifier.verify(key.text, NOW, HOME))
    after = KeyRing.from_records([first, third])
    verified = verifier.still_verified(after)
    assert is_known(await verifier.verify(late.text, NOW, HOME))
    before = verifier.swap(after, verified)
    assert before.ids == {first.id, second.id, third.id}
    assert verifier.lookup(kept.text.encode(), NOW) is not None
    assert verifier.lookup(gone.text.encode(), NOW) is None
    assert is_rejected(await verifier.verify(gone.text, NOW, HOME))
    assert verifier.lookup(late.text.encode(), NOW) is None
    assert is_known(await verifier.verify(late.text, NOW, HOME))
    verifier.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"expires": START}, "expired"),
        ({"disabled": True}, "revoked"),
        ({"disabled": True, "expires": START}, "revoked"),
    ],
    ids=["valid", "expired", "revoked", "both"],
)
@pytest.mark.parametrize("kind", ["ours", "slow", "slow, known before"])
async def test_a_rejection_says_why(hasher: Hasher, kind: str, change: dict[str, Any], reason: str | None) -> None:
    """For the log, with the record's id, whether the key had to be hashed slowly or not."""
    key, record = made_by_us() if kind == "ours" else make()
    verifier = Verifier(KeyRing.from_records([record]))
    if kind != "slow":
        assert is_known(await verifier.verify(key.text, NOW, HOME))
    verifier.swap(KeyRing.from_records([replace(record, **change)]))
    answer = await verifier.verify(key.text, NOW, HOME)
    assert is_known(answer) if reason is None else answer == Rejection(reason, key.key_id)  # type: ignore[arg-type]
    assert (verifier.lookup(key.text.encode(), NOW) is None) == (reason is not None)


async def test_a_wrong_secret_is_told_with_its_id(hasher: Hasher) -> None:
    """The first time, after a slow hash, and the second time, out of memory."""
    (attacked, record), (known, other) = make(tagged=False), made_by_us("bob")
    verifier = Verifier(KeyRing.from_records([record, other]))
    for key in (attacked, attacked, known):
        assert await verifier.verify(forge(key, 1), NOW, HOME) == Rejection("wrong_secret", key.key_id)
    assert len(hasher.calls) == 1
    stranger = make()[0]
    assert await verifier.verify(stranger.text, NOW, HOME) == Rejection("unknown_id", stranger.key_id)
    for text in ("sk-junk", "x" * 513, "sk-ü"):
        assert await verifier.verify(text, NOW, HOME) == Rejection("malformed")


async def test_a_key_expires_at_its_moment(hasher: Hasher) -> None:
    """Also when it was verified before, without a reload."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([replace(record, expires=START + timedelta(seconds=10))]))
    assert is_known(await verifier.verify(key.text, NOW + 9, HOME))
    assert verifier.lookup(key.text.encode(), NOW + 9.9) is not None
    assert verifier.lookup(key.text.encode(), NOW + 10) is None
    assert is_rejected(await verifier.verify(key.text, NOW + 10, HOME))
    assert len(hasher.calls) == 1


async def test_an_expired_key_costs_no_hash(hasher: Hasher) -> None:
    """Its state is known before hashing."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([replace(record, expires=START)]))
    assert is_rejected(await verifier.verify(key.text, NOW, HOME))
    assert hasher.calls == []


@pytest.mark.parametrize("change", ["removed", "disabled", "another hash"])
async def test_a_reload_drops_what_no_longer_holds(hasher: Hasher, change: str) -> None:
    """From the swap on, a verified key is unknown when its record is gone, disabled or under another hash."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    assert is_known(await verifier.verify(key.text, NOW, HOME))
    after = {"removed": [], "disabled": [replace(record, disabled=True)], "another hash": [replace(record, hash="x")]}
    verifier.swap(KeyRing.from_records(after[change]))
    assert verifier.lookup(key.text.encode(), NOW) is None
    assert is_rejected(await verifier.verify(key.text, NOW, HOME))


async def test_a_reload_keeps_what_holds_under_its_new_limits(hasher: Hasher) -> None:
    """No key is hashed again because another one, or its own limits, changed."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    assert is_known(await verifier.verify(key.text, NOW, HOME))
    verifier.swap(KeyRing.from_records([replace(record, limits=KeyLimits(burst=7)), make("bob")[1]]))
    principal = verifier.lookup(key.text.encode(), NOW)
    assert principal is not None
    assert principal.limits.burst == 7
    assert len(hasher.calls) == 1


async def test_a_key_revoked_while_it_is_hashed_is_refused(hasher: Hasher) -> None:
    """The verdict is given under the ring in force when the thread is done."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    hasher.gate.clear()
    task = asyncio.ensure_future(verifier.verify(key.text, NOW, HOME))
    await held(hasher, 1)
    verifier.swap(KeyRing.from_records([replace(record, disabled=True)]))
    hasher.gate.set()
    assert is_rejected(await task)
    assert verifier.lookup(key.text.encode(), NOW) is None


async def test_a_key_removed_while_it_is_hashed_is_refused(hasher: Hasher) -> None:
    """And not remembered: the next reload finds no trace of it."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    hasher.gate.clear()
    task = asyncio.ensure_future(verifier.verify(key.text, NOW, HOME))
    await held(hasher, 1)
    verifier.swap(KeyRing.from_records([]))
    hasher.gate.set()
    assert await task == Rejection("unknown_id", key.key_id)
    verifier.swap(KeyRing.from_records([record]))
    assert is_known(await verifier.verify(key.text, NOW, HOME))
    assert len(hasher.calls) == 2


async def test_a_key_that_becomes_valid_while_it_is_hashed_is_let_in(hasher: Hasher) -> None:
    """A rotation that lands during the hash: a refusal of the new secret under the old ring is not final."""
    old, record = make(tagged=False)
    new = make_key("sk-", secrets.token_bytes, old.key_id)
    verifier = Verifier(KeyRing.from_records([record]))
    hasher.gate.clear()
    task = asyncio.ensure_future(verifier.verify(new.text, NOW, HOME))
    await held(hasher, 1)
    changed = rotated(record, "hash of " + new.text, START, timedelta(hours=1))
    verifier.swap(KeyRing.from_records([changed]))
    hasher.gate.set()
    assert is_known(await task)


async def test_rotated_key_accepts_both_secrets_during_the_overlap(hasher: Hasher) -> None:
    """The old secret ends with the overlap, the new one goes on."""
    old, record = make()
    new = make_key("sk-", secrets.token_bytes, old.key_id)
    changed = rotated(record, "hash of " + new.text, START, timedelta(hours=1))
    verifier = Verifier(KeyRing.from_records([changed]))
    assert is_known(await verifier.verify(old.text, NOW, HOME))
    assert is_known(await verifier.verify(new.text, NOW, HOME))
    assert verifier.lookup(old.text.encode(), NOW + 3600) is None
    assert verifier.lookup(new.text.encode(), NOW + 3600) is not None


async def test_nothing_shows_or_keeps_the_key(hasher: Hasher) -> None:
    """No repr of the verifier or its jobs shows a key or a hash, and after the verdict nothing holds its text."""
    made = [make(f"u{n}") for n in range(HASH_WORKERS + 1)]
    verifier = Verifier(KeyRing.from_records(record for _, record in made))
    hasher.gate.clear()
    tasks = [asyncio.ensure_future(verifier.verify(key.text, NOW, HOME)) for key, _ in made]
    await held(hasher, HASH_WORKERS)
    jobs = list(verifier._jobs.values())
    shown = repr(verifier) + repr(jobs) + repr(VerifierBusy())
    for key, record in made:
        assert key.text not in shown
        assert record.hash not in shown
    assert not any(repr(job.digest) in shown for job in jobs)
    assert [job.presented for job in jobs] == [""] * HASH_WORKERS + [made[-1][0].text]
    hasher.gate.set()
    await asyncio.gather(*tasks)
    assert not verifier._jobs
    assert not verifier._queues
    assert all(job.presented == "" for job in jobs)


async def test_closing_ends_the_waiting(hasher: Hasher) -> None:
    """Waiting callers are cancelled, nobody waits for a running hash, its thread ends with it, and nothing is kept."""
    made = [make(f"u{n}") for n in range(HASH_WORKERS + 1)]
    verifier = Verifier(KeyRing.from_records(record for _, record in made))
    hasher.gate.clear()
    tasks = [asyncio.ensure_future(verifier.verify(key.text, NOW, HOME)) for key, _ in made]
    await held(hasher, HASH_WORKERS)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("aiaas-key-hash")]
    verifier.close()
    assert hasher.running == HASH_WORKERS
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [asyncio.CancelledError] * len(made)
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    hasher.gate.set()
    while verifier._running:
        await asyncio.sleep(0.001)
    assert failures == []
    for thread in verifier._threads._threads:
        thread.join(10)
        assert thread in threads
        assert not thread.is_alive()
    assert (len(hasher.calls), verifier._jobs, len(verifier._queues)) == (HASH_WORKERS, {}, 0)
    assert repr(verifier).endswith("0 verified, 0 waiting)")


async def test_ten_thousand_verified_keys_are_swapped_in_a_moment(hasher: Hasher) -> None:
    """The event loop does nothing else meanwhile: 20 ms at the most. The quickest of ten counts."""
    made = [make(f"u{number}") for number in range(100)]
    ring = KeyRing.from_records(record for _, record in made)
    verifier = Verifier(ring)
    for key, _ in made:
        assert is_known(await verifier.verify(key.text, NOW, HOME))
    known = list(verifier._verified.values())
    verifier._verified = {number.to_bytes(16): known[number % 100] for number in range(10_000)}
    took = []
    for _ in range(10):
        began = time.thread_time()
        verifier.swap(KeyRing.from_records(()) if len(took) == 9 else ring)
        took.append(time.thread_time() - began)
    assert min(took[:9]) < 0.02
    assert verifier._verified == {}
    verifier.close()
