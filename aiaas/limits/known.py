"""This process's slots in the shared store, and the store's last answers. No I/O.

Both are kept by key, and by user where the users of a key have limits.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from aiaas.limits.model import Lease, Limits
from aiaas.limits.share import KnownState
from aiaas.limits.standing import Standing

# Keys whose last known state is kept, and users: some megabytes each.
KNOWN_LIMIT: Final = 10_000

Holder = tuple[str, str | None]  # an API key (or an address); with a user, that user of it


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
        _remember(self._keys, (key, None), limits, tokens, found, now)
        if limits.user is not None:
            _remember(self._users, (key, user), limits.user, tokens, found.of_user(), now)

    def granted(self, lease: Lease) -> None:
        """Note the slots of an admitted request."""
        if lease.slot:
            self.held.setdefault((lease.key, None), set()).add(lease.id)
        user = lease.limits.user
        if user is not None and user.concurrent is not None:
            self.held.setdefault((lease.key, lease.user), set()).add(lease.id)

    def settled(self, lease: Lease, used_tokens: int, ran: bool) -> None:
        """Note the settlement of an admitted request."""
        self._settle((lease.key, None), lease.limits, lease, used_tokens, ran)
        if lease.limits.user is not None:
            self._settle((lease.key, lease.user), lease.limits.user, lease, used_tokens, ran)

    def take(self, holder: Holder, *, keep: bool = False) -> KnownState | None:
        """Take the last known state, or `keep` it; None until the store has answered again."""
        states = self._keys if holder[1] is None else self._users
        return states.get(holder) if keep else states.pop(holder, None)

    def held_by(self, holder: Holder) -> int:
        """How many slots this process's requests hold."""
        held = self.held.get(holder)
        return 0 if held is None else len(held)

    def _settle(self, holder: Holder, limits: Limits, lease: Lease, used_tokens: int, ran: bool) -> None:
        held = self.held.get(holder)
        if held is not None:
            held.discard(lease.id)
            if not held:
                del self.held[holder]
        known = (self._keys if holder[1] is None else self._users).get(holder)
        if known is not None:
            known.requests -= not (ran or limits.cheap)
            known.cheap -= not ran and limits.cheap
            known.tokens += used_tokens - lease.reserved_tokens
            known.slots -= limits.concurrent is not None


def _remember(
    states: OrderedDict[Holder, KnownState], holder: Holder, limits: Limits, tokens: int, found: Standing, now: float
) -> None:
    known = KnownState(found, now)
    if found.allowed:
        slot = limits.concurrent is not None
        known = KnownState(found, now, int(not limits.cheap), tokens, int(slot), int(limits.cheap))
    states[holder] = known
    states.move_to_end(holder)
    if len(states) > KNOWN_LIMIT:
        states.popitem(last=False)
