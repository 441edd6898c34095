"""Run the handler of one request: in the read callback for as long as it does not wait, then in a task.

A task costs 50,000 instructions: to make it, its turns of the loop, the futures that it waits for. But nearly every
request waits only once, for its answer. So a handler is a coroutine that is driven by what it waits for:

    a Pause (the relay of its answer)    it runs on where the Pause ends, inside of that call
    anything else (a future, a sleep)    it runs on in a task of its own, until its end

Cancelling raises CancelledError where the handler waits, in both cases.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from inspect import CORO_CLOSED, getcoroutinestate
from types import coroutine
from typing import Any, Generic, TypeVar

ResultT = TypeVar("ResultT")
Ended = Callable[[ResultT | None, BaseException | None], None]


class Pause:
    """Something that one handler waits for without a task: `await` it. Its owner calls `go_on` once."""

    _wake: Callable[[], object] | None = None

    def __await__(self) -> Generator[Pause, None, Any]:
        """Wait until `go_on`."""
        yield self

    def go_on(self, _: object = None) -> None:
        """End the wait: the handler runs on inside of this call. Does nothing if nobody waits."""
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def wakes(self, wake: Callable[[], object] | None) -> None:
        """Have `go_on` call `wake`; None: nobody waits any more."""
        self._wake = wake


class HandlerRun(Generic[ResultT]):
    """One run of a handler. Calls `ended` once: with its result and None, or with None and its exception."""

    __slots__ = ("_ended", "_loop", "_pause", "_task", "_work")

    def __init__(
        self, work: Coroutine[Any, Any, ResultT], loop: asyncio.AbstractEventLoop, ended: Ended[ResultT]
    ) -> None:
        self._work = work
        self._loop = loop
        self._ended = ended
        self._pause: Pause | None = None
        self._task: asyncio.Task[ResultT] | None = None

    @property
    def has_task(self) -> bool:
        """Whether it runs in a task of its own."""
        return self._task is not None

    def step(self, error: BaseException | None = None) -> None:
        """Run until it waits or ends. `error` is raised where it waits now."""
        self._pause = None
        work = self._work
        result: ResultT | None = None
        try:
            awaited = work.send(None) if error is None else work.throw(error)
        except StopIteration as end:
            result, error = end.value, None
        except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  `ended` answers with it
            error = failure
        else:
            if isinstance(awaited, Pause):
                self._pause = awaited
                awaited.wakes(self.step)
            else:
                self._task = self._loop.create_task(_in_task(work, awaited), name="request")
                self._task.add_done_callback(self._task_ended)
            del error
            return
        try:
            self._ended(result, error)
        finally:
            del error  # its traceback refers to this frame: a cycle would keep the connection for the collector

    def cancel(self) -> None:
        """Raise CancelledError where it waits. Does nothing after its end."""
        if self._task is not None:
            self._task.cancel()
        elif self._pause is not None:
            self._pause.wakes(None)
            self.step(asyncio.CancelledError())
        elif getcoroutinestate(self._work) != CORO_CLOSED:  # it runs just now, and is what calls this
            self._loop.call_soon(self.cancel)

    def _task_ended(self, task: asyncio.Task[ResultT]) -> None:
        if getcoroutinestate(self._work) != CORO_CLOSED:  # cancelled before its task began
            self._task = None
            self.step(asyncio.CancelledError())
        elif task.cancelled():
            self._ended(None, asyncio.CancelledError())
        else:
            error = task.exception()
            self._ended(task.result() if error is None else None, error)


@coroutine
def in_task(handler: HandlerRun[Any] | None) -> Generator[None, None, None]:
    """Wait until the handler runs in a task of its own, which `asyncio.timeout` needs. None: it does already."""
    if handler is not None and not handler.has_task:
        yield


async def with_pauses(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run `work`, which may wait for a Pause, in the task that awaits this."""
    return await _rest(work, None)


async def result_by(
    until: float, work: Coroutine[Any, Any, ResultT], unused: Callable[[ResultT], object] | None = None
) -> ResultT:
    """Run `work` in a task, and wait for it as for a Pause: a handler needs no task of its own for that.

    At `until`, the loop's time, `work` is cancelled and TimeoutError raised. `unused` gets a result that came in the
    moment in which the handler was cancelled.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    pause = Pause()
    task.add_done_callback(pause.go_on)
    timer = loop.call_at(until, task.cancel)
    try:
        await pause
    except asyncio.CancelledError:
        if not task.cancel() and not task.cancelled() and task.exception() is None and unused is not None:
            unused(task.result())
        raise
    finally:
        timer.cancel()
    try:
        if task.cancelled():
            raise TimeoutError
        return task.result()
    finally:
        del task  # it keeps the exception, whose traceback refers to this frame


async def _in_task(work: Coroutine[Any, Any, ResultT], awaited: Any) -> ResultT:
    """Run the rest of `work`, which waits for `awaited`."""
    return await _rest(work, awaited)


@coroutine
def _rest(work: Coroutine[Any, Any, ResultT], awaited: Any) -> Generator[Any, None, ResultT]:
    error: BaseException | None = None
    while True:
        try:
            if isinstance(awaited, Pause):
                yield from _end_of(awaited)
            else:
                yield awaited  # a future that `work` has begun to wait for, or None for a turn of the loop
        except BaseException as failure:  # noqa: BLE001  `work` gets it
            error = failure
        try:
            awaited = work.send(None) if error is None else work.throw(error)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            error = None  # its traceback refers to this frame


def _end_of(pause: Pause) -> asyncio.Future[None]:
    ended = asyncio.get_running_loop().create_future()
    pause.wakes(partial(_end, ended))
    return ended


def _end(wait: asyncio.Future[None]) -> None:
    if not wait.done():
        wait.set_result(None)
