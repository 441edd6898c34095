"""aiaas.proxy.client.handler: a handler runs where it is woken, and in a task once it waits for more than a Pause."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from aiaas.proxy.client.handler import HandlerRun, Pause, in_task, result_by, with_pauses
from tests.proxy.loops import both_loops
from tests.waiting import until

Ends = list[tuple[Any, BaseException | None]]


event_loop_policy = both_loops


class Waits:
    """The waits of a handler, and how to end each of them."""

    def __init__(self) -> None:
        self.pause = Pause()
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.log: list[str] = []
        self.run: HandlerRun[Any] | None = None

    async def at_pause(self) -> None:
        """Without a task."""
        await self.pause

    async def at_future(self) -> None:
        """In a task."""
        await self.future

    async def at_turn(self) -> None:
        """In a task, for one turn of the loop."""
        await asyncio.sleep(0)

    async def at_in_task(self) -> None:
        """Likewise, for the task itself."""
        await in_task(self.run)

    async def at_pause_in_task(self) -> None:
        """For a Pause, once it has a task."""
        await in_task(self.run)
        await self.pause


def started(work: Coroutine[Any, Any, Any], waits: Waits | None = None) -> tuple[HandlerRun[Any], Ends]:
    """A run after its first step, and what it tells at its end."""
    ends: Ends = []
    run = HandlerRun(work, asyncio.get_running_loop(), lambda result, error: ends.append((result, error)))
    if waits is not None:
        waits.run = run
    run.step()
    return run, ends


def only_error(ends: Ends, kind: type[BaseException]) -> BaseException:
    """The error of a run that ended once, without a result."""
    ((result, error),) = ends
    assert result is None
    assert type(error) is kind
    return error


async def answered(waits: Waits, wait: Callable[[], Awaitable[None]]) -> str:
    """A handler that waits once."""
    waits.log.append("begun")
    try:
        await wait()
        return "answer"
    finally:
        waits.log.append("cleaned up")


# -- without waiting -----------------------------------------------------------------------------------------------


async def test_handler_that_never_waits_ends_in_its_first_step() -> None:
    """No task, and no turn of the loop."""

    async def work() -> str:
        return "answer"

    run, ends = started(work())
    assert ends == [("answer", None)]
    assert not run.has_task


async def test_exception_without_waiting_is_handed_over() -> None:
    """To `ended`, and not to the caller of `step`."""

    async def work() -> str:
        raise ValueError("broken")

    _, ends = started(work())
    assert str(only_error(ends, ValueError)) == "broken"


# -- a Pause -------------------------------------------------------------------------------------------------------


async def test_end_of_a_pause_runs_the_handler_inside_go_on() -> None:
    """Also for the second Pause, and all of it without a task."""
    first, second = Pause(), Pause()

    async def work() -> str:
        await first
        await second
        return "answer"

    run, ends = started(work())
    second.go_on()
    assert not ends
    first.go_on()
    assert not ends
    second.go_on()
    assert ends == [("answer", None)]
    assert not run.has_task


async def test_exception_behind_a_pause_is_handed_over() -> None:
    """`go_on` does not raise it: its caller is the relay, in the middle of a read."""
    pause = Pause()

    async def work() -> None:
        await pause
        raise ValueError

    _, ends = started(work())
    pause.go_on()
    only_error(ends, ValueError)


async def test_pause_that_ends_twice_wakes_once() -> None:
    """The second `go_on` does not end a later wait for something else."""
    first, second = Pause(), Pause()

    async def work() -> str:
        await first
        await second
        return "answer"

    _, ends = started(work())
    first.go_on()
    first.go_on()
    assert not ends
    second.go_on()
    assert ends == [("answer", None)]


async def test_pause_without_a_waiter_goes_on_without_effect() -> None:
    """The relay's end may come before anybody waits."""
    Pause().go_on()


# -- in a task -----------------------------------------------------------------------------------------------------


async def test_wait_for_a_future_moves_the_handler_into_a_task() -> None:
    """The task waits for the future that the handler waited for, and hands its result back."""
    waits = Waits()
    run, ends = started(answered(waits, waits.at_future), waits)
    assert run.has_task
    assert not ends
    waits.future.set_result(None)
    await until(lambda: ends)
    assert ends == [("answer", None)]


