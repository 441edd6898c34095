"""The batch, the queue and the clock, on a loop whose time is the test's."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

import pytest

from aiaas.simulator.engine import STEPS_A_TURN, EngineFullError, Generation, SimulatedEngine
from aiaas.simulator.generate import SimulatedChoice, make_pace
from aiaas.simulator.metrics import SimulatorMetrics


class Clock:
    """An event loop's time and timers, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self)  # type: ignore[arg-type]
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle, callback, args))
        return handle

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def advance(self, seconds: float) -> None:
        """Run everything that is due, at its due time."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, handle, callback, args = heapq.heappop(self._timers)
            self.now = max(self.now, when)
            if not handle.cancelled():
                callback(*args)
        self.now = end

    def oversleep(self, seconds: float) -> None:
        """Let time pass without running anything: the process had no CPU."""
        self.now += seconds
        self.advance(0)


class Ear:
    """A listener that records its calls, and may act at a step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.heard: list[tuple[float, int, int]] = []
        self.ended = False
        self.at_step: Callable[[], None] = lambda: None

    def on_steps(self, first: int, last: int) -> None:
        self.heard.append((round(self.clock.now - 1000, 6), first, last))
        self.at_step()

    def on_end(self) -> None:
        self.ended = True


class Bench:
    """An engine on a clock."""

    def __init__(
        self, max_num_seqs: int = 2, max_num_queued_reqs: int | None = None, *, by_priority: bool = False
    ) -> None:
        self.clock = Clock()
        self.metrics = SimulatorMetrics("m")
        self.engine = SimulatedEngine(
            self.clock,  # type: ignore[arg-type]
            self.metrics,
            max_num_seqs,
            max_num_queued_reqs,
            by_priority=by_priority,
        )

    def submit(self, *lengths: int, ttft: float = 0.1, itl: float = 0.01, priority: int = 0) -> tuple[Generation, Ear]:
        ear = Ear(self.clock)
        choices = tuple(SimulatedChoice(("x",) * length, "length") for length in lengths)
        generation = Generation(choices, 7, make_pace(max(lengths), ttft, itl, 0, 0), ear, priority)
        self.engine.submit(generation)
        return generation, ear

    def metric(self, name: str) -> float:
        lines = self.metrics.render(self.engine).decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((name + "{", name + " ")))


def test_tokens_come_at_ttft_and_then_each_itl() -> None:
    """No step before its deadline, none after."""
    bench = Bench()
    _, ear = bench.submit(3)
    bench.clock.advance(1)
    assert ear.heard == [(0.1, 0, 1), (0.11, 1, 2), (0.12, 2, 3)]
    assert ear.ended


def test_a_late_step_does_not_delay_the_next() -> None:
    """After 25 ms without CPU the overdue steps come together, and the next one at its own time."""
    bench = Bench()
    _, ear = bench.submit(6)
    bench.clock.advance(0.1)
    bench.clock.oversleep(0.025)
    bench.clock.advance(1)
    assert ear.heard == [(0.1, 0, 1), (0.125, 1, 3), (0.13, 3, 4), (0.14, 4, 5), (0.15, 5, 6)]


def test_a_turn_is_bounded() -> None:
    """With itl 0 a long answer lets others have their turn."""
    bench = Bench()
    _, ear = bench.submit(STEPS_A_TURN + 1, itl=0)
    bench.clock.advance(1)
    assert [(first, last) for _, first, last in ear.heard] == [(0, STEPS_A_TURN), (STEPS_A_TURN, STEPS_A_TURN + 1)]


def test_jobs_beyond_the_batch_wait_in_order() -> None:
    """The third begins when the first two have ended, and its clock starts then."""
    bench = Bench(max_num_seqs=2)
    _, one = bench.submit(1)
    _, two = bench.submit(2)
    _, three = bench.submit(1)
    _, four = bench.submit(1)
    assert (bench.engine.running, bench.engine.waiting) == (2, 2)
    bench.clock.advance(1)
    assert [ear.heard[-1][0] for ear in (one, two, three, four)] == [0.1, 0.11, 0.2, 0.21]
    assert (bench.engine.running, bench.engine.waiting, bench.engine.finished) == (0, 0, 4)


def test_n_answers_take_n_places_and_advance_together() -> None:
    """A shorter choice ends earlier; tokens are counted for each."""
    bench = Bench(max_num_seqs=3)
    _, ear = bench.submit(1, 3)
    bench.submit(1, 1)
    assert (bench.engine.running, bench.engine.waiting) == (2, 2)
    bench.clock.advance(0.12)
    assert [(first, last) for _, first, last in ear.heard] == [(0, 1), (1, 2), (2, 3)]
    assert bench.engine.generated_tokens == 4


