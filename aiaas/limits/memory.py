"""The limiter's state in this process: one small record for each key that was used lately.

All limits are decided first, and charged only if every one lets the request in; so a refused request costs nothing.

A request's tokens count in the UTC day and month of its admission, even when it ends in the next one.

A record that equals a fresh one is dropped: each admission checks one record, in rounds over all of them, and the first
one of a key checks two, so that dropping outruns adding. So a background task is not needed, and there are never more
than about twice as many records as keys in use. A key's record has those of its users, of MOST_USERS at most.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from aiaas.limits.gcra import charge, decide
from aiaas.limits.model import AdmissionResult, Lease, Limits
from aiaas.limits.state import (
    MOST_USERS,
    State,
    Windows,
    has_quota,
    quota_refusals,
    refused,
    seen,
    together,
    windows_at,
)


class MemoryStore:
    """`aiaas.limits.model.Store` for one process. Its methods never suspend."""

    def __init__(self) -> None:
        self._states: dict[str, State] = {}
        self._round: Iterator[str] = iter(())  # the keys that are still to be checked
        self._windows = windows_at(0.0)

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._states)} keys)"

    def __len__(self) -> int:
        """Records held."""
        return len(self._states)

    async def admit(
        self, key: str, limits: Limits, tokens: int, now: float, wall: float, user: str = ""
    ) -> AdmissionResult:
        """As in `Store.admit`. `tokens` is 0 or more."""
        windows = self._windows
        if not windows.day <= wall < windows.day_end:
            windows = self._windows_now(wall)
        state = known = self._states.get(key)
        if state is None:
            state = State()
        requests = minute = own = None
        if limits.user is not None:
            own = await _users_of(state).admit(user, limits.user, tokens, now, wall)
        if limits.requests is not None:
            requests, requests_tat = decide(state.cheap if limits.cheap else state.requests, limits.requests, 1, now)
        if limits.tokens is not None:
            minute, minute_tat = decide(state.tokens, limits.tokens, tokens, now)
        quota = limits.tokens_per_day is not None or limits.tokens_per_month is not None
        slot = limits.concurrent is not None
        if not (
            (requests is None or requests.allowed)
            and (minute is None or minute.allowed)
            and (limits.concurrent is None or state.slots < limits.concurrent)
            and (not quota or not quota_refusals(state, limits, tokens, wall, windows))
            and (own is None or own.lease is not None)
        ):
            whole = refused(state, limits, tokens, now, wall, windows)
            return whole if own is None else together(whole, _users_of(state).take_back(own, now, wall))
        if requests is not None:
            if limits.cheap:
                state.cheap = requests_tat
            else:
                state.requests = requests_tat
        if minute is not None:
            state.tokens = minute_tat
        if quota:
            state.count(tokens, limits, windows)
        if slot:
            state.slots += 1
        result = AdmissionResult(None, requests, minute, None, Lease(key, limits, tokens, slot, wall, "", None, user))
        if own is not None:
            result = together(result, own)
            _users_of(state).keep(user)
        self._states[key] = state
        self._forget(now, windows)
        if known is None:
            self._forget(now, windows)
        return result

    async def look(self, key: str, limits: Limits, now: float, user: str = "") -> AdmissionResult:
        """As in `Store.look`."""
        state = self._states.get(key) or State()
        whole = seen(state, limits, 0, 0, now, None)
        if limits.user is None:
            return whole
        return together(whole, await _users_of(state).look(user, limits.user, now))

    def settle(self, lease: Lease, used_tokens: int, now: float, wall: float, *, ran: bool = True) -> None:
        """As in `Store.settle`."""
        limits = lease.limits
        if limits.user is not None:
            slot = limits.user.concurrent is not None
            own = Lease(lease.user, limits.user, lease.reserved_tokens, slot, lease.admitted_wall)
            users = _users_of(self._states.setdefault(lease.key, State()))
            users.settle(own, used_tokens, now, wall, ran=ran)
        difference = used_tokens - lease.reserved_tokens
        if ran and not lease.slot and (not difference or (limits.tokens is None and not has_quota(limits))):
            return
        state = self._states.get(lease.key)
        if state is None:  # dropped meanwhile: the reservation has been worked off; tokens used beyond it count
            state = self._states[lease.key] = State()
        if lease.slot and state.slots:
            state.slots -= 1
        if not ran and limits.requests is not None:
            if limits.cheap:
                state.cheap = charge(state.cheap, limits.requests, -1, now)
            else:
                state.requests = charge(state.requests, limits.requests, -1, now)
        if not difference:
            return
        if limits.tokens is not None:
            state.tokens = charge(state.tokens, limits.tokens, difference, now)
        if has_quota(limits):
            windows = self._windows_now(wall)
            today = windows.day <= lease.admitted_wall < windows.day_end
            state.correct(difference, limits, windows if today else windows_at(lease.admitted_wall), windows)

    def seen(self, key: str, limits: Limits, _now: float) -> tuple[State, Limits] | None:
        """The state of a key, and the limits that it counts against; None where it is a fresh one."""
        state = self._states.get(key)
        return None if state is None else (state, limits)

    def begin(self, key: str, state: State, user: str | None = None) -> None:
        """Replace the state of a key or of its user, except for the slots, and for the users of the key."""
        if user is not None:
            _users_of(self._states.setdefault(key, State())).begin(user, state)
            return
        before = self._states.get(key)
        if before is not None:
            state.slots, state.users = before.slots, before.users
        self._states[key] = state

    async def close(self) -> None:
        """Do nothing: this store has nothing to close."""

    def _windows_now(self, wall: float) -> Windows:
        if not self._windows.day <= wall < self._windows.day_end:
            self._windows = windows_at(wall)
        return self._windows

    def _forget(self, now: float, windows: Windows) -> None:
        """Check the next record of the round, and drop it if it equals a fresh one."""
        key = next(self._round, None)
        if key is None:
            self._round = iter(list(self._states))
            return
        state = self._states.get(key)
        if state is None:
            return
        if state.users is not None:
            state.users._forget(now, windows)
        if state.is_fresh(now, windows):
            del self._states[key]


class UserStates(MemoryStore):
    """The users of one key, in the order of their last admission."""

    def __init__(self) -> None:
        super().__init__()
        self._states: OrderedDict[str, State] = OrderedDict()

    def keep(self, user: str) -> None:
        """Note that both the user's limits and the key's let a request in. The first users beyond MOST_USERS go."""
        if user in self._states:
            self._states.move_to_end(user)
        while len(self._states) > MOST_USERS:
            self._states.popitem(last=False)

    def take_back(self, admission: AdmissionResult, now: float, wall: float) -> AdmissionResult:
        """Undo an admission in the same moment, as the key refuses the request; the Decisions are as without it."""
        lease = admission.lease
        if lease is None:
            return admission
        self.settle(lease, 0, now, wall, ran=False)
        state = self._states.get(lease.key) or State()
        if state.is_fresh(now, self._windows):
            self._states.pop(lease.key, None)
        return seen(state, lease.limits, 0, 0, now, None)


def _users_of(state: State) -> UserStates:
    if state.users is None:
        state.users = UserStates()
    return state.users
