"""Verify a presented key: compare it once, then remember it by a fast keyed digest.

A request calls `lookup` first: one keyed BLAKE2b and one dict lookup, about a microsecond. Only a key that is new to
this process (since its start, or since its record changed) goes on to `verify`. There are two cases:

  - A key that aiaas made is compared with its digest at once, some 10 us in the event loop. It never waits, however
    many come: a process that has just started can check all of them.
  - An imported key may need a slow hash, 20 ms in a thread. Everything below is about imported keys.

Rules:
  1. At most HASH_WORKERS slow hashes run at once, in threads of our own. The event loop only ever waits.
  2. Keys that reach them are filtered first, by tag (`KeyRing.find`): of wrong keys, one in 65,536 for each record.
  3. Waiting is fair and bounded. Keys wait in a queue for each source (a client's network), and sources take turns. A
     source may hold as many places as are free for others, so no flood fills the queue. Keys wait up to HASH_PATIENCE.
     Further keys are refused with VerifierBusy, which does not mean that they are invalid: the client gets a 503 and
     comes back.
  4. The same key presented many times at once is hashed once.
  5. A wrong key is remembered by its digest too, MAX_REFUSED of them, until the ring changes.
  6. A source whose keys were hashed and wrong too often has no further ones hashed for a while: TooManyWrongKeys, which
     does not mean that they are invalid either (`throttle.py`). That holds for its waiting keys as well.
  7. Digests are keyed with random bytes of this process, kept in memory only. The text of a key is kept while it waits
     and is hashed, and no longer. No repr shows any of it.
  8. `swap` keeps what holds: a verified key whose record still has the same hash stays verified, under the record's new
     limits and state; one whose record is gone or has another hash is dropped at once, also while it is being hashed.

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
from aiaas.keys.hashing import verify_key
from aiaas.keys.model import Principal, Rejection
from aiaas.keys.ring import EMPTY_RING, MALFORMED, KeyRing, StoredSecret
from aiaas.keys.throttle import FailureThrottle, source_of

HASH_WORKERS: Final = 2  # slow hashes at once: 2 x 19 MiB, and two cores at the most
HASH_PATIENCE: Final = 5.0  # seconds that a key may wait for its slow hash
MAX_WAITING: Final = 1024  # of which a single source gets half: as many as are hashed within HASH_PATIENCE
MAX_REFUSED: Final = 4096
BUSY_RETRY_AFTER: Final = 1  # seconds


class VerifierBusy(AiaasError):
    """Too many new imported keys wait to be hashed. This one may be valid; try again."""

    retry_after: ClassVar[int] = BUSY_RETRY_AFTER  # seconds

    def __init__(self) -> None:
        super().__init__("too many unknown API keys are being checked; try again in a second")


class TooManyWrongKeys(AiaasError):
    """Too many wrong keys came from this source lately. This one may be valid; try again in `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many wrong API keys came from this address")
        self.retry_after = retry_after


@dataclass(slots=True)
class _Job:
    """One presented key on its way through a thread, and the requests that wait for it.

    source     where the key came from first; a wrong key counts against it, from the moment `since` (POSIX seconds)
    given_up   when the requests stop waiting (the loop's time)
    rejection  the verdict if the key matches no hash
    done       set at the end; each request then asks again, under the ring in force
    """

    digest: bytes = field(repr=False)
    presented: str = field(repr=False)
    source: str
    since: float
    given_up: float
    ring: KeyRing
    candidates: tuple[StoredSecret, ...] = field(repr=False)
    rejection: Rejection
    done: asyncio.Future[None] = field(repr=False)


class Verifier:
    """The ring and the keys verified under it. One for each process; use it from one event loop.

    patience  seconds that a key waits for its slow hash
    """

    def __init__(self, ring: KeyRing = EMPTY_RING, patience: float = HASH_PATIENCE) -> None:
        self._ring = ring
        self._patience = patience
        self._keyed = hashlib.blake2b(os.urandom(32), digest_size=16)  # `key=` would cost a block more for each digest
        self._verified: dict[bytes, StoredSecret] = {}
        self._refused: OrderedDict[bytes, Rejection] = OrderedDict()
        self._jobs: dict[bytes, _Job] = {}
        self._queues: OrderedDict[str, deque[_Job]] = OrderedDict()  # by source; the first is served next
        self._waiting = 0
        self._running = 0
        self._throttle = FailureThrottle()
        self._threads = ThreadPoolExecutor(HASH_WORKERS, thread_name_prefix="aiaas-key-hash")

    def __repr__(self) -> str:
        return f"Verifier({self._ring!r}, {len(self._verified)} verified, {self._waiting} waiting)"

    @property
    def ring(self) -> KeyRing:
        """The ring in force."""
        return self._ring

    def lookup(self, presented: bytes, now: float) -> Principal | None:
        """The Principal of `presented`, if this process has verified it before; None means unknown, not invalid.

        presented  the key's bytes as they came
        now        POSIX seconds
        """
        keyed = self._keyed.copy()  # as `_digest`, without its call
        keyed.update(presented)
        secret = self._verified.get(keyed.digest())
        return secret.principal if secret is not None and now < secret.until else None

    async def verify(self, presented: str, now: float, address: str) -> Principal | Rejection:
        """The Principal of `presented`, or why it is refused.

        now      POSIX seconds
        address  the client's
        Raises VerifierBusy where too many unknown keys wait already, and TooManyWrongKeys where too many of that
        address were wrong; neither happens to a key that aiaas made, or to one that was verified before.
        A caller that is cancelled leaves the work to the others that wait for the same key.
        """
        if not presented.isascii():
            return MALFORMED
        digest = self._digest(presented.encode("ascii"))
        try:
            async with asyncio.timeout(self._patience):
                while isinstance(known := self._quick_verdict(digest, presented, now, address), _Job):
                    await asyncio.shield(known.done)
                return known
        except TimeoutError:
            raise VerifierBusy from None

    def still_verified(self, ring: KeyRing) -> dict[bytes, StoredSecret]:
        """The verified keys as `ring` has them, for `swap`. For a thread: it costs a look-up for each."""
        kept = ((digest, ring.current(secret)) for digest, secret in self._verified.copy().items())
        return {digest: secret for digest, secret in kept if secret is not None}

    def swap(self, ring: KeyRing, verified: dict[bytes, StoredSecret] | None = None) -> KeyRing:
        """Put another ring in force, at once; return the one before.

        verified  the result of `still_verified`; a key that was verified since is verified again
        """
        before, self._ring = self._ring, ring
        self._verified = self.still_verified(ring) if verified is None else verified
        self._refused.clear()
        return before

    def close(self) -> None:
        """Stop the threads. Requests that still wait get a CancelledError."""
        for job in self._jobs.values():
            job.done.cancel()
        self._jobs.clear()
        self._queues.clear()
        self._waiting = 0
        self._threads.shutdown(wait=False)

    def _digest(self, presented: bytes) -> bytes:
        keyed = self._keyed.copy()  # to begin with the key anew would cost as much again as the digest
        keyed.update(presented)
        return keyed.digest()

    def _quick_verdict(self, digest: bytes, presented: str, now: float, address: str) -> Principal | Rejection | _Job:
        """The verdict, or a job where it needs a slow hash."""
        if (known := self._verified.get(digest)) is not None:
            return known.verdict(now)
        if (rejection := self._refused.get(digest)) is not None:
            return rejection
        found = self._ring.find(presented)
        if found.secret is not None:
            self._verified[digest] = found.secret
            return found.secret.verdict(now)
        candidates = tuple(secret for secret in found.slow if secret.usable(now))
        if not candidates:  # by its tag the key is revoked or expired, which is not worth a slow hash
            return found.slow[0].verdict(now) if found.slow else found.rejection
        job = self._jobs.get(digest)
        return job or self._enqueue(digest, presented, now, address, candidates, found.rejection)

    def _enqueue(
        self,
        digest: bytes,
        presented: str,
        now: float,
        address: str,
        candidates: tuple[StoredSecret, ...],
        rejection: Rejection,
    ) -> _Job:
        """Queue a key for a thread."""
        source = source_of(address)
        if wait := self._throttle.wait(source, now):
            raise TooManyWrongKeys(wait)
        if len(self._queues.get(source, ())) >= MAX_WAITING - self._waiting:
            raise VerifierBusy
        loop = asyncio.get_running_loop()
        given_up = loop.time() + self._patience
        done = loop.create_future()
        job = _Job(digest, presented, source, now, given_up, self._ring, candidates, rejection, done)
        self._jobs[digest] = job
        self._queues.setdefault(source, deque()).append(job)
        self._waiting += 1
        self._start_next()
        return job

    def _start_next(self) -> None:
        while self._running < HASH_WORKERS and self._queues:
            source, queue = self._queues.popitem(last=False)
            job = queue.popleft()
            if queue:
                self._queues[source] = queue  # to the end of the line
            self._waiting -= 1
            loop = job.done.get_loop()
            if job.given_up <= loop.time() or self._throttle.wait(source, job.since):
                del self._jobs[job.digest]
                job.done.set_result(None)  # a later request with this key starts a new job
                continue
            self._running += 1
            hashes = tuple(secret.hash for secret in job.candidates)
            future = loop.run_in_executor(self._threads, first_match, job.presented, hashes)
            job.presented = ""
            future.add_done_callback(functools.partial(self._settle, job))

    def _settle(self, job: _Job, future: asyncio.Future[int | None]) -> None:
        self._running -= 1
        if job.done.cancelled():  # closed meanwhile
            return
        self._jobs.pop(job.digest, None)
        if (error := future.exception()) is not None:
            job.done.set_exception(error)
        else:
            self._learn(job, future.result())
            job.done.set_result(None)
        self._start_next()

    def _learn(self, job: _Job, index: int | None) -> None:
        """Remember the result of a finished hash, under the ring now in force."""
        if index is not None:
            secret = self._ring.current(job.candidates[index])
            if secret is not None:
                self._verified[job.digest] = secret
            return
        self._throttle.failed(job.source, job.since)
        if job.ring is self._ring:  # else the new ring may know the key (after a rotation, for instance)
            self._remember_refused(job.digest, job.rejection)

    def _remember_refused(self, digest: bytes, rejection: Rejection) -> None:
        self._refused[digest] = rejection
        if len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)


def first_match(presented: str, hashes: tuple[str, ...]) -> int | None:
    """The index of the hash that `presented` matches, or None. Slow (20 ms a hash): for a thread."""
    return next((index for index, stored in enumerate(hashes) if verify_key(presented, stored)), None)
