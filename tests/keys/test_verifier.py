"""From a presented key to a principal: hashed once, never in the way of others, and nothing kept that should not be."""

import asyncio
import random
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from aiaas.keys import verifier as verifier_module
from aiaas.keys.changes import rotated
from aiaas.keys.format import NewKey, make_key, tag_of
from aiaas.keys.hashing import hash_key
from aiaas.keys.model import KeyLimits, KeyRecord
from aiaas.keys.ring import KeyRing
from aiaas.keys.throttle import BURST
from aiaas.keys.verifier import (
    MAX_REFUSED,
    MAX_WAITING,
    MAX_WAITING_EACH,
    WORKERS,
    TooManyWrongKeys,
    Verifier,
    VerifierBusy,
)

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW = START.timestamp()
HOME, AWAY = "192.0.2.1", "192.0.2.2"  # addresses of clients


def make(name: str = "alice", *, tagged: bool = True) -> tuple[NewKey, KeyRecord]:
    key = make_key("sk-", secrets.token_bytes)
    tag = tag_of(key.text) if tagged else None
    return key, KeyRecord(id=key.key_id, name=name, hash="hash of " + key.text, tag=tag, created=START)


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
    assert principal is not None
    assert (principal.name, principal.models) == ("alice", {"m"})
    assert verifier.lookup(key.text.encode(), NOW) is principal
    assert verifier.lookup(key.text.encode() + b"x", NOW) is None
    verifier.close()


async def test_junk_costs_no_hash(hasher: Hasher) -> None:
    """Typos, unknown ids, empty, huge and non-ASCII texts are refused without a thread."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    for text in ("", "sk-", key.text[:-1], "x" * 10_000, "schlüssel", make()[0].text, key.text + " "):
        assert await verifier.verify(text, NOW, HOME) is None
    assert hasher.calls == []


async def test_the_same_key_at_once_is_hashed_once(hasher: Hasher) -> None:
    """Fifty requests with one new key wait for one hash."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    principals = await asyncio.gather(*(verifier.verify(key.text, NOW, HOME) for _ in range(50)))
    assert all(principal is not None for principal in principals)
    assert hasher.calls == [key.text]


async def test_a_wrong_key_is_remembered(hasher: Hasher) -> None:
    """The second time it costs no hash; after a swap it is looked at again."""
    key, record = make(tagged=False)
    wrong = forge(key, 1)
    verifier = Verifier(KeyRing.from_records([record]))
    assert await verifier.verify(wrong, NOW, HOME) is None
    assert await verifier.verify(wrong, NOW, HOME) is None
    assert len(hasher.calls) == 1
    verifier.swap(KeyRing.from_records([record]))
    assert await verifier.verify(wrong, NOW, HOME) is None
    assert len(hasher.calls) == 2


async def test_the_memory_of_wrong_keys_is_bounded(hasher: Hasher) -> None:
    """However many wrong keys come, so many digests are kept and no more."""
    key, record = make(tagged=False)
    verifier = Verifier(KeyRing.from_records([record]))
    for number in range(MAX_REFUSED + 50):
        verifier._remember_refused(number.to_bytes(16))
    assert len(verifier._refused) == MAX_REFUSED
    assert await verifier.verify(forge(key, 1), NOW, HOME) is None
    assert len(verifier._refused) == MAX_REFUSED


async def test_at_most_two_hashes_run_at_once(hasher: Hasher) -> None:
    """Thirty new keys use two threads."""
    made = [make(f"u{n}") for n in range(30)]
    verifier = Verifier(KeyRing.from_records(record for _, record in made))
    hasher.gate.clear()
    tasks = [asyncio.ensure_future(verifier.verify(key.text, NOW, HOME)) for key, _ in made]
    await held(hasher, WORKERS)
    hasher.gate.set()
    assert all(await asyncio.gather(*tasks))
    assert hasher.most == WORKERS


async def test_a_flood_never_delays_a_verified_key(hasher: Hasher) -> None:
    """With every thread stuck and the line full, a key that was verified before is answered at once."""
    key, record = make(tagged=False)
    verifier = Verifier(KeyRing.from_records([record]))
    assert await verifier.verify(key.text, NOW, HOME)
    hasher.gate.clear()
    flood = [asyncio.ensure_future(verifier.verify(forge(key, n), NOW, HOME)) for n in range(200)]
    await held(hasher, WORKERS)
    assert verifier.lookup(key.text.encode(), NOW) is not None
    assert await asyncio.wait_for(verifier.verify(key.text, NOW, HOME), 1) is not None
    hasher.gate.set()
    answers = await asyncio.gather(*flood, return_exceptions=True)
    assert answers.count(None) == WORKERS + MAX_WAITING_EACH
    assert sum(isinstance(answer, VerifierBusy) for answer in answers) == 200 - WORKERS - MAX_WAITING_EACH


