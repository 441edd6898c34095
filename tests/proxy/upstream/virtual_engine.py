"""One vLLM and its clients on a virtual clock: exact, and free of noise.

The engine batches continuously and reads prompts in chunks, first come, first served: a step takes 12 ms, 0.25 ms for
each running sequence, and 1 s for each 15,000 prompt tokens that it reads.

With `kv_tokens`, a sequence holds its prompt's tokens as it reads them, and those that it has written. As in vLLM 0.32:
a prompt begins only where the whole of it fits; when the cache runs out, the newest sequence is preempted: it goes to
the head of the queue, and all that it held is read again. No prefix is cached between requests.

The gateway in front is any `Gateway`; it calls `Site.send` for each request that it lets through.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aiaas.proxy.upstream.vllm_load import VllmLoad

STEP = 0.012  # seconds
STEP_EACH = 0.00025  # seconds for each running sequence
READ_RATE = 15_000.0  # prompt tokens a second
STEP_TOKENS = 2048  # read and written in one step, at the most
SEQUENCES = 72  # at once
NO_END = 1 << 60
WARM_UP = 10.0  # seconds; until then all keys are new, and no gateway can know which one asks for little


@dataclass(eq=False)
class Request:
    """One request. Times are seconds of the virtual clock."""

    key: str
    prompt: int
    output: int
    arrived: float
    first: bool = False  # before the others in the engine's queue
    left: int = 0  # tokens that were not read yet: of the prompt, and of an answer that was preempted
    rest: int = 0  # output tokens that were not written yet when it was read, the first one included
    begun: int = 0  # its number among the sequences that the engine began
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
    after the first WARM_UP seconds, and the service (prompt tokens, and output tokens by 4).

    sequences    at once, at the most (`--max-num-seqs`)
    kv_tokens    tokens that the KV cache holds; 0: it never runs out
    watch        called once a second
    preemptions  sequences that were thrown out of the batch, as vLLM counts them
    """

    clients: Sequence[Clients]
    seed: int
    sequences: int = SEQUENCES
    kv_tokens: int = 0
    watch: Callable[[], None] | None = None
    preemptions: int = 0
    now: float = 0.0
    waits: dict[str, list[float]] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    written: int = 0
    _arrivals: list[Request] = field(default_factory=list)
    _waiting: deque[Request] = field(default_factory=deque)
    _reading: list[Request] = field(default_factory=list)
    _writing: list[tuple[int, Request]] = field(default_factory=list)  # by the step that ends it
    _step: int = 0
    _held: int = 0  # tokens in the KV cache
    _begun: int = 0
    _looks: float = 0.0  # the time of the next look

    def send(self, request: Request) -> None:
        """The gateway lets a request through."""
        request.left = request.prompt
        request.rest = request.output
        (self._waiting.appendleft if request.first else self._waiting.append)(request)

    def load(self) -> VllmLoad:
        """The engine's `/metrics`."""
        used = self._held / self.kv_tokens if self.kv_tokens else 0.0
        running = len(self._reading) + len(self._writing)
        return VllmLoad(running, len(self._waiting), used, self.preemptions, self.kv_tokens, 1.0)

    def run(self, gateway: Gateway, seconds: float) -> None:
        """Run until then."""
        for clients in self.clients:
            self._begin(clients, seconds)
        heapq.heapify(self._arrivals)
        while self.now < seconds:
            if self.watch is not None and self._looks <= self.now:
                self.watch()
                self._looks += 1.0
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
        kept = self._keep_room()
        read, tokens = self._read(STEP_TOKENS - len(self._writing), begin=kept)
        running = len(self._reading) + len(self._writing)
        self.now += STEP + STEP_EACH * running + tokens / READ_RATE
        self._step += 1
        del self._reading[: len(read)]
        self.written += len(self._writing) + len(read)
        self._held += len(self._writing) + len(read) + tokens
        ended = []
        while self._writing and self._writing[0][0] == self._step:
            ended.append(heapq.heappop(self._writing)[1])
        for request in read:
            is_first = request.rest == request.output
            if is_first and request.arrived >= WARM_UP:
                self.waits.setdefault(request.key, []).append(self.now - request.arrived)
            if is_first:
                self._serve(request, request.prompt + 4 * request.output)
            heapq.heappush(self._writing, (self._step + request.rest - 1, request))
            if request.rest == 1:
                ended.append(heapq.heappop(self._writing)[1])
            if is_first:
                gateway.prompt_read(request)
        for request in ended:
            self._held -= request.prompt + request.output
            gateway.end(request)
            if request.again is not None:
                request.again(self.now)

    def _read(self, room: int, *, begin: bool) -> tuple[list[Request], int]:
        """Read at most `room` prompt tokens: the requests whose prompts are whole now, and how many tokens."""
        read: list[Request] = []
        tokens = 0
        while room > 0:
            place = len(read)
            if place == len(self._reading):
                if not (begin and self._waiting and self._fits(self._waiting[0].left + tokens)):
                    break
                self._begun += 1
                self._waiting[0].begun = self._begun
                self._reading.append(self._waiting.popleft())
            request = self._reading[place]
            part = min(room, request.left, self._free() - tokens)
            request.left -= part
            room -= part
            tokens += part
            if request.left:
                break
            read.append(request)
        return read, tokens

    def _free(self) -> int:
        """Tokens of the KV cache that nobody holds after each answer has its next token."""
        return self.kv_tokens - self._held - len(self._writing) if self.kv_tokens else NO_END

    def _fits(self, tokens: int) -> bool:
        running = len(self._reading) + len(self._writing)
        return running < self.sequences and tokens < self._free()

    def _keep_room(self) -> bool:
        """Preempt the newest sequences until each answer has room for its next token; whether none had to go."""
        before = self.preemptions
        while self._free() < 0:
            self.preemptions += 1
            if self._reading:  # prompts are read in turn, so it is newer than all that write
                newest = self._reading.pop()
                held = newest.prompt + newest.output - newest.rest
                self._held -= held - newest.left
            else:
                ends, newest = max(self._writing, key=lambda entry: entry[1].begun)
                self._writing.remove((ends, newest))
                heapq.heapify(self._writing)
                newest.rest = ends - self._step
                held = newest.prompt + newest.output - newest.rest
                self._held -= held
            newest.left = held
            self._waiting.appendleft(newest)
        return before == self.preemptions
