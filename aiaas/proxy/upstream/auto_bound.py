"""Find how many requests an endpoint should have at once (`max_inflight: auto`), from its own metrics.

Theory: too few requests leave the GPU idle. With more than vLLM's `max_num_seqs` the queue stands inside of vLLM, where
keys do not share it equally. Where the KV cache runs out earlier, vLLM throws requests out of its batch and computes
them again: half as many again as fit cost 30 to 40 % of the throughput. So no fixed number suits all prompts. Once a
second:

    it threw requests out, or KV > 0.97       the bound becomes 0.9 of what runs (0.8 after several), and rests 5 s
    requests wait in vLLM at 3 looks, while   the bound becomes the most that ever ran, and one more: this finds
    no more run than ever                     max_num_seqs (what runs, where KV > 0.8); it rests 5 s
    requests wait here, all places are used,  the bound grows: 5 % a second until vLLM was full for the first time,
    and KV will be < 0.8 for 30 s             then by 1/32 of what runs every 3 s

Tried in the model of vLLM that the tests have, and worse:
- One look at waiting requests: vLLM reads prompts in turn, so some always wait, and the bound fell from 256 to 170.
- Only while all places are used: the bound on unread prompts keeps a bound of 256 from being used, so it stayed, and
  another key's p99 was three times as long.
- KV as it is, not as it will be: answers that are under way grow. The bound overshot from 80 to 121: 82 requests were
  thrown out, and another key waited 31 s. With growth of 30 % a second, 19 to 85 s.
- A bound that shrinks slowly while KV > 0.9: several gateways did not become more alike.
- The bound of before kept over a restart (a reload keeps it): with long answers, a gateway that came back after a crash
  wrote 0.98 of the tokens in its first minute instead of 0.87, but the answers all began at once and grew together, so
  that another key's p99 was 16 s instead of 0.6. With one of two gateways replaced it was worse for tokens, too. With
  chats and long prompts there was no difference.

The bound is never below LEAST_PLACES, and stays as it is while the metrics cannot be read.

Several gateways before one vLLM need not know of each other. The metrics count everybody's requests, so each gateway
knows its own part of them: each goes back by the same factor and grows by the same steps, which makes unequal bounds
equal (Chiu and Jain 1989, as in TCP). A request for several choices counts as several in vLLM and as one here, which a
factor gets right, too. Those that begin together divide the first bound by their parts. One that comes later begins
with a quarter of what runs; so does one that was idle.

States are frozen; times are the caller's, in seconds.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from aiaas.proxy.upstream.vllm_load import VllmLoad

LEAST_PLACES: Final = 2
MOST_PLACES: Final = 4096
# The bound to begin with: as many requests of FIRST_TOKENS as fit into the KV cache, but at most FIRST_MOST. A smaller
# one would refuse the first crowd of clients (`queue.size`) although vLLM has room for it.
FIRST_TOKENS: Final = 2048
FIRST_MOST: Final = 256
FIRST_UNKNOWN: Final = 64
SLOW_START: Final = 1.05  # times as much each second
GROW_EVERY: Final = 3.0
REST: Final = 5.0  # without growth, after a step back
FULL_CACHE: Final = 0.97
ROOM_IN_CACHE: Final = 0.8
AHEAD: Final = 30  # looks; for so long the cache goes on filling as it does now
RISING_WEIGHT: Final = 0.1  # of the latest look in the mean
QUEUED_LOOKS: Final = 3
NEARLY: Final = 0.9
JOINING: Final = 0.25  # of what runs, for a gateway that comes to a busy vLLM
JOINS: Final = 20.0  # seconds in which it may use that
IDLE: Final = 0.05  # of vLLM's requests; a gateway that has fewer, and none waiting, is idle
NEVER: Final = float("inf")


class AutoBound(msgspec.Struct, frozen=True):
    """This gateway's bound for one endpoint.

    bound        requests at once; with fractions, since 5 % of 8 is less than one
    why          in plain words, for the operator
    found        vLLM was full once: growth is slow from then on
    preemptions  vLLM's count at the last look
    started      when vLLM started, as of the last look
    grown        time of the last growth
    rests_until  time before which the bound does not grow
    joins_until  time before which this gateway is new or idle: it keeps JOINING of what runs, while it uses less
    divides_at   with more requests than this, the bound is divided by the gateways' parts, once
    most         the most sequences that ran at a look since vLLM started
    queued       looks in a row that saw requests wait in vLLM, and no more run than ever
    kv_usage     at the last look
    rising       by how much kv_usage rises from look to look, a moving mean
    """

    bound: float
    why: str
    found: bool
    preemptions: int
    started: float
    grown: float
    rests_until: float
    joins_until: float = 0.0
    divides_at: float = NEVER
    most: int = 0
    queued: int = 0
    kv_usage: float = 0.0
    rising: float = 0.0

    @property
    def places(self) -> int:
        """Requests at once."""
        return max(LEAST_PLACES, int(self.bound))


def first_bound(load: VllmLoad, now: float) -> AutoBound:
    """Begin with a bound that fits into the KV cache, less what other gateways use of it."""
    fits = max(LEAST_PLACES, min(FIRST_MOST, load.kv_tokens / FIRST_TOKENS)) if load.kv_tokens else FIRST_UNKNOWN
    left, part = fits - load.running - load.waiting, JOINING * load.running
    if left < part:
        begun = _begin(load, now, bound=part, why="a part of what other gateways have", found=True)
        return replace(begun, joins_until=now + JOINS)
    begun = _begin(load, now, bound=left, why="what surely fits into the KV cache", found=False)
    return replace(begun, divides_at=fits)


def _begin(load: VllmLoad, now: float, *, bound: float, why: str, found: bool) -> AutoBound:
    return AutoBound(
        max(LEAST_PLACES, bound), why, found, load.preemptions, load.started, now, now, kv_usage=load.kv_usage
    )


def next_bound(state: AutoBound, load: VllmLoad, now: float, *, own: int, waits: bool) -> AutoBound:
    """The bound after a look at the metrics.

    own    this gateway's requests that vLLM has; the most of them while the metrics were fetched
    waits  a request waits in this gateway for a place
    """
    lost = max(0, load.preemptions - state.preemptions) if load.started == state.started else 0
    state = _seen(state, load)
    total = load.running + load.waiting
    part = min(1.0, own / max(1, total))
    all_used = own >= NEARLY * state.bound
    if part < IDLE and total and not waits:
        state = replace(state, joins_until=now + JOINS)
    if now < state.joins_until and not all_used:
        part = max(part, JOINING)
    if lost or load.kv_usage > FULL_CACHE:
        return _back(state, (0.8 if lost > 3 else 0.9) * part * load.running, "the KV cache is full", now)
    if state.queued >= QUEUED_LOOKS and load.kv_usage > ROOM_IN_CACHE:
        return _back(state, part * load.running + 1, "vLLM's next prompts do not fit into the KV cache", now)
    if state.queued >= QUEUED_LOOKS and load.running >= NEARLY * state.most:
        return _back(state, part * state.most + 1, "vLLM runs no more at once", now)
    if total > state.divides_at and waits:
        bound = min(state.bound, max(LEAST_PLACES, part * state.divides_at))
        return replace(state, bound=bound, divides_at=NEVER, grown=now)
    has_room = load.kv_usage + AHEAD * max(0.0, state.rising) < ROOM_IN_CACHE
    if not (waits and all_used and has_room) or now < state.rests_until:
        return state if state.found else replace(state, grown=now)
    if not state.found:
        bound = state.bound * SLOW_START ** min(now - state.grown, 2.0)
    elif now - state.grown >= GROW_EVERY:
        bound = state.bound + max(1.0, load.running / 32)
    else:
        return state
    why = "requests wait here, and vLLM has room"
    return replace(state, bound=min(bound, MOST_PLACES), why=why, grown=now, divides_at=NEVER)


def _back(state: AutoBound, bound: float, why: str, now: float) -> AutoBound:
    """Go back to `bound`; never forward."""
    bound = min(state.bound, max(LEAST_PLACES, bound))
    return replace(state, bound=bound, why=why, found=True, grown=now, rests_until=now + REST, queued=0)


def _seen(state: AutoBound, load: VllmLoad) -> AutoBound:
    """Note what the metrics say."""
    most = state.most if load.started == state.started else 0
    return replace(
        state,
        preemptions=load.preemptions,
        started=load.started,
        most=max(load.running, most),
        queued=state.queued + 1 if load.waiting >= 2 and load.running <= most else 0,
        kv_usage=load.kv_usage,
        rising=state.rising + RISING_WEIGHT * (load.kv_usage - state.kv_usage - state.rising),
    )