@pytest.mark.parametrize("early", [True, False], ids=["before the task's first step", "later"])
async def test_exception_of_a_future_reaches_the_handler(early: bool) -> None:
    """Raised where it waits."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> str:
        try:
            await future
        except ValueError:
            return "answer"
        raise AssertionError

    _, ends = started(work())
    if not early:
        await asyncio.sleep(0)
    future.set_exception(ValueError())
    await until(lambda: ends)
    assert ends == [("answer", None)]


async def test_exception_in_a_task_is_handed_over() -> None:
    """As one without a task."""

    async def work() -> None:
        await asyncio.sleep(0)
        raise ValueError

    _, ends = started(work())
    await until(lambda: ends)
    only_error(ends, ValueError)


async def test_turns_of_the_loop_pass_in_a_task() -> None:
    """`asyncio.sleep(0)` is a bare yield, which has no future."""
    turns: list[asyncio.Task[Any] | None] = []

    async def work() -> str:
        for _ in range(3):
            await asyncio.sleep(0)
            turns.append(asyncio.current_task())
        return "answer"

    run, ends = started(work())
    assert run.has_task
    assert turns == []
    await until(lambda: ends)
    assert ends == [("answer", None)]
    assert len(set(turns)) == 1
    assert None not in turns


async def test_pause_in_a_task_ends_with_go_on() -> None:
    """The task goes on in a turn of its own; a second `go_on` changes nothing."""
    waits = Waits()
    _, ends = started(answered(waits, waits.at_pause_in_task), waits)
    await until(lambda: waits.pause._wake)
    waits.pause.go_on()
    waits.pause.go_on()
    assert not ends
    await until(lambda: ends)
    assert ends == [("answer", None)]


async def test_two_ends_of_a_pause_in_a_task_in_one_turn_pass() -> None:
    """A Pause may be given another waker between its ends; the first wait is over only once."""
    waits = Waits()
    _, ends = started(answered(waits, waits.at_pause_in_task), waits)
    await until(lambda: waits.pause._wake)
    wake = waits.pause._wake
    assert wake is not None
    wake()
    wake()
    await until(lambda: ends)
    assert ends == [("answer", None)]


async def test_timeout_behind_in_task_expires() -> None:
    """`asyncio.timeout` needs a task that it can cancel; it bounds the wait for a Pause, too."""
    waits = Waits()

    async def work() -> str:
        await in_task(waits.run)
        try:
            async with asyncio.timeout(0):
                await waits.pause
        except TimeoutError:
            return "too late"
        raise AssertionError

    _, ends = started(work(), waits)
    await until(lambda: ends)
    assert ends == [("too late", None)]
    waits.pause.go_on()


async def test_in_task_does_not_wait_in_a_task() -> None:
    """Neither a second time, nor where no handler is run (None)."""
    waits = Waits()
    turns = 0

    async def work() -> int:
        await in_task(waits.run)
        now = turns
        await in_task(waits.run)
        await in_task(None)
        return turns - now

    _, ends = started(work(), waits)
    while not ends:
        await asyncio.sleep(0)
        turns += 1
    assert ends == [(0, None)]


# -- cancelling ----------------------------------------------------------------------------------------------------

WAITS = ["at_pause", "at_future", "at_turn", "at_in_task"]


async def test_cancel_at_a_pause_raises_there_at_once() -> None:
    """Inside of `cancel`; the Pause's end wakes nobody afterwards."""
    waits = Waits()
    run, ends = started(answered(waits, waits.at_pause), waits)
    run.cancel()
    only_error(ends, asyncio.CancelledError)
    assert waits.log == ["begun", "cleaned up"]
    waits.pause.go_on()
    assert len(ends) == 1


@pytest.mark.parametrize("wait", ["at_future", "at_pause_in_task"])
async def test_cancel_in_a_task_raises_where_it_waits(wait: str) -> None:
    """Also at a Pause, whose end wakes nobody afterwards."""
    waits = Waits()
    run, ends = started(answered(waits, getattr(waits, wait)), waits)
    for _ in range(5):
        await asyncio.sleep(0)
    run.cancel()
    await until(lambda: ends)
    only_error(ends, asyncio.CancelledError)
    assert waits.log == ["begun", "cleaned up"]
    waits.pause.go_on()
    assert len(ends) == 1


