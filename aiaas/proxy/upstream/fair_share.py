"""Whose turn it is: fair between keys by LLM tokens, and not by requests. State and decisions only, without clocks,
tasks and sockets.

Theory: start-time fair queueing (Goyal, Vin and Cheng 1996). Each key has a finish, the virtual time up to which it has
been served; a grant moves it on by the request's cost, divided by its weight. The next grant is for the key with the
least tag:

    cost    = input tokens + output_weight * output tokens
    tag     = max(virtual - credit, finish)
    grant   : finish = tag + cost / weight; virtual = max(virtual, tag)
    end     : finish += (true cost - cost) / weight

So two keys that always have requests waiting are served the same number of tokens, whatever their requests look like.
`credit` is for a key that was idle: it is behind by that much, and its next requests come before all backlogs. The
virtual time is the largest tag that was ever granted, and never falls.

The output is not known at the grant. Charge what the key's answers have had (a moving mean), and at most the request's
own bound: most clients ask for a bound that their answers never reach.

Rules
- First come, first served within a key. Equal tags: the key with fewer requests in flight first.
- Every grant is charged, also where nothing waits; otherwise a key that filled an idle engine would enter the first jam
  as a new one.
- A full queue takes a request of a key that has few waiting, in place of the newest of the key that has the most:
  otherwise one key could fill the queue and keep all others out.
- A key with nothing waiting and nothing in flight is forgotten once its finish no longer counts (it is at most
  `virtual - credit`), or nothing at all is in flight, or more than IDLE_MOST keys are idle.
- A step takes logarithmic time, however many wait. The heap keeps the tags of keys with requests waiting; a tag that
  has changed is pushed again, and the entry before it is skipped when it comes up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

W = TypeVar("W", bound=Hashable)

FIRST_MEAN: Final = 200.0  # output tokens of an answer, before any has ended
MEAN_WEIGHT: Final = 0.2  # of a key's latest answer in its mean
ALL_WEIGHT: Final = 0.02  # of the latest answer in the mean of all keys
IDLE_MOST: Final = 4096  # idle keys that are remembered
UNDER_SHARE: Final = 4  # a key is under its share while it has less than this part of an equal share in flight
CREDIT_LEFT: Final = 0.25  # part of the credit; a key that has more left may use the reserve
STALE_ENTRIES: Final = 64  # of the heap, beyond one entry a key, before it is made anew


class KeyShare(Generic[W]):
    """One key: how much it has been served, and its requests that wait.

    finish    the virtual time up to which it has been served
    mean      output tokens of its answers, moving; None before its first has ended
    inflight  its grants that have not ended
    prompts   of these, those whose first byte has not come
    waiting   in order of arrival; OrderedDict and not dict, whose first entry is found by walking over removed ones
    entry     the number of its valid entry in the heap; 0 without one
    """

    __slots__ = ("entry", "finish", "inflight", "key", "mean", "prompts", "waiting")

    def __init__(self, key: Hashable, finish: float) -> None:
        self.key = key
        self.finish = finish
        self.mean: float | None = None
        self.inflight = 0
        self.prompts = 0
        self.waiting: OrderedDict[W, None] | None = None
        self.entry = 0

    def __repr__(self) -> str:
        waiting = len(self.waiting or ())
        return f"<KeyShare: served to {self.finish:.0f}, {self.inflight} in flight, {waiting} wait>"


class FairShare(Generic[W]):
    """At most `size` requests wait, each once, each under a key. A smaller `size` does not remove any.

    virtual  the virtual time, in units of cost
    length   how many wait
    active   keys with requests that wait or are in flight
    """

    __slots__ = (
        "_heap",
        "_idle",
        "_keys",
        "_mean",
        "_pushed",
        "active",
        "credit",
        "length",
        "output_weight",
        "size",
        "virtual",
    )

    def __init__(self, size: int, output_weight: float = 4.0, credit: float = 20_000.0) -> None:
        self.size = size
        self.output_weight = output_weight
        self.credit = credit
        self.virtual = 0.0
        self.length = 0
        self.active = 0
        self._mean = FIRST_MEAN
        self._keys: dict[Hashable, KeyShare[W]] = {}
        self._idle: OrderedDict[Hashable, KeyShare[W]] = OrderedDict()
        self._heap: list[tuple[float, int, int, KeyShare[W]]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"<FairShare: {self.length} of {self.size} wait, {self.active} keys active, {len(self._keys)} known>"

    # -- those that wait -------------------------------------------------------------------------------------------

    def put(self, key: Hashable, waiter: W) -> bool:
        """Queue the waiter; False if the queue is full (`crowded` may make room)."""
        if self.length >= self.size:
            return False
        share = self._active(key)
        if share.waiting is None:
            share.waiting = OrderedDict()
            self._push(share)
        share.waiting[waiter] = None
        self.length += 1
        return True

    def head(self) -> W | None:
        """The waiter that is next; None if nobody waits. It stays in the queue until `remove`."""
        heap = self._heap
        while heap:
            _, _, entry, share = heap[0]
            if share.entry == entry and share.waiting:
                return next(iter(share.waiting))
            heappop(heap)
        return None

    def remove(self, key: Hashable, waiter: W) -> None:
        """Remove the waiter; does nothing if it is not in the queue."""
        share = self._keys.get(key)
        if share is None or share.waiting is None or waiter not in share.waiting:
            return
        del share.waiting[waiter]
        self.length -= 1
        if not share.waiting:
            share.waiting = None
            share.entry = 0
            self._retire(share)

    def ahead(self, key: Hashable) -> int:
        """How many requests of this key wait."""
        share = self._keys.get(key)
        return 0 if share is None or share.waiting is None else len(share.waiting)

    def crowded(self, key: Hashable) -> tuple[Hashable, W] | None:
        """Whom a request of `key` may replace in a full queue, and that one's key: the newest of the key with the most
        waiting, if that are at least two more than `key` has. The caller removes it."""
        own = self.ahead(key)
        waiting = [share for _, _, entry, share in self._heap if share.entry == entry and share.waiting]
        most = max(waiting, key=lambda share: len(share.waiting or ()), default=None)
        if most is None or most.waiting is None or len(most.waiting) < own + 2:
            return None
        return most.key, next(reversed(most.waiting))

    # -- grants ----------------------------------------------------------------------------------------------------

    def cost_of(self, key: Hashable, input_tokens: int, bound: int | None) -> float:
        """The charge for a request before its answer is known; `bound` is the most output tokens, None for any."""
        share = self._keys.get(key)
        output = self._mean if share is None or share.mean is None else share.mean
        if bound is not None and bound < output:
            output = bound
        return input_tokens + self.output_weight * output

    def charge(self, key: Hashable, cost: float, weight: float = 1.0) -> KeyShare[W]:
        """Charge a grant to its key. Each charge is settled once."""
        share = self._active(key)
        start = self.virtual - self.credit
        if start < share.finish:
            start = share.finish
        if start > self.virtual:
            self.virtual = start
        share.finish = start + cost / weight
        share.inflight += 1
        if share.waiting is not None:
            self._push(share)
        return share

    def settle(self, share: KeyShare[W], cost: float, input_tokens: int, output: int | None, weight: float) -> None:
        """Replace the charge of a grant that has ended by its true tokens. `output` is None where no answer began:
        that says nothing about the next answer."""
        true: float = input_tokens
        if output is not None:
            true = input_tokens + self.output_weight * output
            mean = share.mean
            share.mean = output if mean is None else mean + MEAN_WEIGHT * (output - mean)
            self._mean += ALL_WEIGHT * (output - self._mean)
        share.finish += (true - cost) / weight
        share.inflight -= 1
        if share.waiting is not None:
            self._push(share)
        else:
            self._retire(share)

    def is_under_share(self, key: Hashable, slots: int) -> bool:
        """Whether a key may use the reserve. It may not while it is alone; else there are three cases:

        1. It has nothing in flight.
        2. It has more than a quarter of its credit left: it was idle, or asks for little.
        3. It has less than a quarter of an equal share of all `slots`, and no prompt that the engine has not read yet.
        """
        share = self._keys.get(key)
        is_active = share is not None and (share.inflight or share.waiting is not None)
        if self.active - bool(is_active) == 0:
            return False  # no other key is there to be kept from the slots
        if share is None or not share.inflight or share.finish < self.virtual - self.credit * CREDIT_LEFT:
            return True
        return not share.prompts and UNDER_SHARE * self.active * share.inflight < slots

    # -- keys ------------------------------------------------------------------------------------------------------

    def _active(self, key: Hashable) -> KeyShare[W]:
        share = self._keys.get(key)
        if share is None:
            share = self._keys[key] = KeyShare(key, self.virtual - self.credit)
        elif share.inflight or share.waiting is not None:
            return share
        else:
            del self._idle[key]
        self.active += 1
        return share

    def _retire(self, share: KeyShare[W]) -> None:
        """Note that a key is idle, if it is, and forget keys whose past no longer counts."""
        if share.inflight or share.waiting is not None:
            return
        self.active -= 1
        idle = self._idle
        if not self.active:
            self._keys.clear()
            idle.clear()
            self._heap.clear()
            return
        idle[share.key] = share
        for _ in range(2):  # more than come, so that those that are over get fewer
            oldest = next(iter(idle.values()), None)
            if oldest is None or (oldest.finish > self.virtual - self.credit and len(idle) <= IDLE_MOST):
                return
            del idle[oldest.key], self._keys[oldest.key]

    def _push(self, share: KeyShare[W]) -> None:
        self._pushed += 1
        share.entry = self._pushed
        heap = self._heap
        tag = self.virtual - self.credit
        if tag < share.finish:
            tag = share.finish
        heappush(heap, (tag, share.inflight, self._pushed, share))
        if len(heap) > 2 * self.active + STALE_ENTRIES:
            heap[:] = [entry for entry in heap if entry[3].entry == entry[2]]
            heapify(heap)
