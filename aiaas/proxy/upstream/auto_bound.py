"""Find how many requests an endpoint should have at once (`max_inflight: auto`), from its own metrics.

Theory: too few requests leave the GPU idle. With more than vLLM's `max_num_seqs` the queue stands inside of vLLM, where
keys do not share it equally. Where the KV cache runs out earlier, vLLM throws requests out of its batch and computes
them again: half as many again as fit cost 30 to 40 % of the throughput. So no fixed number suits all prompts. Once a
second:

    requests wait in vLLM, and it is full     the bound becomes what runs, and one more: this finds max_num_seqs
    it threw requests out, or KV > 0.97       the bound becomes 0.9 of what runs (0.8 after several), and rests 5 s
    requests wait here, all places are used   the bound grows: 5 % a second until vLLM was full for the first time,
    and KV < 0.85                             then 1/32 every 3 s

Growth decides: in a model of vLLM, 30 % a second overshot before long answers had grown into the KV cache, and others
waited 19 to 85 s for a first token; at 5 % it was 2 s, as with the best fixed bound. The bound is never below
LEAST_PLACES, and stays as it is while the metrics cannot be read. States are frozen; times are the caller's, in
seconds.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from aiaas.proxy.upstream.vllm_load import VllmLoad

LEAST_PLACES: Final = 4
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
ROOM_IN_CACHE: Final = 0.85
NEARLY: Final = 0.9


class AutoBound(msgspec.Struct, frozen=True):
    """The bound of one endpoint, for all gateways together.

    bound        requests at once; with fractions, since 5 % of 8 is less than one
    why          in plain words, for the operator
    found        vLLM was full once: growth is slow from then on
    preemptions  vLLM's count at the last look
    started      when vLLM started, as of the last look
    grown        time of the last growth
    rests_until  time before which the bound does not grow
    """

    bound: float
    why: str
    found: bool
    preemptions: int
    started: float
    grown: float
    rests_until: float

    @property
    def places(self) -> int:
        """Requests at once."""
        return max(LEAST_PLACES, int(self.bound))


def first_bound(load: VllmLoad, now: float, last: AutoBound | None) -> AutoBound:
    """Begin with the bound that was in force before a restart or a reload (`last`), else with one that fits."""
    if last is not None:
        return AutoBound(last.bound, "found before", last.found, load.preemptions, load.started, now, now)
    bound = min(FIRST_MOST, max(LEAST_PLACES, load.kv_tokens / FIRST_TOKENS)) if load.kv_tokens else FIRST_UNKNOWN
    return AutoBound(bound, "what surely fits into the KV cache", False, load.preemptions, load.started, now, now)


def next_bound(state: AutoBound, load: VllmLoad, now: float, *, waits: bool) -> AutoBound:
    """The bound after a look at the metrics; `waits`: a request waits here for a place."""
    if load.started != state.started or load.preemptions < state.preemptions:  # vLLM was restarted
        state = msgspec.structs.replace(state, started=load.started, preemptions=load.preemptions)
    lost = load.preemptions - state.preemptions
    state = msgspec.structs.replace(state, preemptions=load.preemptions)
    is_full = load.running + load.waiting >= NEARLY * state.bound
    if lost or load.kv_usage > FULL_CACHE:
        share = 0.8 if lost > 3 else 0.9
        bound = min(state.bound, max(LEAST_PLACES, share * load.running))
        return msgspec.structs.replace(
            state, bound=bound, why="the KV cache is full", found=True, rests_until=now + REST_AFTER_LOSS
        )
    if load.waiting >= 2 and is_full and load.running:
        bound = min(state.bound, max(LEAST_PLACES, load.running + 1))
        return msgspec.structs.replace(state, bound=bound, why="vLLM runs no more at once", found=True, grown=now)
    if not (waits and is_full and load.kv_usage < ROOM_IN_CACHE) or now < state.rests_until:
        return msgspec.structs.replace(state, grown=now if not state.found else state.grown)
    if not state.found:
        bound = state.bound * SLOW_START ** min(now - state.grown, 2.0)
    elif now - state.grown >= GROW_EVERY:
        bound = state.bound + max(1.0, state.bound / 32)
    else:
        return state
    return msgspec.structs.replace(
        state, bound=min(bound, MOST_PLACES), why="requests wait here, and vLLM has room", grown=now
    )


def part_of(places: int, processes: int) -> int:
    """One process's part of an endpoint's places, where `processes` gateways share it; at least 1."""
    return max(1, math.ceil(places / processes))
