"""One vLLM and its clients on a virtual clock: exact, and free of noise.

The engine batches continuously and reads prompts in chunks, first come, first served: a step takes 12 ms, 0.25 ms for
each running sequence, and 1 s for each 15,000 prompt tokens that it reads. KV memory is not modeled: it never runs out.
The gateway in front is any `Gateway`; it calls `Site.send` for each request that it lets through.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

STEP = 0.012  # seconds
STEP_EACH = 0.00025  # seconds for each running sequence
READ_RATE = 15_000.0  # prompt tokens a second
STEP_TOKENS = 2048  # read and written in one step, at the most
SEQUENCES = 72  # at once
WARM_UP = 10.0  # seconds; until then all keys are new, and no gateway can know which one asks for little


@dataclass(eq=False)
class Request:
    """One request. Times are seconds of the virtual clock."""

    key: str
    prompt: int
    output: int
    arrived: float
    first: bool = False  # before the others in the engine's queue
    left: int = 0  # prompt tokens that were not read yet
    again: Callable[[float], None] | None = None  # what its client does at its end

    def __lt__(self, other: Request) -> bool:
        return self.arrived < other.arrived


class Gateway(Protocol):
    """It stands in front of the engine."""

    def arrive(self, request: Request) -> None:
        """A request has come."""

    def prompt_read(self, request: Request) -> None:
        """The first token of its answer has come."""

    def end(self, request: Request) -> None:
        """Its answer is whole."""


@dataclass(frozen=True)
class Clients:
    """Clients of one key. `rate` is requests a second at random times; 0: each asks again as soon as it has its
    answer."""

    key: str
    count: int
    prompt: int
    output: int
    rate: float = 0.0


@dataclass
class Site:
    """Engine, clients and clock. After `run`: output tokens; by key, the times to the first token of requests that came
    after the first WARM_UP seconds, and the service (prompt tokens, and output tokens by 4)."""

    clients: Sequence[Clients]
    seed: int
    now: float = 0.0
    waits: dict[str, list[float]] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    written: int = 0
    _arrivals: list[Request] = field(default_factory=list)
    _waiting: deque[Request] = field(default_factory=deque)
    _reading: list[Request] = field(default_factory=list)
    _writing: list[tuple[int, Request]] = field(default_factory=list)  # by the step that ends it
    _step: int = 0

    def send(self, request: Request) -> None:
        """The gateway lets a request through."""
        request.left = request.prompt
        (self._waiting.appendleft if request.first else self._waiting.append)(request)

    def run(self, gateway: Gateway, seconds: float) -> None:
        """Run until then."""
        for clients in self.clients:
            self._begin(clients, seconds)
        heapq.heapify(self._arrivals)
        while self.now < seconds:
            while self._arrivals and self._arrivals[0].arrived <= self.now:
                gateway.arrive(heapq.heappop(self._arrivals))
            if not (self._waiting or self._reading or self._writing):
                if not self._arrivals:
                    return
                self.now = self._arrivals[0].arrived
                continue
            self._one_step(gateway)
        for ends, request in self._writing:
            self._serve(request, 4 * (self._step - ends))  # what was not written yet

    def _serve(self, request: Request, tokens: int) -> None:
        self.served[request.key] = self.served.get(request.key, 0) + tokens

    def _begin(self, clients: Clients, seconds: float) -> None:
        dice = random.Random(f"{self.seed} {clients.key}")
        if clients.rate:
            at = dice.expovariate(clients.rate)
            while at < seconds:
                self._arrivals.append(self._request(clients, at, dice))
                at += dice.expovariate(clients.rate)
            return
        for _ in range(clients.count):
            self._loop(clients, dice.random(), dice)

    def _loop(self, clients: Clients, at: float, dice: random.Random) -> None:
        request = self._request(clients, at, dice)
        request.again = lambda now: self._loop(clients, now, dice)
        heapq.heappush(self._arrivals, request)

    def _request(self, clients: Clients, at: float, dice: random.Random) -> Request:
        def about(tokens: int) -> int:
            return max(1, round(tokens * dice.uniform(0.5, 1.5)))

        return Request(clients.key, about(clients.prompt), about(clients.output), at)

    def _one_step(self, gateway: Gateway) -> None:
        room = STEP_TOKENS - len(self._writing)
        read: list[Request] = []
        tokens = 0
        while room > 0:
            place = len(read)
            if place == len(self._reading):
                if not self._waiting or len(self._reading) + len(self._writing) >= SEQUENCES:
                    break
                self._reading.append(self._waiting.popleft())
            request = self._reading[place]
            part = min(room, request.left)
            request.left -= part
            room -= part
            tokens += part
            if request.left:
                break
            read.append(request)
        running = len(self._reading) + len(self._writing)
        self.now += STEP + STEP_EACH * running + tokens / READ_RATE
        self._step += 1
        del self._reading[: len(read)]
        self.written += len(self._writing) + len(read)
        ended = []
        while self._writing and self._writing[0][0] == self._step:
            ended.append(heapq.heappop(self._writing)[1])
        for request in read:
            if request.arrived >= WARM_UP:
                self.waits.setdefault(request.key, []).append(self.now - request.arrived)
            self._serve(request, request.prompt + 4 * request.output)
            heapq.heappush(self._writing, (self._step + request.output - 1, request))
            if request.output == 1:
                ended.append(heapq.heappop(self._writing)[1])
            gateway.prompt_read(request)
        for request in ended:
            gateway.end(request)
            if request.again is not None:
                request.again(self.now)
