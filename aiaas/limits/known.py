"""This process's slots in the shared store, and the store's last answers. No I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from aiaas.limits.model import Lease, Limits
from aiaas.limits.share import KnownState
from aiaas.limits.standing import Standing

# Keys whose last known state is kept, and users: some megabytes each.
KNOWN_LIMIT: Final = 10_000

_H = TypeVar("_H", bound=Hashable)


class LastKnown(Generic[_H]):
    """The knowledge of one process about API keys (or addresses), or about users of keys.

    held  the leases of its slots
    """

    def __init__(self) -> None:
        self.held: dict[_H, set[str]] = {}
        self._states: OrderedDict[_H, KnownState] = OrderedDict()  # least recently asked first

    def __len__(self) -> int:
        """How many last known states are kept."""
        return len(self._states)

    def answered(self, holder: _H, limits: Limits, tokens: int, found: Standing, now: float) -> None:
        """Keep the answer to an admission."""
        if found.allowed:
            cheap, slot = int(limits.cheap), int(limits.concurrent is not None)
            self._states[holder] = KnownState(found, now, 1 - cheap, tokens, slot, cheap)
        else:
            self._states[holder] = KnownState(found, now)
        self._states.move_to_end(holder)
        if len(self._states) > KNOWN_LIMIT:
            self._states.popitem(last=False)

    def settled(self, holder: _H, limits: Limits, lease: Lease, used_tokens: int, ran: bool) -> None:
        """Note the settlement of an admitted request."""
        held = self.held.get(holder)
        if held is not None:
            held.discard(lease.id)
            if not held:
                del self.held[holder]
        known = self._states.get(holder)
        if known is not None:
            known.requests -= not (ran or limits.cheap)
            known.cheap -= not ran and limits.cheap
            known.tokens += used_tokens - lease.reserved_tokens
            known.slots -= limits.concurrent is not None

    def take(self, holder: _H, *, keep: bool = False) -> KnownState | None:
        """Take the last known state, or `keep` it; None until the store has answered again."""
        return self._states.get(holder) if keep else self._states.pop(holder, None)

    def held_by(self, holder: _H) -> int:
        """How many slots this process's requests hold."""
        held = self.held.get(holder)
        return 0 if held is None else len(held)
