"""The shared store while it is reachable, else the config's fallback mode. Requests never wait for an absent store.

    local  this process counts alone: its share of each limit, beginning with its share of the rest that the key had
           when the store last answered (share.py)
    allow  let every request in
    deny   refuse every request: 503 with Retry-After

The store may be back in a moment, so a refused client is asked to wait for AWAY_RETRY only.

A request is settled where it was admitted. Local counts stay local when the store is back; but a request that was let
in before the store's answer came is settled in both (`asked.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Final, Literal

from msgspec.structs import replace

from aiaas.errors import UpstreamError
from aiaas.limits.asked import AdmissionLateError
from aiaas.limits.connection import StoreAwayError
from aiaas.limits.known import KNOWN_LIMIT
from aiaas.limits.memory import MemoryStore
from aiaas.limits.model import UNLIMITED, AdmissionResult, Decision, Lease, Limits, Rate
from aiaas.limits.redis import LEASE, RedisStore
from aiaas.limits.share import fitted, share_of, share_of_rest, slots_of_rest
from aiaas.limits.state import State

Mode = Literal["local", "allow", "deny"]

SHARED: Final = "shared"
AWAY_RETRY: Final = 1.0  # seconds
RETRY_AFTER_HEADERS: Final = (("retry-after", "1"), ("retry-after-ms", "1000"))

_NOTHING_KNOWN: Final = AdmissionResult(None, None, None, None, None)


class FallbackStore:
    """`aiaas.limits.model.Store`: `shared` while it is reachable.

    processes  how many gateway processes share the limits, by the config; the store's own count wins
    decisions  how many requests were decided by `shared`, `local`, `allow` or `deny`
    """

    def __init__(self, shared: RedisStore, mode: Mode, processes: int) -> None:
        self.shared = shared
        self._local = MemoryStore()
        self._slots: dict[tuple[str, str | None], tuple[int, float]] = {}  # how many may run, until when
        self._mode: Mode = mode
        self._processes = processes
        self.decisions = {SHARED: 0, mode: 0}

    def follow(self, mode: Mode, processes: int, patience: float) -> None:
        """Use this mode for new requests. Admitted requests settle under the old one."""
        self._mode = mode
        self._processes = processes
        self.decisions.setdefault(mode, 0)
        self.shared.follow(patience)

    def __repr__(self) -> str:
        return f"FallbackStore({self.shared!r}, {self._mode})"

    @property
    def processes(self) -> int:
        """How many processes share the limits: by the store's count, or else by the config."""
        return self.shared.processes or self._processes

    async def admit(
        self, key: str, limits: Limits, tokens: int, now: float, wall: float, user: str = ""
    ) -> AdmissionResult:
        """As in `Store.admit`. Raises UpstreamError 503 while the store is away and the mode is `deny`."""
        if limits == UNLIMITED:  # nothing to count
            return await self._local.admit(key, limits, tokens, now, wall)
        asked = None
        try:
            admission = await self.shared.admit(key, limits, tokens, now, wall, user)
        except AdmissionLateError as error:
            asked = error.asked
        except StoreAwayError:
            pass
        else:
            self.decisions[SHARED] += 1
            return admission
        admission = await self._alone(key, limits, tokens, now, wall, user)
        if asked is None or admission.lease is None:
            return admission
        asked.runs()
        return replace(admission, lease=replace(admission.lease, late=asked))

    async def look(self, key: str, limits: Limits, now: float, user: str = "") -> AdmissionResult:
        """As in `Store.look`; without limits while they are unknown."""
        try:
            return await self.shared.look(key, limits, now, user)
        except StoreAwayError:
            pass
        if self._mode != "local":
            return _NOTHING_KNOWN
        share = self._begun(key, limits, now, user)
        return _as_told(await self._local.look(key, share, now, user), limits, share)

    def seen(self, key: str, limits: Limits, now: float) -> tuple[State, Limits] | None:
        """The state of a key as far as this process knows it, and the limits that it counts against, which are this
        process's share while the store is away. None where nothing is known."""
        if not self.shared.up:
            return self._local.seen(key, share_of(limits, self.processes), now)
        known = self.shared.last_known(key, keep=True)
        if known is None:
            return None
        state = share_of_rest(known, limits, 1, now)
        state.slots = known.standing.state.slots + known.slots
        return state, limits

    def settle(self, lease: Lease, used_tokens: int, now: float, wall: float, *, ran: bool = True) -> None:
        """As in `Store.settle`."""
        (self.shared if lease.id else self._local).settle(lease, used_tokens, now, wall, ran=ran)
        if lease.late is not None:
            lease.late.settle(used_tokens, ran)

    async def close(self) -> None:
        """As in `Store.close`."""
        await self.shared.close()

    # -- without the store ----------------------------------------------------------------------------------------

    async def _alone(
        self, key: str, limits: Limits, tokens: int, now: float, wall: float, user: str
    ) -> AdmissionResult:
        self.decisions[self._mode] += 1
        if self._mode == "deny":
            message = "The limits of this key cannot be checked just now; try again shortly."
            raise UpstreamError(503, "overloaded", message, headers=RETRY_AFTER_HEADERS)
        if self._mode == "allow":
            return AdmissionResult(None, None, None, None, Lease(key, UNLIMITED, tokens, False, wall))
        share = self._begun(key, limits, now, user)
        wanted = fitted(tokens, limits, share)
        admission = await self._local.admit(key, share, wanted, now, wall, user)
        # A share with something left also lets in a request that reserves more, and works that off: each turn asks
        # for less than the one before, by the rest of the limit that refused.
        while admission.refusal is not None and admission.refused_by in ("tokens", "quota"):
            if admission.refusal.retry_after is None or not 0 < admission.refusal.remaining < wanted:
                break
            wanted = admission.refusal.remaining
            admission = await self._local.admit(key, share, wanted, now, wall, user)
        return _as_told(admission, limits, share)

    def _begun(self, key: str, limits: Limits, now: float, user: str) -> Limits:
        """The share of a key, and of its user, which begin with a part of the rest."""
        share = self._begun_of(key, None, limits, now)
        if limits.user is None:
            return share
        return dataclasses.replace(share, user=self._begun_of(key, user, limits.user, now))

    def _begun_of(self, key: str, user: str | None, limits: Limits, now: float) -> Limits:
        processes = self.processes
        share = share_of(limits, processes)
        known = self.shared.last_known(key, user)
        if known is not None:
            self._local.begin(key, share_of_rest(known, limits, processes, now), user)
        if share.concurrent is None or limits.concurrent is None:
            return share
        held = self.shared.held_by(key, user)
        if known is not None:
            # The number of taken slots is trusted for the lifetime of a lease.
            if len(self._slots) >= KNOWN_LIMIT:
                self._slots.clear()
            self._slots[key, user] = (slots_of_rest(known, limits.concurrent, processes, held), known.at + LEASE)
        most, until = self._slots.get((key, user), (share.concurrent, now))
        if until < now:
            self._slots.pop((key, user), None)
            most = share.concurrent
        return dataclasses.replace(share, concurrent=max(most - held, 0))


