"""Several replicas of one vLLM and the sessions that use them, on a virtual clock: exact, and free of noise.

A replica reads prompts one after the other, 15,000 tokens a second, without what its cache holds; then it writes an
answer, one token in 12 ms and 0.25 ms for each answer that it writes at the time. Its cache holds whole conversations
up to 600,000 tokens, and drops the one that was not used for longest; the prompt that all have in common is there once.

A session asks again some seconds after its answer, with all that was said before, until it has had all its turns; then
another session begins. Routers are asked in turn at random: they stand for gateways that do not know of each other.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiaas.proxy.request.visit import Visit
from aiaas.proxy.upstream.affinity import number_of, weights
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.sessions import Stay
from tests.proxy.conftest import config_of, plan_of

READ_RATE = 15_000.0
TOKEN = 0.012  # seconds
TOKEN_EACH = 0.00025
CACHED_MOST = 600_000
WARM_UP = 60.0  # seconds that are not measured


def replicas(count: int, **fields: Any) -> BackendState:
    """A gateway's own state of a backend with so many endpoints."""
    urls = [f"http://127.0.0.1:{port}" for port in range(1, count + 1)]
    return BackendState(plan_of(config_of(urls, {"max_inflight": None, **fields}, {})).backends[0], lambda *_: None)


@dataclass(eq=False)
class Turn:
    """A request of a session; `prompt` tokens, `asked` when it came."""

    session: Session
    number: int
    prompt: int
    asked: float
    place: int = 0
    stay: Stay | None = None


@dataclass(eq=False)
class Session:
    """A session, and the replicas that its turns went to."""

    name: str
    begun: float
    places: list[int] = field(default_factory=list)


class Router(Protocol):
    """A gateway that chooses a replica by its number."""

    def choose(self, turn: Turn, now: float) -> int:
        """The request goes there."""

    def read(self, turn: Turn) -> None:
        """Its first token has come."""

    def end(self, turn: Turn) -> None:
        """Its answer is whole."""


class Auto:
    """aiaas itself, as `slots.py` uses it."""

    def __init__(self, count: int, **fields: Any) -> None:
        self.backend = replicas(count, **fields)

    def choose(self, turn: Turn, now: float) -> int:
        """As in Router."""
        body = b'"assistant"' * turn.number
        visit = Visit("key", "m", turn.session.name, None, body, turn.prompt, now, stream=True)
        endpoint = self.backend.pick((), visit)
        assert endpoint is not None
        turn.stay = self.backend.sessions.begin(endpoint, visit, None)
        endpoint.pool.inflight += 1
        return self.backend.endpoints.index(endpoint)

    def read(self, turn: Turn) -> None:
        """As in Router."""
        assert turn.stay is not None
        turn.stay.prompt_read()

    def end(self, turn: Turn) -> None:
        """As in Router."""
        assert turn.stay is not None
        turn.stay.settle(0, 0)
        self.backend.endpoints[turn.place].pool.inflight -= 1


class Bounded(Auto):
    """The same with `max_inflight`, and so with a bound on prompts that wait for their first token. `waits` counts
    requests that find nothing free; here they go where the fewest are in flight."""

    def __init__(self, count: int, bound: int) -> None:
        super().__init__(count, max_inflight=bound)
        self.waits = 0

    def choose(self, turn: Turn, now: float) -> int:
        """As in Router."""
        body = b'"assistant"' * turn.number
        visit = Visit("key", "m", turn.session.name, None, body, turn.prompt, now, stream=True)
        endpoint = self.backend.pick((), visit)
        if endpoint is None:
            self.waits += 1
            endpoint = min(self.backend.endpoints, key=lambda endpoint: endpoint.pool.inflight)
        grant = self.backend.begin(endpoint, "key", turn.prompt, 100)
        turn.stay = self.backend.sessions.begin(endpoint, visit, grant)
        return self.backend.endpoints.index(endpoint)

    def end(self, turn: Turn) -> None:
        """As in Router."""
        assert turn.stay is not None
        turn.stay.settle(turn.prompt, 100)
        self.backend.endpoints[turn.place].give_back()


class PrefixHash:
    """The rule that `auto` replaced: the same first 1 KiB of the prompt to the same replica, unless that has a quarter
    more in flight than the mean. Agents have these bytes in common."""

    def __init__(self, count: int) -> None:
        self.endpoints: Sequence[EndpointState] = replicas(count).endpoints

    def choose(self, turn: Turn, now: float) -> int:
        """As in Router."""
        bound = 1.25 * sum(endpoint.pool.inflight for endpoint in self.endpoints) / len(self.endpoints) + 1
        order = weights(number_of(b"the common system prompt"), [endpoint.number for endpoint in self.endpoints])
        within = [place for place, endpoint in enumerate(self.endpoints) if endpoint.pool.inflight <= bound]
        place = max(within, key=order.__getitem__)
        self.endpoints[place].pool.inflight += 1
        return place

    def read(self, turn: Turn) -> None:
        """As in Router."""

    def end(self, turn: Turn) -> None:
        """As in Router."""
        self.endpoints[turn.place].pool.inflight -= 1


