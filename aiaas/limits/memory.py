"""The limiter's state in this process: one small record for each key that was used lately.

All limits are decided first, and charged only if every one lets the request in; so a refused request costs nothing.

A request's tokens count in the UTC day and month of its admission, even when it ends in the next one.

A record that equals a fresh one is dropped: each admission checks one record, in rounds over all of them, and the first
one of a key checks two, so that dropping outruns adding. So a background task is not needed, and there are never more
than about twice as many records as keys in use. A key's record has the states of its users, of MOST_USERS at most.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from aiaas.limits.gcra import decide
from aiaas.limits.model import AdmissionResult, Lease, Limits
from aiaas.limits.state import (
    MOST_USERS,
    State,
    Windows,
    counts_tokens,
    has_quota,
    has_slot,
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
        windows = self._windows_now(wall)
        state = known = self._states.get(key)
        if state is None:
            state = State()
        if limits.user is None:
            lease = Lease(key, limits, tokens, limits.concurrent is not None, wall)
            result = _take(state, lease, now, windows)
        else:
            lease = Lease(key, limits, tokens, limits.concurrent is not None, wall, user=user)
            result = _take_both(state, lease, limits.user, now, windows)
        if result.lease is None:
            return result
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
        own = None if state.users is None else state.users.get(user)
        return together(whole, seen(own or State(), limits.user, 0, 0, now, None))

    def settle(self, lease: Lease, used_tokens: int, now: float, wall: float, *, ran: bool = True) -> None:
        """As in `Store.settle`."""
        limits = lease.limits
        difference = used_tokens - lease.reserved_tokens
        if ran and not has_slot(lease) and (not difference or not counts_tokens(limits)):
            return
        state = self._states.get(lease.key)
        if state is None:  # dropped meanwhile: the reservation has been worked off; tokens used beyond it count
            state = self._states[lease.key] = State()
        windows = self._windows_now(wall)
        state.settle(lease, difference, ran, now, windows)
        if limits.user is not None:
            users = _users_of(state)
            users.setdefault(lease.user, State()).settle(_of_user(lease, limits.user), difference, ran, now, windows)
            _forget_users(users, now, windows)

    def state_of(self, key: str) -> State | None:
        """The state of a key; None where it is a fresh one."""
        return self._states.get(key)

    def begin(self, key: str, state: State, user: str | None = None) -> None:
        """Replace the state of a key or of its user, except for the slots, and for the users of the key."""
        states = self._states if user is None else _users_of(self._states.setdefault(key, State()))
        name = key if user is None else user
        before = states.get(name)
        if before is not None:
            state.slots, state.users = before.slots, before.users
        states[name] = state

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
        if state.users:
            _forget_users(state.users, now, windows)
        if state.is_fresh(now, windows):
            del self._states[key]


def _take(state: State, lease: Lease, now: float, windows: Windows) -> AdmissionResult:
    """Decide, and charge the state if all its limits let the request in."""
    limits, tokens = lease.limits, lease.reserved_tokens
    requests = minute = None
    if limits.requests is not None:
        requests, requests_tat = decide(state.cheap if limits.cheap else state.requests, limits.requests, 1, now)
    if limits.tokens is not None:
        minute, minute_tat = decide(state.tokens, limits.tokens, tokens, now)
    quota = has_quota(limits)
    if not (
        (requests is None or requests.allowed)
        and (minute is None or minute.allowed)
        and (limits.concurrent is None or state.slots < limits.concurrent)
        and (not quota or not quota_refusals(state, limits, tokens, lease.admitted_wall, windows))
    ):
        return refused(state, limits, tokens, now, lease.admitted_wall, windows)
    if requests is not None:
        if limits.cheap:
            state.cheap = requests_tat
        else:
            state.requests = requests_tat
    if minute is not None:
        state.tokens = minute_tat
    if quota:
        state.count(tokens, limits, windows)
    if lease.slot:
        state.slots += 1
    return AdmissionResult(None, requests, minute, None, lease)


def _take_both(state: State, lease: Lease, limits: Limits, now: float, windows: Windows) -> AdmissionResult:
    """Decide by the key's limits and by `limits` of its user, and charge both or neither."""
    users = _users_of(state)
    own = users.get(lease.user) or State()
    user = refused(own, limits, lease.reserved_tokens, now, lease.admitted_wall, windows)
    if user.refused_by is not None:
        return together(refused(state, lease.limits, lease.reserved_tokens, now, lease.admitted_wall, windows), user)
    key = _take(state, lease, now, windows)
    if key.lease is not None:
        user = _take(own, _of_user(lease, limits), now, windows)
        users[lease.user] = own
        users.move_to_end(lease.user)
        _forget_users(users, now, windows)
    return together(key, user)


def _of_user(lease: Lease, limits: Limits) -> Lease:
    """The lease as that of the user alone."""
    return Lease(lease.key, limits, lease.reserved_tokens, limits.concurrent is not None, lease.admitted_wall)


def _users_of(state: State) -> OrderedDict[str, State]:
    if state.users is None:
        state.users = OrderedDict()
    return state.users


def _forget_users(users: OrderedDict[str, State], now: float, windows: Windows) -> None:
    """Drop the two least recently used users if they equal fresh ones, and the first one in any case if there are too
    many."""
    for user in list(islice(users, 2)):
        if len(users) > MOST_USERS or users[user].is_fresh(now, windows):
            del users[user]