async def test_a_flood_on_one_key_id_leaves_room_for_other_keys(hasher: Hasher) -> None:
    """A first request of another key is served before the flood's own line, not refused and not last."""
    (attacked, record), (key, other) = make(tagged=False), make("bob")
    verifier = Verifier(KeyRing.from_records([record, other]))
    hasher.gate.clear()
    flood = [asyncio.ensure_future(verifier.verify(forge(attacked, n), NOW, HOME)) for n in range(100)]
    await held(hasher, WORKERS)
    first = asyncio.ensure_future(verifier.verify(key.text, NOW, HOME))
    await asyncio.sleep(0)
    hasher.gate.set()
    assert await first is not None
    await asyncio.gather(*flood, return_exceptions=True)
    assert hasher.calls.index(key.text) <= WORKERS + 1


async def test_the_line_is_bounded_over_all_keys(hasher: Hasher) -> None:
    """Beyond MAX_WAITING the answer is VerifierBusy, which is no verdict."""
    made = [make(f"u{n}") for n in range(MAX_WAITING + WORKERS + 1)]
    verifier = Verifier(KeyRing.from_records(record for _, record in made))
    hasher.gate.clear()
    tasks = [asyncio.ensure_future(verifier.verify(key.text, NOW, HOME)) for key, _ in made]
    await held(hasher, WORKERS)
    hasher.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers if isinstance(answer, BaseException)] == [VerifierBusy]
    assert await verifier.verify(made[-1][0].text, NOW, HOME) is not None


async def test_an_address_with_many_wrong_keys_has_no_further_ones_hashed(hasher: Hasher) -> None:
    """Whether they are valid or not is not said; other addresses and keys that are known do not notice."""
    (attacked, record), (known, other), (new, third) = make(tagged=False), make("bob"), make("carol")
    verifier = Verifier(KeyRing.from_records([record, other, third]))
    assert await verifier.verify(known.text, NOW, HOME) is not None
    for seed in range(BURST):
        assert await verifier.verify(forge(attacked, seed), NOW, HOME) is None
    hashed = len(hasher.calls)
    for text in (forge(attacked, 99), new.text):
        with pytest.raises(TooManyWrongKeys) as raised:
            await verifier.verify(text, NOW, HOME)
        assert raised.value.retry_after == 10
        assert text not in f"{raised.value!r}"
    assert len(hasher.calls) == hashed
    assert verifier.lookup(known.text.encode(), NOW) is not None
    assert await verifier.verify(known.text, NOW, HOME) is not None
    assert await verifier.verify(new.text, NOW, AWAY) is not None


async def test_who_waits_as_told_has_a_key_checked(hasher: Hasher) -> None:
    """A valid key that was held up is let in then, and counts against nobody."""
    (attacked, record), (new, other) = make(tagged=False), make("bob")
    verifier = Verifier(KeyRing.from_records([record, other]))
    for seed in range(BURST):
        await verifier.verify(forge(attacked, seed), NOW, HOME)
    with pytest.raises(TooManyWrongKeys) as raised:
        await verifier.verify(new.text, NOW, HOME)
    assert await verifier.verify(new.text, NOW + raised.value.retry_after, HOME) is not None
    assert await verifier.verify(forge(attacked, 98), NOW + raised.value.retry_after, HOME) is None
    with pytest.raises(TooManyWrongKeys):
        await verifier.verify(forge(attacked, 99), NOW + raised.value.retry_after, HOME)


async def test_what_costs_no_hash_holds_nobody_up(hasher: Hasher) -> None:
    """A client that goes on with a mistyped or revoked key must not keep its neighbours out."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record, replace(make("bob")[1], disabled=True)]))
    for seed in range(5 * BURST):
        assert await verifier.verify(forge(make()[0], seed), NOW, HOME) is None
    assert await verifier.verify(key.text, NOW, HOME) is not None


async def test_a_caller_that_leaves_does_not_take_the_answer_along(hasher: Hasher) -> None:
    """Of two that wait for one key, the other still gets it."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    hasher.gate.clear()
    leaving, staying = (asyncio.ensure_future(verifier.verify(key.text, NOW, HOME)) for _ in range(2))
    await held(hasher, 1)
    leaving.cancel()
    await asyncio.sleep(0)
    hasher.gate.set()
    assert await staying is not None
    assert leaving.cancelled()
    assert verifier.lookup(key.text.encode(), NOW) is not None


async def test_a_key_expires_at_its_moment(hasher: Hasher) -> None:
    """Also when it was verified before, without a reload."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([replace(record, expires=START + timedelta(seconds=10))]))
    assert await verifier.verify(key.text, NOW + 9, HOME) is not None
    assert verifier.lookup(key.text.encode(), NOW + 9.9) is not None
    assert verifier.lookup(key.text.encode(), NOW + 10) is None
    assert await verifier.verify(key.text, NOW + 10, HOME) is None
    assert len(hasher.calls) == 1


async def test_an_expired_key_costs_no_hash(hasher: Hasher) -> None:
    """Its state is known before anything is hashed."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([replace(record, expires=START)]))
    assert await verifier.verify(key.text, NOW, HOME) is None
    assert hasher.calls == []