def test_one_too_big_for_the_batch_runs_alone() -> None:
    """Otherwise it would never run."""
    bench = Bench(max_num_seqs=2)
    _, ear = bench.submit(1, 1, 1)
    bench.clock.advance(1)
    assert ear.ended


@pytest.mark.parametrize("phase", [0.0, 0.05, 0.105, 0.5], ids=["queued", "before a token", "mid-answer", "ended"])
def test_an_abort_frees_its_place_in_any_phase(phase: float) -> None:
    """The next one begins at once; the aborted one is silent; aborting twice is the same as once."""
    bench = Bench(max_num_seqs=1)
    if phase == 0.0:
        bench.submit(1)
    aborted, ear = bench.submit(3)
    _, behind = bench.submit(1)
    bench.clock.advance(phase)
    heard, was_over = len(ear.heard), ear.ended
    bench.engine.abort(aborted)
    bench.engine.abort(aborted)
    bench.clock.advance(1)
    assert len(ear.heard) == heard
    assert behind.ended
    assert (bench.engine.running, bench.engine.waiting) == (0, 0)
    assert bench.engine.aborted == (0 if was_over else 1)


def test_an_abort_counts_as_no_success() -> None:
    """As in vLLM, only the running gauge shows it."""
    bench = Bench()
    generation, _ = bench.submit(3)
    bench.clock.advance(0.105)
    assert bench.metric("vllm:num_requests_running") == 1
    bench.engine.abort(generation)
    bench.clock.advance(1)
    assert bench.metric("vllm:num_requests_running") == 0
    assert bench.metric("vllm:request_success_total") == 0
    assert bench.metric("vllm:generation_tokens_total") == 1


def test_a_listener_may_abort_or_freeze_at_its_last_step() -> None:
    """An aborted one reports no end, and a frozen one keeps its place."""
    for act, running in (("abort", 0), ("freeze", 1)):
        bench = Bench()
        generation, ear = bench.submit(2)
        ear.at_step = lambda act=act, bench=bench, generation=generation: getattr(bench.engine, act)(generation)  # type: ignore[misc]
        bench.clock.advance(1)
        assert len(ear.heard) == 1
        assert not ear.ended
        assert bench.engine.running == running


def test_a_frozen_engine_generates_nothing_and_admits_nobody() -> None:
    """As after SIGTERM."""
    bench = Bench(max_num_seqs=1)
    _, one = bench.submit(5)
    bench.clock.advance(0.105)
    bench.engine.freeze_all()
    _, two = bench.submit(1)
    bench.clock.advance(1)
    assert len(one.heard) == 1
    assert two.heard == []
    assert bench.engine.waiting == 1


@pytest.mark.parametrize(("by_priority", "order"), [(False, "abcd"), (True, "cabd")])
def test_lowest_priority_goes_first_where_it_counts(by_priority: bool, order: str) -> None:
    """Equals go in the order of their arrival; a running one is not disturbed."""
    bench = Bench(max_num_seqs=1, by_priority=by_priority)
    _, running = bench.submit(1, priority=99)
    ears = {name: bench.submit(1, priority=priority)[1] for name, priority in zip("abcd", (0, 0, -5, 7), strict=True)}
    bench.clock.advance(1)
    assert running.heard[0][0] == 0.1
    assert "".join(sorted(ears, key=lambda name: ears[name].heard[0][0])) == order


def test_bound_counts_running_waiting_and_new_answers() -> None:
    """max_num_queued_reqs 3: one runs, one waits; two answers more are one too many, one is not."""
    bench = Bench(max_num_seqs=1, max_num_queued_reqs=3)
    bench.submit(1)
    bench.submit(1)
    with pytest.raises(EngineFullError):
        bench.submit(1, 1)
    bench.submit(1)
    with pytest.raises(EngineFullError):
        bench.submit(1)
    assert bench.metric("vllm:admission_rejections_total") == 2


def test_metrics_add_up() -> None:
    """Prompt tokens at the beginning, tokens as they come, the reason and the histograms at the end."""
    bench = Bench()
    bench.submit(4)
    assert bench.metric("vllm:prompt_tokens_total") == 7
    bench.clock.advance(1)
    assert bench.metric("vllm:generation_tokens_total") == 4
    assert bench.metric("vllm:request_success_total") == 1
    assert bench.metric("vllm:time_to_first_token_seconds_count") == 1
    assert bench.metric("vllm:inter_token_latency_seconds_count") == 3
    assert bench.metric("vllm:e2e_request_latency_seconds_sum") == pytest.approx(0.13)
