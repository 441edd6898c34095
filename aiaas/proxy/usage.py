"""Record usage: requests add to sums in memory, and a background task writes the sums to the store.

    a request is settled -> `settled` adds to the sums of its day, key and model (one dict lookup, a microsecond)
    every USAGE_FLUSH_INTERVAL -> the sums become a batch, which is added to the store

Rules:
  1. A crash loses the requests settled within the last second: USAGE_FLUSH_INTERVAL, and half a second for a slow disk.
  2. If the store fails, the gateway goes on: it retries the batch under the same name, and collects new requests for
     the next batch. The log has one line when the failure begins and one when it ends; a metric counts the failures.
  3. Memory is bounded to MAX_SUMS sums. Beyond that, requests of a new day, key and model are not counted; a metric
     counts how many. Sums of users have a bound of the same size, beyond which they go to OTHER_USERS.
  4. A clean shutdown writes everything.
  5. If adding a batch raises an unexpected exception, the batch is dropped, counted and logged; later batches go on.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Final

from aiaas.limits.usage import OTHER_USERS, KeptUsage, UsageKey, UsageStore, UsageStoreError, UsageSums, day_of
from aiaas.limits.usage_redis import RedisUsage
from aiaas.limits.usage_sqlite import SqliteUsage
from aiaas.plan.model import Plan
from aiaas.proxy.limit_store import store_tls
from aiaas.proxy.request.price import Charge
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.telemetry.record import NO_KEY, Record

USAGE_FLUSH_INTERVAL: Final = 0.5  # seconds
MAX_SUMS: Final = 20_000  # about 6 MB


def usage_store(plan: Plan) -> UsageStore | None:
    """Return the store for a Plan's usage: the shared store, or else its file; None if usage is not kept.

    Raises EnvironmentFault if the shared store's TLS files cannot be used.
    """
    url, file = plan.limits.store_url, plan.monitoring.usage_file
    if url is not None:
        return RedisUsage(url, store_tls(url))
    return None if file is None else SqliteUsage(file)


class UsageRecorder:
    """Sums usage and writes it to the store. Each gateway has one recorder; without a store it counts nothing.

    interval  seconds between two batches
    """

    def __init__(
        self, store: UsageStore | None, log: JsonLog, metrics: Metrics, interval: float = USAGE_FLUSH_INTERVAL
    ) -> None:
        self._store = store
        self._log = log
        self._metrics = metrics.usage
        self._interval = interval
        self._sums: dict[UsageKey, UsageSums] = {}
        self._user_sums: dict[UsageKey, UsageSums] = {}
        self._batch: tuple[str, KeptUsage] | None = None
        self._failing = False
        self._closing = asyncio.Event()
        self._idle = asyncio.Event()  # set unless `run` is working
        self._idle.set()

    @property
    def ok(self) -> bool | None:
        """Whether the last batch was written; None without a store."""
        return None if self._store is None else not self._failing

    def settled(self, record: Record, charge: Charge, admitted: float) -> None:
        """Count a request that was settled with `charge`. `admitted` is the time of its admission in POSIX seconds."""
        if self._store is None or not charge.ran:
            return
        key = UsageKey(day_of(admitted), record.key_id or NO_KEY, record.model or "-")
        sums = self._sums.get(key)
        if sums is None:
            if len(self._sums) >= MAX_SUMS:
                self._metrics.lost(1)
                return
            # With auth.enabled: false the user is an address; do not store one, since there may be any number.
            sums = self._sums[key] = UsageSums("-" if key.key_id == NO_KEY else record.user or "-")
        _add(sums, charge, admitted)
        if record.key_user:
            at = UsageKey(key.day, key.key_id, "", record.key_user)
            if at not in self._user_sums and len(self._user_sums) >= MAX_SUMS:
                at = at._replace(user=OTHER_USERS)
            _add(self._user_sums.setdefault(at, UsageSums(sums.name)), charge, admitted)

    async def run(self) -> None:
        """Write batches until `close`. The caller may run this again after an exception."""
        if self._store is None:
            return
        self._idle.clear()
        try:
            while not self._closing.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._closing.wait()
                        return
                await self._flush(self._store)
        finally:
            self._idle.set()

    async def close(self) -> None:
        """End `run`, and write the remaining sums."""
        self._closing.set()
        await self._idle.wait()
        if self._store is not None:
            last = asyncio.create_task(self._flush(self._store), name="usage: the last batch")
            await asyncio.gather(last, return_exceptions=True)  # `_flush` has logged an unexpected exception
            await self._end(self._store)

    async def _flush(self, store: UsageStore) -> None:
        """Add the batch that failed last time, then the new batch; stop at the first failure."""
        while self._batch is not None or self._sums:
            if self._batch is None:
                self._batch = (os.urandom(12).hex(), {**self._sums, **self._user_sums})
                self._sums, self._user_sums = {}, {}
            batch = self._batch
            try:
                await store.add(*batch)
            except UsageStoreError as error:
                self._failed(str(error))
                return
            except Exception as error:
                # A bug in aiaas: retrying this batch would fail again and again, and hold up all later batches.
                self._metrics.written(ok=False)
                self._lose(batch[1], error=repr(error))
                self._batch = None
                raise
            self._batch = None
            self._succeeded()

    async def _end(self, store: UsageStore) -> None:
        left = [self._sums] if self._batch is None else [self._sums, self._batch[1]]
        if any(left):
            self._lose(*left)
        with suppress(UsageStoreError):
            await store.close()

    def _lose(self, *parts: KeptUsage, **why: str) -> None:
        lost = sum(sums.requests for usage in parts for at, sums in usage.items() if not at.user)
        self._metrics.lost(lost)
        self._log.event("error", "usage_lost", requests=lost, **why)

    def _failed(self, reason: str) -> None:
        self._metrics.written(ok=False)
        if not self._failing:
            self._failing = True
            self._log.event("error", "usage_not_written", error=reason, hint="usage is kept in memory and retried")

    def _succeeded(self) -> None:
        self._metrics.written(ok=True)
        if self._failing:
            self._failing = False
            self._log.event("info", "usage_written_again")


def _add(sums: UsageSums, charge: Charge, admitted: float) -> None:
    """Add a request to the sums."""
    sums.requests += 1
    sums.last_used = max(sums.last_used, int(admitted))
    if charge.estimated:
        sums.estimated_input_tokens += charge.input_tokens
        sums.estimated_output_tokens += charge.output_tokens
    else:
        sums.input_tokens += charge.input_tokens
        sums.output_tokens += charge.output_tokens
