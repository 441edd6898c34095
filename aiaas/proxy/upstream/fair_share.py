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
  as a new one. But while nothing waits, nobody asks: such a grant is `uncharged` until its end, and is then charged
  once, with its true tokens. Before the next question, those that are under way are charged as all others.
- A full queue takes a request of a key that has few waiting, in place of the newest of the key that has the most:
  otherwise one key could fill the queue and keep all others out.
- Once nothing at all is in flight, what keys have been served counts no longer: a new period begins at `base`, for all
  alike. Nobody is behind then, and nobody has credit: it grows as the others are served.
- Each gateway has its own. To tell each other once a second what keys were served makes no light key faster, before two
  or four gateways (docs/fairness.md has the figures).
- A key with nothing waiting and nothing in flight is idle. It is remembered, for its mean and for its finish where that
  still counts, until more than IDLE_MOST keys are idle.
- A step takes logarithmic time, however many wait. The heap keeps the tags of keys with requests waiting; a tag that
  has changed is pushed again, and the entry before it is skipped when it comes up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from aiaas.proxy.upstream.turns import TurnQueue

if TYPE_CHECKING:
    from aiaas.proxy.upstream.waiter import Grant

W = TypeVar("W", bound=Hashable)

FIRST_MEAN: Final = 200.0  # output tokens of a key's first answer, before any has ended
MEAN_WEIGHT: Final = 0.2  # of a key's latest answer in its mean
FIRST_WEIGHT: Final = 0.05  # of a key's first answer in the mean of first answers, with which a new key begins
IDLE_MOST: Final = 4096  # idle keys that are remembered; beyond it, half of them
UNDER_SHARE: Final = 4  # a key is under its share while it has less than this part of an equal share in flight
CREDIT_LEFT: Final = 0.25  # part of the credit; a key that has more left may use the reserve
STALE_ENTRIES: Final = 64  # of the heap, beyond one entry a key, before it is made anew


class KeyShare(Generic[W]):
    """One key: how much it has been served, and its requests that wait. Not a msgspec.Struct: each request sets several
    of these, and a Struct takes twice as long to set.

    finish    the virtual time up to which it has been served, in this `period`
    charged   the cost of its latest grant
    mean      output tokens of its answers, moving; None before its first has ended
    inflight  its grants that have not ended
    prompts   of these, those whose first byte has not come
    waiting   in order of arrival, or by turns of the key's users; OrderedDict and not dict, whose first entry is found
              by walking over removed ones
    entry     the number of its valid entry in the heap; 0 without one
    """

    __slots__ = ("charged", "entry", "finish", "inflight", "key", "mean", "period", "prompts", "waiting")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.finish = self.charged = 0.0
        self.period = -1
        self.mean: float | None = None
        self.inflight = self.prompts = self.entry = 0
        self.waiting: OrderedDict[W, str | None] | TurnQueue[W] | None = None

    def __repr__(self) -> str:
        waiting = len(self.waiting or ())
        return f"<KeyShare: served to {self.finish:.0f}, {self.inflight} in flight, {waiting} wait>"


