"""The limiter's state in this process: one small record for each key that is not as good as new.

All limits of a request are decided first and charged only if every one lets it in, so a refused request costs nothing.
Where several refuse, the one named is that whose wait is longest, since after a shorter one the client would be refused
again; a wait that cannot help (a reservation larger than the bucket) comes before all.

A request's tokens count in the UTC day and month of its admission, also when it ends in the next.

A record that equals a fresh one is forgotten: each admission looks at the two records that were longest not looked at.
So there is no background task, and never more than about twice as many records as there are keys in use.
"""

from __future__ import annotations

import calendar
import time
from collections import OrderedDict
from math import inf
from typing import Final, NamedTuple

from aiaas.limits.gcra import charge, decide
from aiaas.limits.model import Admission, Decision, Lease, Limits

SLOT_RETRY: Final = 1.0  # seconds; when a slot comes back cannot be known (contract section 5)

_DAY: Final = 86400.0
_LOOKED_AT: Final = 2  # records per admission: more than one, so that forgetting outruns adding


class MemoryStore:
    """`aiaas.limits.model.Store` for one process. Its methods never suspend."""

    def __init__(self) -> None:
        self._states: OrderedDict[str, _State] = OrderedDict()
        self._windows = _windows(0.0)

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._states)} keys)"

    def __len__(self) -> int:
        """Records held."""
        return len(self._states)

    async def admit(self, key: str, limits: Limits, tokens: int, now: float, wall: float) -> Admission:
        """As in `Store.admit`. `tokens` is 0 or more."""
        windows = self._windows_at(wall)
        state = self._states.get(key)
        if state is None:
            state = _State()
        requests = minute = None
        if limits.requests is not None:
            requests, requests_tat = decide(state.requests, limits.requests, 1, now)
        if limits.tokens is not None:
            minute, minute_tat = decide(state.tokens, limits.tokens, tokens, now)
        if not (
            (requests is None or requests.allowed)
            and (minute is None or minute.allowed)
            and (limits.concurrent is None or state.slots < limits.concurrent)
            and (not _has_quota(limits) or not _quota_refusals(state, limits, tokens, wall, windows))
        ):
            return _refused(state, limits, tokens, now, wall, windows)
        if requests is not None:
            state.requests = requests_tat
        if minute is not None:
            state.tokens = minute_tat
        if _has_quota(limits):
            state.count(tokens, limits, windows)
        slot = limits.concurrent is not None
        if slot:
            state.slots += 1
        self._states[key] = state
        self._forget(now, windows)
        return Admission(None, requests, minute, None, Lease(key, limits, tokens, now, slot, wall))

    async def look(self, key: str, limits: Limits, now: float) -> Admission:
        """As in `Store.look`."""
        state = self._states.get(key) or _State()
        requests = None if limits.requests is None else decide(state.requests, limits.requests, 0, now)[0]
        tokens = None if limits.tokens is None else decide(state.tokens, limits.tokens, 0, now)[0]
        return Admission(None, requests, tokens, None, None)

    async def settle(self, lease: Lease, used_tokens: int, now: float, wall: float, *, ran: bool = True) -> None:
        """As in `Store.settle`."""
        limits = lease.limits
        difference = used_tokens - lease.reserved_tokens
        if ran and not lease.slot and (not difference or (limits.tokens is None and not _has_quota(limits))):
            return
        state = self._states.get(lease.key)
        if state is None:  # forgotten meanwhile: what was reserved has been worked off, what was used beyond counts
            state = self._states[lease.key] = _State()
        if lease.slot and state.slots:
            state.slots -= 1
        if not ran and limits.requests is not None:
            state.requests = charge(state.requests, limits.requests, -1, now)
        if difference and limits.tokens is not None:
            state.tokens = charge(state.tokens, limits.tokens, difference, now)
        if difference and _has_quota(limits):
            windows = self._windows_at(wall)
            today = windows.day <= lease.admitted_wall < windows.day_end
            state.correct(difference, limits, windows if today else _windows(lease.admitted_wall), windows)

    async def close(self) -> None:
        """Nothing to let go of."""

    def _windows_at(self, wall: float) -> _Windows:
        if not self._windows.day <= wall < self._windows.day_end:
            self._windows = _windows(wall)
        return self._windows

    def _forget(self, now: float, windows: _Windows) -> None:
        for _ in range(min(_LOOKED_AT, len(self._states))):
            key, state = self._states.popitem(last=False)
            if not state.is_fresh(now, windows):
                self._states[key] = state  # at the end: the others come first


class _Windows(NamedTuple):
    """The UTC day and month of a moment: their starts, which name them, and their ends, in POSIX seconds."""

    day: float
    day_end: float
    month: float
    month_end: float


