"""Find how many requests an endpoint should have at once (`max_inflight: auto`), from its own metrics.

Theory: too few requests leave the GPU idle. With more than vLLM's `max_num_seqs` the queue stands inside of vLLM, where
keys do not share it equally. Where the KV cache runs out earlier, vLLM throws requests out of its batch and computes
them again: half as many again as fit cost 30 to 40 % of the throughput. So no fixed number suits all prompts. Once a
second:

    requests wait in vLLM                     the bound becomes what runs, and one more: this finds max_num_seqs
    it threw requests out, or KV > 0.97       the bound becomes 0.9 of what runs (0.8 after several), and rests 5 s
    requests wait here, all places are used   the bound grows: 5 % a second until vLLM was full for the first time,
    and KV < 0.85                             then by 1/32 of what runs every 3 s

Growth decides: in a model of vLLM, 30 % a second overshot before long answers had grown into the KV cache, and others
waited 19 to 85 s for a first token; at 5 % it was 2 s, as with the best fixed bound. The bound is never below
LEAST_PLACES, and stays as it is while the metrics cannot be read.

Several gateways before one vLLM need not know of each other. The metrics count everybody's requests, so the part of
them that runs (running / (running + waiting)) is the part of each gateway's own requests that has room: each goes back
by the same factor and grows by the same steps, which makes unequal bounds equal (Chiu and Jain 1989, as in TCP). A
request for several choices counts as several in vLLM and as one here, which a factor gets right, too.

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
REST_AFTER_LOSS: Final = 5.0
FULL_CACHE: Final = 0.97
ROOM_IN_CACHE: Final = 0.8
NEARLY: Final = 0.9
QUEUED_LOOKS: Final = 3
REST_AFTER_QUEUE: Final = 5.0
AHEAD: Final = 30  # looks
JOINING: Final = 0.25
JOINS: Final = 0.0
IDLE: Final = 0.05
RISING_WEIGHT: Final = 0.2


class AutoBound(msgspec.Struct, frozen=True):
    """This gateway's bound for one endpoint.

    bound        requests at once; with fractions, since 5 % of 8 is less than one
    why          in plain words, for the operator
    found        vLLM was full once: growth is slow from then on
    preemptions  vLLM's count at the last look
    started      when vLLM started, as of the last look
    grown        time of the last growth
    rests_until  time before which the bound does not grow
    most         the most sequences that ran at a look since vLLM started
    queued       looks in a row that saw requests wait in vLLM
    kv_usage     at the last look
    rising       what kv_usage rises by from look to look, a moving mean
    """

    bound: float
    why: str
    found: bool
    preemptions: int
    started: float
    grown: float
    rests_until: float
    most: int = 0
    queued: int = 0
    kv_usage: float = 0.0
    rising: float = 0.0
    fits: float = float("inf")
    joins_until: float = 0.0

    @property
    def places(self) -> int:
        """Requests at once."""
        return max(LEAST_PLACES, int(self.bound))


def first_bound(load: VllmLoad, now: float, last: AutoBound | None) -> AutoBound:
    """Begin with the bound that was in force before a restart or a reload (`last`), else with one that fits.

    Other gateways may use this vLLM already: begin with what they leave, and at least with a quarter of what runs."""
    if last is not None:
        return AutoBound(last.bound, "found before", last.found, load.preemptions, load.started, now, now)
    fits = max(LEAST_PLACES, min(FIRST_MOST, load.kv_tokens / FIRST_TOKENS)) if load.kv_tokens else FIRST_UNKNOWN
    left, part = fits - load.running - load.waiting, JOINING * load.running
    found = left < part
    why = "a part of what others have" if found else "what surely fits into the KV cache"
    bound = max(LEAST_PLACES, left, part)
    begun = AutoBound(bound, why, found, load.preemptions, load.started, now, now, fits=fits)
    return replace(begun, fits=float("inf"), joins_until=now + JOINS) if found else begun


def next_bound(state: AutoBound, load: VllmLoad, now: float, *, own: int, waits: bool) -> AutoBound:
    """The bound after a look at the metrics.

    own    this gateway's requests that vLLM has
    waits  a request waits in this gateway for a place
    """
    lost = max(0, load.preemptions - state.preemptions) if load.started == state.started else 0
    state = _seen(state, load)
    total = load.running + load.waiting
    part = own / max(1, total)
    if part < IDLE and not waits:
        part = max(part, JOINING)
    all_used = own >= NEARLY * state.bound
    if now < state.joins_until and not all_used:
        return state
    if lost or load.kv_usage > FULL_CACHE:
        bound = min(state.bound, max(LEAST_PLACES, (0.8 if lost > 3 else 0.9) * part * load.running))
        return replace(state, bound=bound, why="the KV cache is full", found=True, rests_until=now + REST_AFTER_LOSS)
    if state.queued >= QUEUED_LOOKS and (load.running >= NEARLY * state.most or load.kv_usage > ROOM_IN_CACHE):
        most = state.most if load.kv_usage <= ROOM_IN_CACHE else load.running
        bound = min(state.bound, max(LEAST_PLACES, part * most + 1))
        rests = now + REST_AFTER_QUEUE
        return replace(state, bound=bound, why="vLLM runs no more at once", found=True, grown=now, rests_until=rests)
    if state.fits < total and waits:
        bound = min(state.bound, max(LEAST_PLACES, part * state.fits))
        return replace(state, bound=bound, fits=float("inf"), grown=now)
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
    return replace(state, bound=min(bound, MOST_PLACES), why=why, grown=now, fits=float("inf"))


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