def _as_told(admission: AdmissionResult, limits: Limits, share: Limits) -> AdmissionResult:
    """The answer for the client: with its limits, not this process's share, and a short Retry-After."""
    parts = [(limits, share)]
    if limits.user is not None and share.user is not None:
        parts.insert(0, (limits.user, share.user))
    refusal = admission.refusal
    if refusal is not None:
        refusal = _refusal_as_told(refusal, str(admission.refused_by), *parts[0 if admission.of_user else -1])
    return replace(
        admission,
        requests=_of_whole(admission.requests, [(whole.requests, part.requests) for whole, part in parts]),
        tokens=_of_whole(admission.tokens, [(whole.tokens, part.tokens) for whole, part in parts]),
        refusal=refusal,
    )


def _of_whole(decision: Decision | None, rates: list[tuple[Rate | None, Rate | None]]) -> Decision | None:
    """The Decision with the limit of which this process has a share."""
    for whole, part in rates:
        if decision is not None and whole is not None and part is not None and decision.limit == part.per_minute:
            return replace(decision, limit=whole.per_minute)
    return decision


def _refusal_as_told(refusal: Decision, by: str, limits: Limits, share: Limits) -> Decision:
    quota = limits.tokens_per_day if refusal.limit == share.tokens_per_day else limits.tokens_per_month
    rate = {"requests": limits.requests, "tokens": limits.tokens}.get(by)
    whole = {"concurrency": limits.concurrent, "quota": quota}.get(by) if rate is None else rate.per_minute
    wait = None if refusal.retry_after is None else min(refusal.retry_after, AWAY_RETRY)
    return replace(refusal, limit=refusal.limit if whole is None else whole, retry_after=wait)
