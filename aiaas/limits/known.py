"""This process's slots in the shared store, and the store's last answers. No I/O.

Both are kept by key, and by user where the users of a key have limits.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from aiaas.limits.model import Lease, Limits
from aiaas.limits.share import KnownState
from aiaas.limits.standing import Standing

# Keys whose last known state is kept, and users: some megabytes each.
KNOWN_LIMIT: Final = 10_000


class Holder(NamedTuple):
    """An API key (or an address); with a user, that user of it."""

    key: str
    user: str | None = None


class LastKnown:
    """The knowledge of one process.

    held  the leases of its slots
    """

    def __init__(self) -> None:
        self.held: dict[Holder, set[str]] = {}
        self._keys: OrderedDict[Holder, KnownState] = OrderedDict()  # least recently asked first
        self._users: OrderedDict[Holder, KnownState] = OrderedDict()

    def __len__(self) -> int:
        """Keys and users whose last known state is kept."""
        return len(self._keys) + len(self._users)

    def answered(self, key: str, limits: Limits, tokens: int, user: str, found: Standing, now: float) -> None:
        """Keep the answer to an admission."""
        self._remember(Holder(key), limits, tokens, found, now)
        if limits.user is not None:
            self._remember(Holder(key, user), limits.user, tokens, found.of_user(), now)

    def granted(self, lease: Lease) -> None:
        """Note the slots of an admitted request."""
        for holder, limits in _parts(lease):
            if limits.concurrent is not None:
                self.held.setdefault(holder, set()).add(lease.id)

    def settled(self, lease: Lease, used_tokens: int, ran: bool) -> None:
        """Note the settlement of an admitted request."""
        for holder, limits in _parts(lease):
            held = self.held.get(holder)
            if held is not None:
                held.discard(lease.id)
                if not held:
                    del self.held[holder]
            known = self._states_of(holder).get(holder)
            if known is not None:
                known.requests -= not (ran or limits.cheap)
                known.cheap -= not ran and limits.cheap
                known.tokens += used_tokens - lease.reserved_tokens
                known.slots -= limits.concurrent is not None

    def take(self, holder: Holder, *, keep: bool = False) -> KnownState | None:
        """Take the last known state, or `keep` it; None until the store has answered again."""
        states = self._states_of(holder)
        return states.get(holder) if keep else states.pop(holder, None)

    def held_by(self, holder: Holder) -> int:
        """How many slots this process's requests hold."""
        held = self.held.get(holder)
        return 0 if held is None else len(held)

    def _remember(self, holder: Holder, limits: Limits, tokens: int, found: Standing, now: float) -> None:
        known = KnownState(found, now)
        if found.allowed:
            slot = limits.concurrent is not None
            known = KnownState(found, now, int(not limits.cheap), tokens, int(slot), int(limits.cheap))
        states = self._states_of(holder)
        states[holder] = known
        states.move_to_end(holder)
        if len(states) > KNOWN_LIMIT:
            states.popitem(last=False)

    def _states_of(self, holder: Holder) -> OrderedDict[Holder, KnownState]:
        return self._keys if holder.user is None else self._users


def _parts(lease: Lease) -> list[tuple[Holder, Limits]]:
    parts = [(Holder(lease.key), lease.limits)]
    if lease.limits.user is not None:
        parts.append((Holder(lease.key, lease.user), lease.limits.user))
    return parts