def _windows(wall: float) -> _Windows:
    utc = time.gmtime(wall)
    day = float(calendar.timegm((utc.tm_year, utc.tm_mon, utc.tm_mday, 0, 0, 0)))
    month = float(calendar.timegm((utc.tm_year, utc.tm_mon, 1, 0, 0, 0)))
    year, next_month = divmod(utc.tm_year * 12 + utc.tm_mon, 12)
    return _Windows(day, day + _DAY, month, float(calendar.timegm((year, next_month + 1, 1, 0, 0, 0))))


class _State:
    """What is kept for one key. The moments `requests` and `tokens` are TATs on the monotonic clock.

    day, month                starts of the windows that tokens are counted in
    day_tokens, month_tokens  reserved or used in them
    """

    __slots__ = ("day", "day_tokens", "month", "month_tokens", "requests", "slots", "tokens")

    def __init__(self) -> None:
        self.requests = -inf
        self.tokens = -inf
        self.slots = 0
        self.day = -inf
        self.day_tokens = 0
        self.month = -inf
        self.month_tokens = 0

    def count(self, tokens: int, limits: Limits, windows: _Windows) -> None:
        """Add to the windows that have a quota. One that is later than the clock says (it was set back) goes on."""
        self._turn(windows)
        if limits.tokens_per_day is not None:
            self.day_tokens += tokens
        if limits.tokens_per_month is not None:
            self.month_tokens += tokens

    def correct(self, tokens: int, limits: Limits, counted_in: _Windows, current: _Windows) -> None:
        """Add to those of the windows `counted_in` that are not over."""
        self._turn(current)
        if limits.tokens_per_day is not None and counted_in.day == self.day:
            self.day_tokens = max(self.day_tokens + tokens, 0)
        if limits.tokens_per_month is not None and counted_in.month == self.month:
            self.month_tokens = max(self.month_tokens + tokens, 0)

    def _turn(self, windows: _Windows) -> None:
        if self.day < windows.day:
            self.day = windows.day
            self.day_tokens = 0
        if self.month < windows.month:
            self.month = windows.month
            self.month_tokens = 0

    def is_fresh(self, now: float, windows: _Windows) -> bool:
        """Whether a new record would decide all the same."""
        return (
            self.requests <= now
            and self.tokens <= now
            and not self.slots
            and (not self.day_tokens or self.day < windows.day)
            and (not self.month_tokens or self.month < windows.month)
        )


def _has_quota(limits: Limits) -> bool:
    return limits.tokens_per_day is not None or limits.tokens_per_month is not None


def _quota_refusals(
    state: _State, limits: Limits, tokens: int, wall: float, windows: _Windows
) -> list[tuple[str, Decision]]:
    refusals = []
    if limits.tokens_per_day is not None:
        used = state.day_tokens if state.day >= windows.day else 0
        if used + tokens > limits.tokens_per_day:
            refusals.append(("quota", _quota(limits.tokens_per_day, used, tokens, windows.day_end - wall)))
    if limits.tokens_per_month is not None:
        used = state.month_tokens if state.month >= windows.month else 0
        if used + tokens > limits.tokens_per_month:
            refusals.append(("quota", _quota(limits.tokens_per_month, used, tokens, windows.month_end - wall)))
    return refusals


def _quota(limit: int, used: int, tokens: int, left: float) -> Decision:
    return Decision(False, limit, max(limit - used, 0), left, left if tokens <= limit else None)


def _slot_refusals(state: _State, limits: Limits) -> list[tuple[str, Decision]]:
    if limits.concurrent is None or state.slots < limits.concurrent:
        return []
    return [("concurrency", Decision(False, limits.concurrent, 0, SLOT_RETRY, SLOT_RETRY))]


def _refused(state: _State, limits: Limits, tokens: int, now: float, wall: float, windows: _Windows) -> Admission:
    """Nothing was charged; where a limit would have let the request in, its Decision says how it stands without it."""
    requests = minute = None
    refusals = _quota_refusals(state, limits, tokens, wall, windows) + _slot_refusals(state, limits)
    if limits.requests is not None:
        requests = decide(state.requests, limits.requests, 1, now)[0]
        if requests.allowed:
            requests = decide(state.requests, limits.requests, 0, now)[0]
        else:
            refusals.append(("requests", requests))
    if limits.tokens is not None:
        minute = decide(state.tokens, limits.tokens, tokens, now)[0]
        if minute.allowed:
            minute = decide(state.tokens, limits.tokens, 0, now)[0]
        else:
            refusals.append(("tokens", minute))
    by, refusal = max(refusals, key=lambda named: inf if named[1].retry_after is None else named[1].retry_after)
    return Admission(by, requests, minute, refusal, None)