class FairShare(Generic[W]):
    """At most `size` requests wait, each once, each under a key. A smaller `size` does not remove any.

    virtual  the virtual time, in units of cost
    length   how many wait
    active   keys with requests that wait or are in flight
    uncharged  grants from when nothing waited, and when they began; infinite where the first byte will tell
    period   counts the times at which nothing was active; a key's finish counts within one period
    base     the virtual time at which the period began
    """

    __slots__ = (
        "_heap",
        "_keys",
        "_mean",
        "_pushed",
        "active",
        "base",
        "credit",
        "length",
        "output_weight",
        "period",
        "size",
        "uncharged",
        "virtual",
    )

    def __init__(self, size: int, output_weight: float = 4.0, credit: float = 20_000.0) -> None:
        self.size = size
        self.output_weight = output_weight
        self.credit = credit
        self.virtual = 0.0
        self.length = 0
        self.active = 0
        self.period = 0
        self.base = 0.0
        self.uncharged: dict[Grant, float] = {}
        self._mean = FIRST_MEAN
        self._keys: dict[Hashable, KeyShare[W]] = {}
        self._heap: list[tuple[float, int, int, KeyShare[W]]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"<FairShare: {self.length} of {self.size} wait, {self.active} keys active, {len(self._keys)} known>"

    # -- those that wait -------------------------------------------------------------------------------------------

    def put(self, key: Hashable, waiter: W, user: str | None = None) -> bool:
        """Queue the waiter; False if the queue is full (`crowded` may make room). The `user` is for a key whose users
        take turns."""
        if self.length >= self.size:
            return False
        share = self._keys.get(key) or self._meet(key)
        if share.waiting is None:
            if not share.inflight:
                self.active += 1
            if share.period != self.period:
                share.period, share.finish = self.period, max(self.base, self.virtual - self.credit)
            share.waiting = OrderedDict() if user is None else TurnQueue()
            self._push(share)
        share.waiting[waiter] = user
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
            if not share.inflight:
                self._rest()

    def ahead(self, key: Hashable, user: str | None = None) -> int:
        """How many requests of this key wait; with a `user`, how many of them have their turn before that user's."""
        share = self._keys.get(key)
        if share is None or share.waiting is None:
            return 0
        waiting = share.waiting
        return len(waiting) if user is None or not isinstance(waiting, TurnQueue) else waiting.ahead(user)

    def crowded(self, key: Hashable, user: str | None = None) -> tuple[Hashable, W] | None:
        """Whom a request of `key` may replace in a full queue, and that one's key: the newest of the key with the most
        waiting, if that are at least two more than `key` has. The caller removes it.

        Among the users of the key that has the most, the same holds for its users.
        """
        own = self.ahead(key)
        waiting = [share for _, _, entry, share in self._heap if share.entry == entry and share.waiting]
        most = max(waiting, key=lambda share: len(share.waiting or ()), default=None)
        if most is None or most.waiting is None:
            return None
        if most.key == key and user is not None and isinstance(most.waiting, TurnQueue):
            newest = most.waiting.crowding(user)
            return None if newest is None else (key, newest)
        if len(most.waiting) < own + 2:
            return None
        return most.key, next(reversed(most.waiting))

    # -- grants ----------------------------------------------------------------------------------------------------

    def charge(self, key: Hashable, input_tokens: float, bound: int | None = 0, weight: float = 1.0) -> KeyShare[W]:
        """Charge a grant to its key (`charged`), before its answer is known; `bound` is the most output tokens, None
        for any. Each charge is settled once."""
        share = self._keys.get(key) or self._meet(key)
        output = self._mean if share.mean is None else share.mean
        if bound is not None and bound < output:
            output = bound
        share.charged = cost = input_tokens + self.output_weight * output
        share.finish = self._start(share) + cost / weight
        inflight = share.inflight
        share.inflight = inflight + 1
        if share.waiting is not None:
            self._push(share)
        elif not inflight:
            self.active += 1
        return share

    def settle(self, share: KeyShare[W], cost: float, input_tokens: int, output: int | None, weight: float) -> None:
        """Replace the charge of a grant that has ended by its true tokens. `output` is None where no answer began:
        that says nothing about the next answer."""
        share.finish += (self._used(share, input_tokens, output) - cost) / weight
        share.inflight = inflight = share.inflight - 1
        if share.waiting is not None:
            self._push(share)
        elif not inflight:
            self._rest()

    def charge_ended(self, key: Hashable, input_tokens: int, output: int | None, weight: float = 1.0) -> None:
        """Charge a grant that was `uncharged` and has ended; arguments as for `settle`."""
        share = self._keys.get(key) or self._meet(key)
        used = self._used(share, input_tokens, output)
        if self.active or self.uncharged:
            share.finish = self._start(share) + used / weight
        else:  # nothing is in flight any more
            self.period += 1
            self.base = self.virtual

    def _start(self, share: KeyShare[W]) -> float:
        """The tag of a key that is granted a slot; the virtual time follows."""
        start = self.virtual - self.credit
        if share.period != self.period:
            share.period = self.period
            if start < self.base:
                start = self.base
        elif start < share.finish:
            start = share.finish
        if start > self.virtual:
            self.virtual = start
        return start

    def _used(self, share: KeyShare[W], input_tokens: int, output: int | None) -> float:
        """The true cost of a grant; its output goes into the key's mean."""
        if output is None:
            return input_tokens
        mean = share.mean
        if mean is None:  # a new key is expected to be like others were when new
            self._mean += FIRST_WEIGHT * (output - self._mean)
            share.mean = output
        else:
            share.mean = mean + MEAN_WEIGHT * (output - mean)
        return input_tokens + self.output_weight * output

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

    def _meet(self, key: Hashable) -> KeyShare[W]:
        """Remember a key that is new."""
        if len(self._keys) > self.active + IDLE_MOST:
            self._forget()
        share = self._keys[key] = KeyShare(key)
        return share

    def _rest(self) -> None:
        """Note that a key is idle from now on."""
        self.active -= 1
        if not self.active and not self.uncharged:
            self._heap.clear()
            self.period += 1
            self.base = self.virtual
            if len(self._keys) > IDLE_MOST:
                self._forget()

    def _forget(self) -> None:
        """Forget idle keys: those whose past no longer counts, and of the others those that were served less."""
        idle = [share for share in self._keys.values() if not share.inflight and share.waiting is None]
        counts = [s for s in idle if s.period == self.period and s.finish > self.virtual - self.credit]
        counts.sort(key=attrgetter("finish"), reverse=True)
        kept = set(counts[: IDLE_MOST // 2])
        for share in idle:
            if share not in kept:
                del self._keys[share.key]

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
