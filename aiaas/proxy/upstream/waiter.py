"""A request at a backend with a bound: its demand, its wait for a slot, and its grant of one."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from aiaas.proxy.upstream.backends import BackendState
    from aiaas.proxy.upstream.endpoint import EndpointState
    from aiaas.proxy.upstream.fair_share import FairShare, KeyShare

# The first byte of an answer that is not a stream comes at its end. Its prompt counts as read after this time; to take
# it as longer would hold up other prompts while the engine only generates.
PREFILL_RATE: Final = 20_000.0  # prompt tokens a second
PREFILL_MOST: Final = 0.5  # seconds; most of a long prompt is in the engine's cache


class Demand(msgspec.Struct, frozen=True, gc=False):
    """The tokens and the weight of a request, as far as they are known before its answer.

    key           between which slots are fair
    input_tokens  of its prompt, estimated
    bound         the most output tokens, None for any; 0 where it generates none
    weight        of its class, against 1
    """

    key: Hashable
    input_tokens: int = 0
    bound: int | None = None
    weight: float = 1.0


class Waiter:
    """A request that waits for a slot, of any backend of its route.

    tried    endpoints that it has tried
    body     of the request
    granted  the endpoint whose slot it now has, by the backend `by`, with the `grant` if the endpoint has a bound;
             None: look again, as nothing is up any more, or `expired`, or `displaced`
    places   how many backends it still may hear from
    """

    __slots__ = ("body", "by", "demand", "displaced", "expired", "grant", "granted", "places", "tried")

    def __init__(
        self,
        demand: Demand,
        tried: Sequence[EndpointState],
        body: bytes,
        granted: asyncio.Future[EndpointState | None],
    ) -> None:
        self.demand = demand
        self.tried = tried
        self.body = body
        self.granted = granted
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


class Grant:
    """The charge of an attempt at an endpoint with a bound. It ends once, by `settle`, before the slot goes back.

    cost     what was charged
    pending  prompt tokens that the engine has not read yet
    """

    __slots__ = ("_cost", "_demand", "_fair", "_pending", "_reserved", "_share", "endpoint")

    def __init__(self, endpoint: EndpointState, fair: FairShare[Waiter], demand: Demand, *, reserved: bool) -> None:
        self.endpoint = endpoint
        self._fair = fair
        self._demand = demand
        self._cost = fair.cost_of(demand.key, demand.input_tokens, demand.bound)
        self._pending = demand.input_tokens
        self._reserved = reserved
        share = fair.charge(demand.key, self._cost, demand.weight)
        self._share: KeyShare[Waiter] | None = share
        share.prompts += 1
        endpoint.pending += demand.input_tokens
        endpoint.reserved += reserved

    @property
    def reading_time(self) -> float:
        """Seconds after which the prompt counts as read, where no first byte says so."""
        return min(PREFILL_MOST, self._pending / PREFILL_RATE)

    def prompt_read(self) -> None:
        """The first byte has come: make room for the next prompt."""
        if self._read():
            self.endpoint.hand_over()

    def settle(self, input_tokens: int, output_tokens: int | None) -> None:
        """The attempt has ended and used this; `output_tokens` is None where no answer began."""
        share = self._share
        if share is None:
            return
        self._read()
        self._share = None
        self._fair.settle(share, self._cost, input_tokens, output_tokens, self._demand.weight)

    def _read(self) -> bool:
        share = self._share
        if share is None or self._pending < 0:
            return False
        share.prompts -= 1
        self.endpoint.pending -= self._pending
        self.endpoint.reserved -= self._reserved
        self._pending = -1  # the first byte comes once
        return True
