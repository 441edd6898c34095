"""The stand-in for vLLM's engine core: a batch of bounded size, a queue before it, tokens on a clock.

A generation is one request: n answers that advance together, one token each per step. It waits until the batch has room
for its answers, in order of arrival; then step k is due at its start + pace.due(k). Deadlines are absolute, so a late
step never delays the next one, and steps that are overdue together come together, as vLLM's merge when its client is
slow. An aborted generation leaves its place at once, whichever phase it is in.

Nothing here knows HTTP: a generation tells its listener, which may abort or freeze it while being told.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from aiaas.simulator.generate import Pace, SimulatedChoice
from aiaas.simulator.metrics import SimulatorMetrics

TIMER_SLACK = 0.0005  # s; uvloop's timers count whole milliseconds: what is due within half of one is due
STEPS_A_TURN = 64  # then other connections get their turn


class EngineFullError(Exception):
    """The bound on running and waiting sequences is reached."""


class StepListener(Protocol):
    """Whoever answers the client."""

    def on_steps(self, first: int, last: int) -> None:
        """Steps first..last-1 have been generated."""

    def on_end(self) -> None:
        """All of them have."""


class Generation:
    """One request in the engine: what it will generate, at what pace, and how far it is."""

    __slots__ = (
        "arrived",
        "choices",
        "frozen",
        "listener",
        "pace",
        "position",
        "prompt_tokens",
        "started",
        "steps",
        "timer",
    )

    def __init__(
        self, choices: tuple[SimulatedChoice, ...], prompt_tokens: int, pace: Pace, listener: StepListener
    ) -> None:
        self.choices = choices
        self.prompt_tokens = prompt_tokens
        self.pace = pace
        self.listener = listener
        self.steps = max(len(choice.deltas) for choice in choices)
        self.position = 0
        self.arrived = 0.0
        self.started = 0.0
        self.frozen = False
        self.timer: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        """Places that it takes in the batch."""
        return len(self.choices)

    def tokens(self, first: int, last: int) -> int:
        """Tokens in steps first..last-1; answers have different lengths."""
        if len(self.choices) == 1:
            return last - first
        return sum(min(len(choice.deltas), last) - min(len(choice.deltas), first) for choice in self.choices)


class SimulatedEngine:
    """The batch and the queue.

    begun, finished, aborted  generations since the start: entered the batch, ended by themselves, left early
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        metrics: SimulatorMetrics,
        max_num_seqs: int,
        max_num_queued_reqs: int | None,
    ) -> None:
        self._loop = loop
        self._metrics = metrics
        self._max_num_seqs = max_num_seqs
        self._max_num_queued_reqs = max_num_queued_reqs
        self._batch: set[Generation] = set()
        self._queue: deque[Generation] = deque()
        self.running = 0
        self.waiting = 0
        self.begun = 0
        self.finished = 0
        self.aborted = 0
        self.generated_tokens = 0
        self._frozen = False

    @property
    def kv_usage(self) -> float:
        """The batch's filling, for want of a cache."""
        return min(1.0, self.running / self._max_num_seqs)

    @property
    def idle(self) -> bool:
        """Nothing runs, nothing waits."""
        return not self._batch and not self._queue

    def submit(self, generation: Generation) -> None:
        """Queue a generation; it may begin before this returns, but no step comes before the next turn of the loop.

        Raises:
            EngineFullError: with it more than max_num_queued_reqs sequences would run or wait (transcript 115).
        """
        if (
            self._max_num_queued_reqs is not None
            and self.running + self.waiting + generation.size > self._max_num_queued_reqs
        ):
            self._metrics.rejections.inc()
            raise EngineFullError
        generation.arrived = self._loop.time()
        self._queue.append(generation)
        self.waiting += generation.size
        self._admit()

    def abort(self, generation: Generation) -> None:
        """Take a generation out, wherever it is; without effect when it is out already."""
        if generation in self._batch:
            self._leave(generation)
        elif generation in self._queue:
            self._queue.remove(generation)
            self.waiting -= generation.size
        else:
            return
        self.aborted += 1
        self._admit()

    def freeze(self, generation: Generation) -> None:
        """Stop generating, but keep the place: what a hanging engine looks like."""
        generation.frozen = True
        self._stop_timer(generation)

    def freeze_all(self) -> None:
        """Stop all of it for good."""
        self._frozen = True
        for generation in self._batch:
            self.freeze(generation)

    def _admit(self) -> None:
        """Begin what there is room for, in order. One too big for an empty batch runs alone rather than never."""
        while self._queue and not self._frozen:
            head = self._queue[0]
            if self.running and self.running + head.size > self._max_num_seqs:
                return
            self._queue.popleft()
            self.waiting -= head.size
            self.running += head.size
            self._batch.add(head)
            self._begin(head)

    def _begin(self, generation: Generation) -> None:
        generation.started = self._loop.time()
        self.begun += 1
        self._metrics.queue.observe(generation.started - generation.arrived)
        self._metrics.prompt_tokens.inc(generation.prompt_tokens)
        self._metrics.prefix_queries.inc(generation.prompt_tokens)
        self._wait_for_step(generation)

    def _wait_for_step(self, generation: Generation) -> None:
        due = generation.started + generation.pace.due(generation.position)
        generation.timer = self._loop.call_at(due, self._step, generation)

    def _step(self, generation: Generation) -> None:
        """Generate every step that is due, tell the listener once, and wait for the next."""
        now = self._loop.time()
        elapsed = now - generation.started + TIMER_SLACK
        first = last = generation.position
        end = min(generation.steps, first + STEPS_A_TURN)
        due = generation.pace.due
        while last < end and due(last) <= elapsed:
            last += 1
        if last == first:
            self._wait_for_step(generation)
            return
        generation.position = last
        generation.timer = None
        self._count(generation, first, last, now)
        generation.listener.on_steps(first, last)
        if generation.frozen or generation not in self._batch:
            return  # the listener froze or aborted it
        if last == generation.steps:
            self._finish(generation, now)
        else:
            self._wait_for_step(generation)

    def _count(self, generation: Generation, first: int, last: int, now: float) -> None:
        tokens = generation.tokens(first, last)
        self.generated_tokens += tokens
        self._metrics.generation_tokens.inc(tokens)
        if first == 0:
            self._metrics.ttft.observe(now - generation.arrived)
            self._metrics.prefill.observe(now - generation.started)
        gap = generation.pace.itl
        for _ in range(tokens - (generation.size if first == 0 else 0)):
            self._metrics.itl.observe(gap)

    def _finish(self, generation: Generation, now: float) -> None:
        self._leave(generation)
        self.finished += 1
        for choice in generation.choices:
            self._metrics.success[choice.finish_reason].inc()
        self._metrics.e2e.observe(now - generation.arrived)
        self._metrics.decode.observe(now - generation.started - generation.pace.due(0))
        generation.listener.on_end()
        self._admit()

    def _leave(self, generation: Generation) -> None:
        self._stop_timer(generation)
        self._batch.discard(generation)
        self.running -= generation.size

    def _stop_timer(self, generation: Generation) -> None:
        if generation.timer is not None:
            generation.timer.cancel()
            generation.timer = None