@pytest.mark.parametrize("wait", WAITS[1:])
async def test_cancel_before_the_tasks_first_step_cleans_up(wait: str) -> None:
    """asyncio drops a task's coroutine that has not begun, but the handler has."""
    waits = Waits()
    run, ends = started(answered(waits, getattr(waits, wait)), waits)
    assert run.has_task
    run.cancel()
    await until(lambda: ends)
    only_error(ends, asyncio.CancelledError)
    assert waits.log == ["begun", "cleaned up"]


async def test_cleanup_before_the_tasks_first_step_may_wait() -> None:
    """It gets a task of its own, in which `asyncio.timeout` works."""
    waits = Waits()

    async def work() -> None:
        try:
            await waits.future
        finally:
            await in_task(waits.run)
            async with asyncio.timeout(10):
                await asyncio.sleep(0)
            waits.log.append("cleaned up")

    run, ends = started(work(), waits)
    run.cancel()
    await until(lambda: ends)
    only_error(ends, asyncio.CancelledError)
    assert waits.log == ["cleaned up"]


@pytest.mark.parametrize("wait", WAITS)
async def test_handler_that_cancels_itself_ends_at_its_next_wait(wait: str) -> None:
    """As a relay may, whose client's transport fails while it writes: nothing can be raised into a running frame."""
    waits = Waits()

    async def work() -> str:
        assert waits.run is not None
        waits.run.cancel()
        waits.log.append("goes on")
        return await answered(waits, waits.at_future if wait == "at_turn" else getattr(waits, wait))

    _, ends = started(work(), waits)
    assert waits.log[:2] == ["goes on", "begun"]
    await until(lambda: ends)
    only_error(ends, asyncio.CancelledError)
    assert waits.log[2:] == ["cleaned up"]


async def test_handler_that_cancels_itself_in_a_task_ends_there() -> None:
    """At its next wait."""
    waits = Waits()

    async def work() -> str:
        await in_task(waits.run)
        assert waits.run is not None
        waits.run.cancel()
        return await answered(waits, waits.at_future)

    _, ends = started(work(), waits)
    await until(lambda: ends)
    only_error(ends, asyncio.CancelledError)
    assert waits.log == ["begun", "cleaned up"]


async def test_handler_that_cancels_itself_and_ends_has_its_result() -> None:
    """The late cancel finds nothing to cancel."""
    waits = Waits()

    async def work() -> str:
        assert waits.run is not None
        waits.run.cancel()
        return "answer"

    _, ends = started(work(), waits)
    assert ends == [("answer", None)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(ends) == 1


@pytest.mark.parametrize("wait", [*WAITS, "at_pause_in_task"])
async def test_cancel_after_the_end_changes_nothing(wait: str) -> None:
    """However the handler ran."""
    waits = Waits()
    run, ends = started(answered(waits, getattr(waits, wait)), waits)
    while not ends:
        waits.pause.go_on()
        if not waits.future.done():
            waits.future.set_result(None)
        await asyncio.sleep(0)
    for _ in range(3):
        run.cancel()
        await asyncio.sleep(0)
    assert ends == [("answer", None)]


@pytest.mark.parametrize("wait", [*WAITS, "at_pause_in_task"])
async def test_cancel_twice_ends_once(wait: str) -> None:
    """The client's end and the drain's deadline may come in one turn."""
    waits = Waits()
    run, ends = started(answered(waits, getattr(waits, wait)), waits)
    run.cancel()
    run.cancel()
    await until(lambda: ends)
    for _ in range(5):
        await asyncio.sleep(0)
    only_error(ends, asyncio.CancelledError)
    assert waits.log == ["begun", "cleaned up"]


@pytest.mark.parametrize("early", [True, False], ids=["at once", "after some turns"])
@pytest.mark.parametrize("wait", ["at_pause", "at_future", "at_in_task", "at_pause_in_task"])
async def test_handler_that_swallows_a_cancel_answers(wait: str, early: bool) -> None:
    """As a request that draining ends with a 503."""
    waits = Waits()

    async def work() -> str:
        try:
            await getattr(waits, wait)()
            await waits.future
        except asyncio.CancelledError:
            return "answer"
        raise AssertionError

    run, ends = started(work(), waits)
    for _ in range(0 if early else 5):
        await asyncio.sleep(0)
    run.cancel()
    await until(lambda: ends)
    assert ends == [("answer", None)]


@pytest.mark.parametrize("wait", ["at_pause", "at_future", "at_in_task"])
async def test_handler_that_swallows_a_cancel_waits_again(wait: str) -> None:
    """And can be cancelled again."""
    waits = Waits()
    later = Pause()

    async def work() -> None:
        try:
            await getattr(waits, wait)()
            await waits.future
        except asyncio.CancelledError:
            waits.log.append("swallowed")
        await later

    run, ends = started(work(), waits)
    run.cancel()
    await until(lambda: later._wake)
    assert not ends
    run.cancel()
    await until(lambda: ends)
    only_error(ends, asyncio.CancelledError)
    assert waits.log == ["swallowed"]


# -- the end -------------------------------------------------------------------------------------------------------


def failing(calls: list[str]) -> Callable[[Any, BaseException | None], None]:
    """An `ended` that fails."""

    def ended(_result: Any, _error: BaseException | None) -> None:
        calls.append("ended")
        raise LookupError("of `ended`")

    return ended


@pytest.mark.parametrize("error", [None, ValueError()], ids=["result", "exception"])
async def test_exception_in_ended_reaches_who_stepped(error: Exception | None) -> None:
    """It is not taken for the handler's own, and `ended` is called once."""
    pause = Pause()
    calls: list[str] = []

    async def work() -> None:
        await pause
        if error is not None:
            raise error

    run = HandlerRun(work(), asyncio.get_running_loop(), failing(calls))
    run.step()
    with pytest.raises(LookupError):
        pause.go_on()
    run.cancel()
    assert calls == ["ended"]


async def test_exception_in_ended_of_a_task_reaches_the_loop() -> None:
    """Nobody else is there to take it."""
    loop = asyncio.get_running_loop()
    faults: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: faults.append(context))
    calls: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)

    HandlerRun(work(), loop, failing(calls)).step()
    await until(lambda: faults)
    loop.set_exception_handler(None)
    assert calls == ["ended"]
    assert isinstance(faults[0]["exception"], LookupError)


