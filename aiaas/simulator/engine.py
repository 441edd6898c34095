"""The stand-in for vLLM's engine core: a batch of limited size, a queue in front of it, and tokens on a schedule.

A generation is one request: n answers that advance together, one token each per step. Generations wait, in order of
arrival (or of priority, then of arrival), until the batch has room for their answers; then step k is due at the
generation's start + pace.due(k). Deadlines are absolute, so a late step does not delay the next one. Overdue steps are
generated together, as vLLM merges them for a slow client. An aborted generation frees its places at once, in any phase.

This module does not know HTTP: a generation calls its listener, which may abort or freeze it during the call.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import deque
from operator import attrgetter
from typing import Protocol

from aiaas.simulator.faults import Act, Fault
from aiaas.simulator.generate import Pace, SimulatedChoice
from aiaas.simulator.metrics import SimulatorMetrics

TIMER_SLACK = 0.0005  # s; uvloop's timers count whole milliseconds, so a step due within half a millisecond is due now
STEPS_A_TURN = 64  # steps of one generation before other connections get their turn


class EngineFullError(Exception):
    """The limit on running and waiting sequences is reached."""


class StepListener(Protocol):
    """Receives the events of a generation and answers the client."""

    def on_steps(self, first: int, last: int) -> None:
        """Called when steps first..last-1 have been generated."""

    def on_end(self) -> None:
        """Called when all steps have been generated."""

    def on_struck(self, fault: Fault) -> None:
        """Called when a fault strikes every request in flight: apply it now."""


class Generation:
    """One request in the engine: its future answers, its pace, and its progress."""

    __slots__ = (
        "arrived",
        "choices",
        "frozen",
        "listener",
        "pace",
        "position",
        "priority",
        "prompt_tokens",
        "started",
        "steps",
        "timer",
    )

    def __init__(
        self,
        choices: tuple[SimulatedChoice, ...],
        prompt_tokens: int,
        pace: Pace,
        listener: StepListener,
        priority: int = 0,
    ) -> None:
        self.choices = choices
        self.prompt_tokens = prompt_tokens
        self.pace = pace
        self.listener = listener
        self.priority = priority
        self.steps = max(len(choice.deltas) for choice in choices)
        self.position = 0
        self.arrived = 0.0
        self.started = 0.0
        self.frozen = False
        self.timer: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        """The number of places that the generation takes in the batch."""
        return len(self.choices)

    def tokens(self, first: int, last: int) -> int:
        """Count the tokens in steps first..last-1; the answers may have different lengths."""
        if len(self.choices) == 1:
            return last - first
        return sum(min(len(choice.deltas), last) - min(len(choice.deltas), first) for choice in self.choices)


class SimulatedEngine:
    """The batch and the queue.

    begun, finished, aborted  counts of generations since the start: entered the batch, completed, left early
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        metrics: SimulatorMetrics,
        max_num_seqs: int,
        max_num_queued_reqs: int | None,
        *,
        by_priority: bool = False,
    ) -> None:
        self._loop = loop
        self._metrics = metrics
        self._max_num_seqs = max_num_seqs
        self._max_num_queued_reqs = max_num_queued_reqs
        self._by_priority = by_priority
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
        """Half of the share of the batch in use: no KV cache is simulated, so it must never be what runs out."""
        return min(1.0, self.running / self._max_num_seqs) / 2

    @property
    def idle(self) -> bool:
        """Whether the batch and the queue are empty."""
        return not self._batch and not self._queue

    def submit(self, generation: Generation) -> None:
        """Queue a generation. It may begin before `submit` returns, but its first step comes at the loop's next turn or
        later.

        Raises:
            EngineFullError: more than max_num_queued_reqs sequences would run or wait (transcript 115).
        """
        if (
            self._max_num_queued_reqs is not None
            and self.running + self.waiting + generation.size > self._max_num_queued_reqs
        ):
            self._metrics.rejections.inc()
            raise EngineFullError
        generation.arrived = self._loop.time()
        if self._by_priority:
            insort(self._queue, generation, key=attrgetter("priority"))
        else:
            self._queue.append(generation)
        self.waiting += generation.size
        self._admit()

    def abort(self, generation: Generation) -> None:
        """Remove a generation from the batch or the queue; do nothing if it has already left."""
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
        """Stop generating but keep the places in the batch, like a hanging engine."""
        generation.frozen = True
        self._stop_timer(generation)

    def freeze_all(self) -> None:
        """Stop all generations for good."""
        self._frozen = True
        for generation in self._batch:
            self.freeze(generation)

    def strike_all(self, fault: Fault) -> None:
        """Apply a fault to all generations, running and waiting, and begin no other."""
        self._frozen = True
        for generation in (*self._queue, *self._batch):
            generation.listener.on_struck(fault)
        self._frozen = fault.act is Act.HANG

    def _admit(self) -> None:
        """Begin waiting generations in order while there is room. A generation larger than the batch runs alone."""
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
        """Generate every step that is due, call the listener once, and schedule the next step."""
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
