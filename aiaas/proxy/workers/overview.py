"""The admin port of a gateway of several workers: ask all of them, and answer as one (`admin/merge.py`).

A worker that does not answer within LOOK_PATIENCE seconds, or ends meanwhile, is left out: `workers_up` counts the
others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeVar

import msgspec

from aiaas.proxy.admin.attention import attention
from aiaas.proxy.admin.figures import Figures
from aiaas.proxy.admin.merge import merged_status
from aiaas.proxy.admin.model import Status
from aiaas.proxy.admin.port import Query
from aiaas.proxy.admin.rows import Rows, encoded_rows, merged
from aiaas.proxy.workers.merge import Sums
from aiaas.proxy.workers.process import WorkerProcess

LOOK_PATIENCE: Final = 1.0

_STATUS: Final = msgspec.msgpack.Decoder(Status)
_ROWS: Final = msgspec.msgpack.Decoder(Rows)
_T = TypeVar("_T")


class Overview:
    """Answers for all workers, as a Source of the admin port.

    workers  the processes that run now
    sums     asks all of them for their metrics
    base     the status as far as the supervisor itself knows it
    """

    def __init__(
        self,
        workers: Callable[[], Collection[WorkerProcess]],
        sums: Callable[[], Awaitable[Sums]],
        base: Callable[[], Status],
    ) -> None:
        self._workers = workers
        self._sums = sums
        self._base = base

    async def status(self) -> bytes:
        """The answer of `/status`."""
        sums, statuses = await asyncio.gather(self._sums(), self._ask("status", Query(), _STATUS))
        whole = merged_status(self._base(), statuses, Figures(sums.families()))
        whole.attention = attention(whole)
        return msgspec.json.encode(whole)

    async def requests(self, query: Query) -> bytes:
        """The answer of `/requests`."""
        return await self._rows("requests", query)

    async def refusals(self, query: Query) -> bytes:
        """The answer of `/refusals`."""
        return await self._rows("refusals", query)

    async def _rows(self, what: str, query: Query) -> bytes:
        empty = Rows({"live": [], "ended": []}) if what == "requests" else Rows({"refusals": []}, {})
        found = [empty, *await self._ask(what, query, _ROWS)]
        return await asyncio.to_thread(lambda: encoded_rows(merged(found, query.limit)))

    async def _ask(self, what: str, query: Query, decoder: msgspec.msgpack.Decoder[_T]) -> list[_T]:
        workers = [worker for worker in self._workers() if worker.serving.is_set()]
        looks = [asyncio.create_task(worker.look(what, query), name=f"look at {worker.number}") for worker in workers]
        if looks:
            _, late = await asyncio.wait(looks, timeout=LOOK_PATIENCE)
            for look in late:
                look.cancel()
        answers = await asyncio.gather(*looks, return_exceptions=True)
        return [decoder.decode(answer) for answer in answers if isinstance(answer, msgspec.Raw)]
