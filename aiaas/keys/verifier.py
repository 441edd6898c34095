"""From a presented key to a Principal: hash slowly once, then remember a fast keyed digest.

A request asks `lookup` first: one keyed BLAKE2b and one dict lookup, about a microsecond. Only a key that was not seen
before (since start, or since its record changed) goes on to `verify`, which hashes in a thread.

Rules:
  1. At most WORKERS slow hashes run at once, in threads of our own. The event loop only ever waits.
  2. What reaches them is filtered first, by checksum, key id and tag (`KeyRing.candidates`): of wrong keys that know
     a key id and the checksum's arithmetic, one in 65,536.
  3. Waiting is fair and bounded. Keys wait in a queue for each record, served in turn, so that a flood on one record
     does not hold up the first request of another. Up to MAX_WAITING_EACH and MAX_WAITING wait (0.8 s of hashing); what
     is over is refused with VerifierBusy, which is no verdict: the client is told 503 and to come back, never 401.
  4. The same key presented many times at once is hashed once.
  5. A wrong key is remembered by its digest too, MAX_REFUSED of them, until the ring changes.
  6. A source (a client's network) whose keys were hashed and wrong too often has no further ones hashed for a while:
     TooManyWrongKeys, which is no verdict either (`throttle.py`).
  7. Digests are keyed with random bytes of this process, kept in memory only. The text of a key is kept while it waits
     and is hashed, and no longer. No repr shows any of it.
  8. `swap` keeps what holds: a verified key whose record still has the same hash stays verified, under the record's new
     limits; one whose record is gone, disabled or changed is dropped at once, also while it is being hashed.

The event loop is the only thread that touches the state; threads get a key and hashes and return an index.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar, Final

from aiaas.errors import AiaasError
from aiaas.keys.format import MAX_KEY_LENGTH
from aiaas.keys.hashing import verify_key
from aiaas.keys.model import Principal
from aiaas.keys.ring import EMPTY_RING, KeyRing, StoredSecret
from aiaas.keys.throttle import FailureThrottle, source_of

WORKERS: Final = 2  # slow hashes at once: 2 x 19 MiB, and two cores at the most
MAX_WAITING: Final = 64  # about 0.8 s of hashing
MAX_WAITING_EACH: Final = 8  # of one record
MAX_REFUSED: Final = 4096
BUSY_RETRY_AFTER: Final = 1  # seconds


class VerifierBusy(AiaasError):
    """Too many keys that were never seen before wait to be hashed. No verdict on this one; try again in a second."""

    retry_after: ClassVar[int] = BUSY_RETRY_AFTER  # seconds

    def __init__(self) -> None:
        super().__init__("too many unknown API keys are being checked; try again in a second")


class TooManyWrongKeys(AiaasError):
    """Too many wrong keys came from this source lately. No verdict on this one; try again in `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many wrong API keys came from this address")
        self.retry_after = retry_after


@dataclass(slots=True)
class _Job:
    """One presented key on its way through a thread, and those that wait for the answer.

    source  where it came from first; a wrong key counts against it, from the moment `since` (POSIX seconds)
    """

    digest: bytes = field(repr=False)
    presented: str = field(repr=False)
    source: str
    since: float
    ring: KeyRing
    candidates: tuple[StoredSecret, ...] = field(repr=False)
    answer: asyncio.Future[StoredSecret | None] = field(repr=False)


class Verifier:
    """Knows the ring and what was verified under it. One for each process; use it from one event loop."""

    def __init__(self, ring: KeyRing = EMPTY_RING) -> None:
        self._ring = ring
        self._digest_key = os.urandom(32)
        self._verified: dict[bytes, StoredSecret] = {}
        self._refused: OrderedDict[bytes, None] = OrderedDict()
        self._jobs: dict[bytes, _Job] = {}
        self._queues: OrderedDict[str, deque[_Job]] = OrderedDict()  # by record; the first is served next
        self._waiting = 0
        self._running = 0
        self._throttle = FailureThrottle()
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="aiaas-key-hash")

    def __repr__(self) -> str:
        return f"Verifier({self._ring!r}, {len(self._verified)} verified, {self._waiting} waiting)"

    @property
    def ring(self) -> KeyRing:
        """The ring in force."""
        return self._ring

    def lookup(self, presented: bytes, now: float) -> Principal | None:
        """Who `presented` is, if this process has verified it before; None says nothing about it.

        presented  the key's bytes as they came
        now        POSIX seconds
        """
        secret = self._verified.get(self._digest(presented))
        if secret is None or not (secret.until is None or now < secret.until):
            return None
        return secret.principal

    async def verify(self, presented: str, now: float, address: str) -> Principal | None:
        """Who `presented` is, or None: it is no valid key.

        now      POSIX seconds
        address  the client's
        Raises VerifierBusy where too many unknown keys wait already, and TooManyWrongKeys where too many of that
        address were wrong; a key that was verified before never sees either.
        A caller that is cancelled leaves the work to the others that wait for the same key.
        """
        if len(presented) > MAX_KEY_LENGTH or not presented.isascii():
            return None
        digest = self._digest(presented.encode("ascii"))
        while True:
            ring = self._ring
            known = self._verified.get(digest)
            if known is not None:
                return known.principal if known.usable(now) else None
            if digest in self._refused:
                return None
            job = self._jobs.get(digest) or self._enqueue(digest, presented, now, address)
            if job is None:
                return None
            secret = await asyncio.shield(job.answer)
            if secret is not None:
                return secret.principal if secret.usable(now) else None
            if ring is self._ring:
                return None
            # The ring changed while a thread was hashing: its "no" was about the old one (a rotation, for instance).

    def swap(self, ring: KeyRing) -> None:
        """Put another ring in force, at once. Costs a dict lookup for each verified key."""
        self._ring = ring
        kept = ((digest, ring.current(secret)) for digest, secret in self._verified.items())
        self._verified = {digest: secret for digest, secret in kept if secret is not None}
        self._refused.clear()

    def close(self) -> None:
        """Let go of the threads. Whoever still waits gets a CancelledError."""
        for job in self._jobs.values():
            job.answer.cancel()
        self._jobs.clear()
        self._queues.clear()
        self._waiting = 0
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _digest(self, presented: bytes) -> bytes:
        return hashlib.blake2b(presented, digest_size=16, key=self._digest_key).digest()

    def _enqueue(self, digest: bytes, presented: str, now: float, address: str) -> _Job | None:
        """Line a key up for a thread; None where no stored secret could match it, so that it need not be hashed."""
        candidates = tuple(secret for secret in self._ring.candidates(presented) if secret.usable(now))
        if not candidates:
            return None
        source = source_of(address)
        if wait := self._throttle.wait(source, now):
            raise TooManyWrongKeys(wait)
        record = candidates[0].principal.key_id
        queue = self._queues.get(record, ())
        if self._waiting >= MAX_WAITING or len(queue) >= MAX_WAITING_EACH:
            raise VerifierBusy
        answer = asyncio.get_running_loop().create_future()
        job = _Job(digest, presented, source, now, self._ring, candidates, answer)
        self._jobs[digest] = job
        self._queues.setdefault(record, deque()).append(job)
        self._waiting += 1
        self._start_next()
        return job

    def _start_next(self) -> None:
        while self._running < WORKERS and self._queues:
            record, queue = self._queues.popitem(last=False)
            job = queue.popleft()
            if queue:
                self._queues[record] = queue  # to the end of the line
            self._waiting -= 1
            self._running += 1
            hashes = tuple(secret.hash for secret in job.candidates)
            future = job.answer.get_loop().run_in_executor(self._threads, first_match, job.presented, hashes)
            job.presented = ""
            future.add_done_callback(functools.partial(self._settle, job))

    def _settle(self, job: _Job, future: asyncio.Future[int | None]) -> None:
        self._running -= 1
        if job.answer.cancelled() or future.cancelled():  # closed meanwhile
            return
        self._jobs.pop(job.digest, None)
        if (error := future.exception()) is not None:
            job.answer.set_exception(error)
        else:
            job.answer.set_result(self._verdict(job, future.result()))
        self._start_next()

    def _verdict(self, job: _Job, index: int | None) -> StoredSecret | None:
        """What a finished hash means under the ring that is in force now."""
        if index is None:
            self._throttle.failed(job.source, job.since)
            if job.ring is self._ring:
                self._remember_refused(job.digest)
            return None
        secret = self._ring.current(job.candidates[index])
        if secret is not None:
            self._verified[job.digest] = secret
        return secret

    def _remember_refused(self, digest: bytes) -> None:
        self._refused[digest] = None
        if len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)


def first_match(presented: str, hashes: tuple[str, ...]) -> int | None:
    """The index of the hash that `presented` matches, or None. Slow (20 ms a hash): for a thread, or a command."""
    return next((index for index, stored in enumerate(hashes) if verify_key(presented, stored)), None)