def test_loop_that_closes_ends_handlers_in_tasks(event_loop_policy: asyncio.AbstractEventLoopPolicy) -> None:
    """`asyncio.Runner` cancels all tasks; one that has not begun cleans up, too."""
    kept: list[tuple[Waits, Ends]] = []

    async def main() -> None:
        for wait in ("at_future", "at_pause_in_task"):
            waits = Waits()
            kept.append((waits, started(answered(waits, getattr(waits, wait)), waits)[1]))
        for _ in range(5):
            await asyncio.sleep(0)
        waits = Waits()
        kept.append((waits, started(answered(waits, waits.at_future), waits)[1]))

    with asyncio.Runner(loop_factory=event_loop_policy.new_event_loop) as runner:
        runner.run(main())
    for waits, ends in kept:
        only_error(ends, asyncio.CancelledError)
        assert waits.log == ["begun", "cleaned up"]


def test_closed_loop_leaves_a_paused_handler_to_clean_up(event_loop_policy: asyncio.AbstractEventLoopPolicy) -> None:
    """With GeneratorExit, as soon as nobody knows it any more; nobody is told of an end."""
    log: list[str] = []

    async def main() -> Ends:
        waits = Waits()
        waits.log = log
        _, ends = started(answered(waits, waits.at_pause), None)
        return ends

    with asyncio.Runner(loop_factory=event_loop_policy.new_event_loop) as runner:
        ends = runner.run(main())
    gc.collect()
    assert log == ["begun", "cleaned up"]
    assert not ends


async def test_closed_task_closes_the_handler() -> None:
    """The GeneratorExit of a dropped task passes through."""
    waits = Waits()
    _, ends = started(answered(waits, waits.at_future), waits)
    await asyncio.sleep(0)
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "request"]
    coroutine = task.get_coro()
    assert isinstance(coroutine, Coroutine)
    coroutine.close()
    assert waits.log == ["begun", "cleaned up"]
    task.cancel()
    await until(lambda: ends)
    assert len(ends) == 1


# -- what is left --------------------------------------------------------------------------------------------------


class Held:
    """Something large that a handler, or its connection, refers to."""


async def ending(held: Held, waits: Waits, wait: str, end: str) -> Held | None:
    """A handler that waits in one way and ends in another."""
    try:
        if wait != "nothing":
            await getattr(waits, wait)()
        if "cancel" in end:
            await waits.pause
        elif end == "timeout":
            await in_task(waits.run)
            async with asyncio.timeout(0):
                await Pause()
    except (TimeoutError, asyncio.CancelledError):
        if end in ("cancel", "early cancel"):
            raise
    if end == "exception":
        raise ValueError(held)
    return None


