"""A request at a backend with a bound: its demand, its wait for a slot, and its grant of one."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from aiaas.proxy.request.visit import Visit

if TYPE_CHECKING:
    from aiaas.proxy.upstream.backends import BackendState
    from aiaas.proxy.upstream.endpoint import EndpointState
    from aiaas.proxy.upstream.fair_share import FairShare, KeyShare

# The first byte of an answer that is not a stream comes at its end. Its prompt counts as read after this time; to take
# it as longer would hold up other prompts while the engine only generates.
PREFILL_RATE: Final = 20_000.0  # prompt tokens a second
PREFILL_MOST: Final = 0.5  # seconds; most of a long prompt is in the engine's cache


class Demand(msgspec.Struct, frozen=True, gc=False):
    """The tokens of a request, as far as they are known before its answer.

    key           between which slots are fair
    input_tokens  of its prompt, estimated
    bound         the most output tokens, None for any; 0 where it generates none
    weight        of its class, against 1
    user          whose turn it is among the requests of the key; None for a key whose users do not take turns
    """

    key: Hashable
    input_tokens: int = 0
    bound: int | None = None
    weight: float = 1.0
    user: str | None = None


class Waiter:
    """A request that waits for a slot, of any backend of its route.

    tried    endpoints that it has tried
    visit    the request, as far as its session decides on the endpoint
    path     of the request
    granted  the endpoint whose slot it now has, by the backend `by`, with the `grant` if the endpoint has a bound;
             None: look again, as nothing is up any more, or `expired`, or `displaced`
    places   how many backends it still may hear from
    """

    __slots__ = ("by", "demand", "displaced", "expired", "grant", "granted", "path", "places", "tried", "visit")

    def __init__(
        self,
        demand: Demand,
        tried: Sequence[EndpointState],
        visit: Visit | None,
        granted: asyncio.Future[EndpointState | None],
        path: str = "",
    ) -> None:
        self.demand = demand
        self.tried = tried
        self.visit = visit
        self.granted = granted
        self.path = path
        self.by: BackendState | None = None
        self.grant: Grant | None = None
        self.expired = self.displaced = False
        self.places = 0

    def now(self) -> float:
        """The time of the loop that it waits in."""
        return self.granted.get_loop().time()

    def expire(self) -> None:
        """End the wait after `max_wait`; does nothing if the waiter already has its answer."""
        if not self.granted.done():
            self.expired = True
            self.granted.set_result(None)

    def displace(self) -> None:
        """Another key's request takes its place in one queue; in the last one, its wait ends."""
        self.places -= 1
        if not self.places and not self.granted.done():
            self.displaced = True
            self.granted.set_result(None)


class Grant(msgspec.Struct, eq=False, gc=False):
    """An attempt's slot at an endpoint with a bound. It ends once, by `settle`, before the slot goes back.

    key, input_tokens, bound, weight  as in Demand
    is_read  its first byte has come, or counts as come
    cached   of the prompt tokens, those that the endpoint has in its cache: they are not pending
    share    of its key, while it is charged: None while it is `uncharged`, and once it has ended
    cost     what was charged
    """

    endpoint: EndpointState
    fair: FairShare[Waiter]
    key: Hashable
    input_tokens: int
    bound: int | None
    weight: float = 1.0
    is_read: bool = False
    reserved: bool = False
    share: KeyShare[Waiter] | None = None
    cost: float = 0.0
    cached: int = 0

    @property
    def reading_time(self) -> float:
        """Seconds after which the prompt counts as read, where no first byte says so."""
        return min(PREFILL_MOST, (self.input_tokens - self.cached) / PREFILL_RATE)

    def charge(self) -> None:
        """Charge it for its prompt, and for the output that its key's answers mostly have."""
        self.share = share = self.fair.charge(self.key, self.input_tokens, self.bound, self.weight)
        self.cost = share.charged
        if not self.is_read:
            share.prompts += 1

    def count_cached(self, tokens: int) -> None:
        """These tokens of its prompt are in the endpoint's cache, so they hold up no other prompt."""
        if self.is_read:
            return
        endpoint, self.cached = self.endpoint, tokens
        endpoint.pending -= tokens
        if self.reserved:
            endpoint.pending_reserved -= tokens
            if endpoint.pool.inflight <= (endpoint.bound or 0):
                self.reserved = False  # it has a slot of its own
                endpoint.reserved -= 1
                endpoint.pending_reserved -= self.input_tokens - tokens
        endpoint.hand_over()

    def start_timer(self, began: float) -> None:
        """Find out when the prompt counts as read, where no first byte says so; `began` is a loop's time."""
        loop = asyncio.get_running_loop()
        read_at = began + self.reading_time
        if read_at > loop.time():
            loop.call_at(read_at, self.prompt_read)
        elif not self.is_read:
            self._count_read()

    def prompt_read(self) -> None:
        """The first byte has come: make room for the next prompt."""
        if self.is_read:
            return
        if self.share is not None:
            self._count_read()
            self.endpoint.hand_over()
        elif self in self.fair.uncharged:  # nothing waits
            self.is_read = True
            self.endpoint.pending -= self.input_tokens

    def settle(self, input_tokens: int, output_tokens: int | None) -> None:
        """The attempt has ended and used this; `output_tokens` is None where no answer began."""
        fair, share = self.fair, self.share
        if share is not None:
            if not self.is_read:
                self._count_read()
            self.share = None
            fair.settle(share, self.cost, input_tokens, output_tokens, self.weight)
        elif fair.uncharged.pop(self, None) is not None:
            if not self.is_read:
                self.endpoint.pending -= self.input_tokens - self.cached
            fair.charge_ended(self.key, input_tokens, output_tokens, self.weight)

    def _count_read(self) -> None:
        self.is_read = True  # the first byte comes once
        self.endpoint.pending -= self.input_tokens - self.cached
        if self.share is not None:
            self.share.prompts -= 1
            if self.reserved:
                self.endpoint.reserved -= 1
                self.endpoint.pending_reserved -= self.input_tokens - self.cached