class Replica:
    """One vLLM."""

    def __init__(self) -> None:
        self.read_until = 0.0
        self.writing = 0
        self.cache: OrderedDict[str, int] = OrderedDict()
        self.held = 0

    def cached(self, name: str, common: int) -> int:
        """Tokens of a session's prompt in the cache."""
        return max(self.cache.get(name, 0), common if "" in self.cache else 0)

    def keep(self, name: str, tokens: int, common: int) -> None:
        """A conversation of so many tokens is in the cache from now on."""
        for part, size in (("", common), (name, tokens - common)):
            self.held += size - self._size(part, common)
            self.cache[part] = size if part == "" else tokens
            self.cache.move_to_end(part)
        while self.held > CACHED_MOST:
            oldest = next(iter(self.cache))
            self.held -= self._size(oldest, common)
            del self.cache[oldest]

    def _size(self, name: str, common: int) -> int:
        held = self.cache.get(name, 0)
        return held if name == "" or not held else held - common


@dataclass
class Load:
    """`agents` sessions at any time, each with a `common` beginning, and `turns` turns of `each` more tokens with
    answers of `output` tokens; a user thinks for `think` seconds."""

    agents: int
    common: int = 20_000
    turns: int = 12
    each: int = 2_000
    output: int = 150
    think: float = 6.0


@dataclass
class Fleet:
    """Replicas, sessions and clock. After `run`: the sessions that ended, the waits for the first token, and the tokens
    of all prompts and of those that were cached, of turns that came after WARM_UP."""

    load: Load
    routers: Sequence[Router]
    count: int
    seed: int = 1
    ended: list[Session] = field(default_factory=list)
    live: set[Session] = field(default_factory=set)
    waits: list[float] = field(default_factory=list)
    tokens: int = 0
    hits: int = 0
    busy: float = 0.0
    at: dict[float, Callable[[], None]] = field(default_factory=dict)

    def run(self, seconds: float) -> None:
        """Run until then. `at` is called at its times."""
        self._dice = random.Random(self.seed)
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self.replicas = [Replica() for _ in range(self.count)]
        self._router: dict[Turn, Router] = {}
        for time, event in self.at.items():
            self._push(time, lambda _now, event=event: event())  # type: ignore[misc]
        for _ in range(self.load.agents):
            self._push(self._dice.uniform(0, 30), self._begin)
        while self._heap:
            now, _, event = heapq.heappop(self._heap)
            if now > seconds:
                break
            event(now)
        self.seconds = seconds

    @property
    def hit_rate(self) -> float:
        """Cached tokens of all prompt tokens."""
        return self.hits / self.tokens

    @property
    def p90(self) -> float:
        """Of the waits for the first token, seconds."""
        return sorted(self.waits)[len(self.waits) * 9 // 10]

    @property
    def utilization(self) -> float:
        """The part of the time for which the replicas read."""
        return self.busy / self.count / self.seconds

    def stayed(self) -> float:
        """The part of all turns that were at the replica that their session was at most often."""
        sessions = [*self.ended, *self.live]
        most = sum(max(map(session.places.count, set(session.places))) for session in sessions if session.places)
        return most / sum(len(session.places) for session in sessions)

    def _push(self, time: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._heap, (time, next(self._order), event))

    def _begin(self, now: float) -> None:
        session = Session(f"session {next(self._order)}", now)
        self.live.add(session)
        self._ask(session, self.load.common + self._about(self.load.each), now)

    def _about(self, tokens: int) -> int:
        return max(1, round(tokens * self._dice.uniform(0.5, 1.5)))

    def _ask(self, session: Session, prompt: int, now: float) -> None:
        turn = Turn(session, len(session.places), prompt, now)
        router = self._router[turn] = self._dice.choice(self.routers)
        turn.place = router.choose(turn, now)
        session.places.append(turn.place)
        replica = self.replicas[turn.place]
        begins = max(now, replica.read_until)
        new = prompt - replica.cached(session.name, self.load.common)
        if now > WARM_UP:
            self.tokens, self.hits = self.tokens + prompt, self.hits + prompt - new
        self.busy += new / READ_RATE
        replica.read_until = begins + new / READ_RATE
        self._push(replica.read_until + TOKEN, lambda time: self._read(turn, time))

    def _read(self, turn: Turn, now: float) -> None:
        replica, load = self.replicas[turn.place], self.load
        if turn.asked > WARM_UP:
            self.waits.append(now - turn.asked)
        replica.keep(turn.session.name, turn.prompt, load.common)
        self._router[turn].read(turn)
        replica.writing += 1
        output = self._about(load.output)
        self._push(now + output * (TOKEN + TOKEN_EACH * replica.writing), lambda time: self._end(turn, output, time))

    def _end(self, turn: Turn, output: int, now: float) -> None:
        self.replicas[turn.place].writing -= 1
        self._router.pop(turn).end(turn)
        session, pause = turn.session, self._dice.expovariate(1 / self.load.think)
        if len(session.places) == self.load.turns:
            self.live.discard(session)
            self.ended.append(session)
            self._push(now + pause, self._begin)
            return
        prompt = turn.prompt + output + self._about(self.load.each)
        self._push(now + pause, lambda time: self._ask(session, prompt, time))