def begun(wait: str, end: str, ends: list[bool]) -> tuple[list[weakref.ref[Held]], Callable[[], None]]:
    """Begin such a handler. Returns what must be gone after its end, and how to bring the end about."""
    waits, held, connection = Waits(), Held(), Held()
    gone = [weakref.ref(held), weakref.ref(connection)]
    loop = asyncio.get_running_loop()
    run = HandlerRun(ending(held, waits, wait, end), loop, lambda _r, _e, _of=connection: ends.append(True))
    waits.run = run
    run.step()

    def wake() -> None:
        if ends:
            waits.run = None
        elif "cancel" in end:
            run.cancel()
        else:
            waits.pause.go_on()
            if not waits.future.done():
                waits.future.set_result(None)

    return gone, wake


@pytest.mark.parametrize("end", ["result", "exception", "cancel", "early cancel", "swallowed cancel", "timeout"])
@pytest.mark.parametrize("wait", ["nothing", "at_pause", "at_future", "at_in_task", "at_pause_in_task"])
async def test_end_leaves_nothing_to_the_collector(wait: str, end: str) -> None:
    """The buffers of a TLS connection go with it: no traceback, task or Pause keeps the handler or its connection."""
    ends: list[bool] = []
    gc.collect()
    gc.disable()
    try:
        gone, wake = begun(wait, end, ends)
        for _ in range(5 if end == "cancel" else 0):
            await asyncio.sleep(0)
        while not ends:
            wake()
            await asyncio.sleep(0)
        wake()
        del wake
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [held() for held in gone] == [None, None]
    finally:
        gc.enable()
    assert ends == [True]


# -- work in a task of its own -------------------------------------------------------------------------------------


def soon(seconds: float = 30.0) -> float:
    return asyncio.get_running_loop().time() + seconds


@pytest.mark.parametrize("fails", [False, True], ids=["result", "exception"])
async def test_result_by_needs_no_task_of_the_handler(fails: bool) -> None:
    """The work has one, and its result or exception reaches the handler."""
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    lost = OSError("lost")

    async def work() -> str:
        return await future

    run, ends = started(result_by(soon(), work()))
    await asyncio.sleep(0)
    assert not run.has_task
    if fails:
        future.set_exception(lost)
    else:
        future.set_result("done")
    await until(lambda: bool(ends))
    assert not run.has_task
    assert ends == [(None, lost) if fails else ("done", None)]


async def test_result_by_ends_at_its_time() -> None:
    """The work is cancelled, and the handler gets TimeoutError and not CancelledError."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await future

    _, ends = started(result_by(soon(0.01), work()))
    await until(lambda: bool(ends))
    assert isinstance(ends[0][1], TimeoutError)
    assert future.cancelled()


async def test_result_by_that_is_cancelled_cancels_the_work() -> None:
    """In a handler as in a task."""
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[None]] = [loop.create_future(), loop.create_future()]

    async def work(future: asyncio.Future[None]) -> None:
        await future

    run, ends = started(result_by(soon(), work(futures[0])))
    task = asyncio.create_task(with_pauses(result_by(soon(), work(futures[1]))))
    for _ in range(5):
        await asyncio.sleep(0)
    run.cancel()
    task.cancel()
    await asyncio.wait([task])
    assert isinstance(ends[0][1], asyncio.CancelledError)
    assert task.cancelled()
    await until(lambda: all(future.cancelled() for future in futures))


@pytest.mark.parametrize("fails", [False, True], ids=["result", "exception"])
async def test_result_that_comes_with_the_cancel(fails: bool) -> None:
    """A result that nobody gets any more goes to `unused`; an exception is not logged as never retrieved."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["message"]))
    unused: list[str] = []
    over = False

    async def work() -> str:
        nonlocal over
        over = True
        if fails:
            raise OSError("lost")
        return "a connection"

    run, ends = started(result_by(soon(), work(), unused.append))
    asyncio.get_running_loop().call_soon(run.cancel)  # behind the work, before its end is told
    await until(lambda: bool(ends))
    gc.collect()
    assert over
    assert isinstance(ends[0][1], asyncio.CancelledError)
    assert (unused, told) == ([] if fails else ["a connection"], [])