@pytest.mark.parametrize("change", ["removed", "disabled", "another hash"])
async def test_a_reload_drops_what_no_longer_holds(hasher: Hasher, change: str) -> None:
    """From the swap on, a verified key is unknown when its record is gone, disabled or under another hash."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    assert await verifier.verify(key.text, NOW, HOME)
    after = {"removed": [], "disabled": [replace(record, disabled=True)], "another hash": [replace(record, hash="x")]}
    verifier.swap(KeyRing.from_records(after[change]))
    assert verifier.lookup(key.text.encode(), NOW) is None
    assert await verifier.verify(key.text, NOW, HOME) is None


async def test_a_reload_keeps_what_holds_under_its_new_limits(hasher: Hasher) -> None:
    """No key is hashed again because another one, or its own limits, changed."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    assert await verifier.verify(key.text, NOW, HOME)
    verifier.swap(KeyRing.from_records([replace(record, limits=KeyLimits(burst=7)), make("bob")[1]]))
    principal = verifier.lookup(key.text.encode(), NOW)
    assert principal is not None
    assert principal.limits.burst == 7
    assert len(hasher.calls) == 1


async def test_a_key_revoked_while_it_is_hashed_is_refused(hasher: Hasher) -> None:
    """The verdict is given under the ring that is in force when the thread is done."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    hasher.gate.clear()
    task = asyncio.ensure_future(verifier.verify(key.text, NOW, HOME))
    await held(hasher, 1)
    verifier.swap(KeyRing.from_records([replace(record, disabled=True)]))
    hasher.gate.set()
    assert await task is None
    assert verifier.lookup(key.text.encode(), NOW) is None


async def test_a_key_that_becomes_valid_while_it_is_hashed_is_let_in(hasher: Hasher) -> None:
    """A rotation that lands during the hash: the new secret's no under the old ring is not the last word."""
    old, record = make(tagged=False)
    new = make_key("sk-", secrets.token_bytes, old.key_id)
    verifier = Verifier(KeyRing.from_records([record]))
    hasher.gate.clear()
    task = asyncio.ensure_future(verifier.verify(new.text, NOW, HOME))
    await held(hasher, 1)
    changed = rotated(record, "hash of " + new.text, tag_of(new.text), START, timedelta(hours=1))
    verifier.swap(KeyRing.from_records([changed]))
    hasher.gate.set()
    assert await task is not None


async def test_a_rotated_key_works_with_both_secrets_during_the_overlap(hasher: Hasher) -> None:
    """The old one ends with the overlap, the new one goes on."""
    old, record = make()
    new = make_key("sk-", secrets.token_bytes, old.key_id)
    changed = rotated(record, "hash of " + new.text, tag_of(new.text), START, timedelta(hours=1))
    verifier = Verifier(KeyRing.from_records([changed]))
    assert await verifier.verify(old.text, NOW, HOME)
    assert await verifier.verify(new.text, NOW, HOME)
    assert verifier.lookup(old.text.encode(), NOW + 3600) is None
    assert verifier.lookup(new.text.encode(), NOW + 3600) is not None


async def test_nothing_shows_or_keeps_the_key(hasher: Hasher) -> None:
    """No repr of the verifier or its jobs shows a key or a hash, and after the verdict nothing holds its text."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    hasher.gate.clear()
    task = asyncio.ensure_future(verifier.verify(key.text, NOW, HOME))
    await held(hasher, 1)
    (job,) = verifier._jobs.values()
    assert key.text not in repr(verifier) + repr(job) + repr(VerifierBusy())
    assert job.presented == ""
    hasher.gate.set()
    await task
    assert not verifier._jobs
    assert not verifier._queues
    assert all(key.text not in repr(digest) for digest in verifier._verified)


async def test_closing_ends_the_waiting(hasher: Hasher) -> None:
    """Whoever waits is cancelled, and a hash that ends later harms nobody."""
    key, record = make()
    verifier = Verifier(KeyRing.from_records([record]))
    hasher.gate.clear()
    task = asyncio.ensure_future(verifier.verify(key.text, NOW, HOME))
    await held(hasher, 1)
    verifier.close()
    with pytest.raises(asyncio.CancelledError):
        await task
    hasher.gate.set()


async def test_ten_thousand_verified_keys_are_swapped_in_a_moment(hasher: Hasher) -> None:
    """The event loop does nothing else meanwhile: 20 ms at the most. The quickest of ten counts."""
    made = [make(f"u{number}") for number in range(100)]
    ring = KeyRing.from_records(record for _, record in made)
    verifier = Verifier(ring)
    for key, _ in made:
        assert await verifier.verify(key.text, NOW, HOME)
    known = list(verifier._verified.values())
    verifier._verified = {number.to_bytes(16): known[number % 100] for number in range(10_000)}
    took = []
    for _ in range(10):
        began = time.perf_counter()
        verifier.swap(KeyRing.from_records(()) if len(took) == 9 else ring)
        took.append(time.perf_counter() - began)
    assert min(took[:9]) < 0.02
    assert verifier._verified == {}
    verifier.close()
