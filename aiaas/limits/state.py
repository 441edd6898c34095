"""The state of one key, and the making of a refusal: the same for every store. Pure.

Where several limits refuse, the error names the one with the longest wait, since after a shorter one the client would
be refused again; a refusal that waiting cannot help (a reservation larger than the bucket) comes first. The limits of a
key and those of its user decide like the limits of one key.
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Final

from aiaas.limits.gcra import decide
from aiaas.limits.model import AdmissionResult, Decision, Lease, Limits

if TYPE_CHECKING:
    from aiaas.limits.memory import UserStates

SLOT_RETRY: Final = 1.0  # seconds; the time when a slot comes back is unknown
# Users of a key whose counts are kept: some 3 MB. Beyond that the least recently used one begins anew. A client that
# can name that many users could as well come as a new one each time, and the key's own limits hold.
MOST_USERS: Final = 10_000

_DAY: Final = 86400.0


@dataclass(frozen=True, slots=True)
class Windows:
    """The UTC day and month of a moment: their starts, which name them, and their ends, in POSIX seconds."""

    day: float
    day_end: float
    month: float
    month_end: float


def windows_at(wall: float) -> Windows:
    """The windows of the moment `wall`, POSIX seconds."""
    utc = datetime.fromtimestamp(wall, UTC)
    day = float(calendar.timegm((utc.year, utc.month, utc.day, 0, 0, 0)))
    month = float(calendar.timegm((utc.year, utc.month, 1, 0, 0, 0)))
    year, next_month = divmod(utc.year * 12 + utc.month, 12)
    return Windows(day, day + _DAY, month, float(calendar.timegm((year, next_month + 1, 1, 0, 0, 0))))


class State:
    """The state of a key, or of one of its users. The moments `requests`, `cheap` and `tokens` are TATs on the store's
    clock.

    day, month                starts of the windows in which tokens count
    day_tokens, month_tokens  tokens reserved or used in these windows
    users                     the states of a key's users; None where it never had any
    """

    __slots__ = ("cheap", "day", "day_tokens", "month", "month_tokens", "requests", "slots", "tokens", "users")

    def __init__(self) -> None:
        self.requests = -inf
        self.cheap = -inf
        self.tokens = -inf
        self.slots = 0
        self.day = -inf
        self.day_tokens = 0
        self.month = -inf
        self.month_tokens = 0
        self.users: UserStates | None = None

    def count(self, tokens: int, limits: Limits, windows: Windows) -> None:
        """Add to the windows that have a quota. A window later than the clock (which was set back) goes on."""
        self._turn(windows)
        if limits.tokens_per_day is not None:
            self.day_tokens += tokens
        if limits.tokens_per_month is not None:
            self.month_tokens += tokens

    def correct(self, tokens: int, limits: Limits, counted_in: Windows, current: Windows) -> None:
        """Add to the windows `counted_in`, unless they have ended."""
        self._turn(current)
        if limits.tokens_per_day is not None and counted_in.day == self.day:
            self.day_tokens = max(self.day_tokens + tokens, 0)
        if limits.tokens_per_month is not None and counted_in.month == self.month:
            self.month_tokens = max(self.month_tokens + tokens, 0)

    def _turn(self, windows: Windows) -> None:
        if self.day < windows.day:
            self.day = windows.day
            self.day_tokens = 0
        if self.month < windows.month:
            self.month = windows.month
            self.month_tokens = 0

    def is_fresh(self, now: float, windows: Windows) -> bool:
        """Whether a new record would make the same decisions."""
        return (
            self.requests <= now
            and self.cheap <= now
            and self.tokens <= now
            and not self.slots
            and not self.users
            and (not self.day_tokens or self.day < windows.day)
            and (not self.month_tokens or self.month < windows.month)
        )


def has_quota(limits: Limits) -> bool:
    """Whether tokens are counted in a day or a month."""
    return limits.tokens_per_day is not None or limits.tokens_per_month is not None


def quota_refusals(
    state: State, limits: Limits, tokens: int, wall: float, windows: Windows
) -> list[tuple[str, Decision]]:
    """The refusals of the day's and the month's quota for `tokens` more."""
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


def _slot_refusals(state: State, limits: Limits) -> list[tuple[str, Decision]]:
    if limits.concurrent is None or state.slots < limits.concurrent:
        return []
    return [("concurrency", Decision(False, limits.concurrent, 0, SLOT_RETRY, SLOT_RETRY))]


def refused(state: State, limits: Limits, tokens: int, now: float, wall: float, windows: Windows) -> AdmissionResult:
    """The result of a refusal, which charges nothing; the Decisions of other limits are as without the request.

    Where all these limits would let the request in, `refused_by` and `refusal` are None.
    """
    requests = minute = None
    refusals = quota_refusals(state, limits, tokens, wall, windows) + _slot_refusals(state, limits)
    if limits.requests is not None:
        requests_tat = state.cheap if limits.cheap else state.requests
        requests = decide(requests_tat, limits.requests, 1, now)[0]
        if requests.allowed:
            requests = decide(requests_tat, limits.requests, 0, now)[0]
        else:
            refusals.append(("requests", requests))
    if limits.tokens is not None:
        minute = decide(state.tokens, limits.tokens, tokens, now)[0]
        if minute.allowed:
            minute = decide(state.tokens, limits.tokens, 0, now)[0]
        else:
            refusals.append(("tokens", minute))
    by, refusal = max(refusals, key=lambda named: _wait(named[1]), default=(None, None))
    return AdmissionResult(by, requests, minute, refusal, None)


def seen(state: State, limits: Limits, requests: int, tokens: int, now: float, lease: Lease | None) -> AdmissionResult:
    """The result of an admission, or of a look."""
    decided = minute = None
    if limits.requests is not None:
        decided = decide(state.cheap if limits.cheap else state.requests, limits.requests, requests, now)[0]
    if limits.tokens is not None:
        minute = decide(state.tokens, limits.tokens, tokens, now)[0]
    return AdmissionResult(None, decided, minute, None, lease)


def together(key: AdmissionResult, user: AdmissionResult) -> AdmissionResult:
    """The result of a key's limits and those of its user, as one."""
    named = user if _wait(user.refusal) > _wait(key.refusal) else key
    return AdmissionResult(
        named.refused_by,
        _tighter(key.requests, user.requests),
        _tighter(key.tokens, user.tokens),
        named.refusal,
        key.lease,
        named is user,
    )


def _tighter(key: Decision | None, user: Decision | None) -> Decision | None:
    if key is None:
        return user
    if user is None:
        return key
    if key.allowed is not user.allowed:
        return user if key.allowed else key
    if key.remaining == user.remaining:
        return user if user.reset_after > key.reset_after else key
    return user if user.remaining < key.remaining else key


def _wait(refusal: Decision | None) -> float:
    if refusal is None:
        return -1.0
    return inf if refusal.retry_after is None else refusal.retry_after
