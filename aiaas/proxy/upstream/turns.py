"""The waiting requests of one key whose users take turns: each user's first, then each one's second, and so on.

For a key behind which an application serves many people and names each one in a header (`users_header` of the key).
To the other keys it stays one key, with one share. Users are known by a hash (`Record.key_user`), here only while they
wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

_W = TypeVar("_W", bound=Hashable)

MOST_TURNS: Final = 10_000  # of a key, that wait at a time; further ones share one turn
_OTHERS: Final = ""


class TurnQueue(Generic[_W]):
    """Behaves as an OrderedDict of waiters to their users would, as far as `FairShare` uses one.

    Its iteration begins with the waiter that is next, the reversed one with the newest of the user with the most.
    """

    __slots__ = ("_user_of", "_users")

    def __init__(self) -> None:
        self._user_of: dict[_W, str] = {}
        self._users: OrderedDict[str, OrderedDict[_W, None]] = OrderedDict()  # in the order of their turns

    def __len__(self) -> int:
        return len(self._user_of)

    def __contains__(self, waiter: object) -> bool:
        return waiter in self._user_of

    def __setitem__(self, waiter: _W, user: str | None) -> None:
        """Queue the waiter. A user who had nothing waiting comes after the others."""
        user = user or _OTHERS
        if user not in self._users and len(self._users) >= MOST_TURNS:
            user = _OTHERS
        self._user_of[waiter] = user
        self._users.setdefault(user, OrderedDict())[waiter] = None

    def __delitem__(self, waiter: _W) -> None:
        """Remove the waiter. If it was its user's next one, the user has had a turn."""
        user = self._user_of.pop(waiter)
        waiting = self._users[user]
        was_next = next(iter(waiting)) == waiter
        del waiting[waiter]
        if not waiting:
            del self._users[user]
        elif was_next:
            self._users.move_to_end(user)

    def __iter__(self) -> Iterator[_W]:
        for waiting in self._users.values():
            yield from waiting

    def __reversed__(self) -> Iterator[_W]:
        for waiting in sorted(self._users.values(), key=len, reverse=True):
            yield from reversed(waiting)

    def ahead(self, user: str) -> int:
        """How many requests come before a new one of this user, if nobody else sends any."""
        own = len(self._users.get(user, ()))
        others = sum(min(len(waiting), own + 1) for name, waiting in self._users.items() if name != user)
        return own + others

    def crowding(self, user: str) -> _W | None:
        """The newest request of the user with the most waiting, if that are at least two more than `user` has."""
        most = max(self._users.values(), key=len, default=None)
        if most is None or len(most) < len(self._users.get(user, ())) + 2:
            return None
        return next(reversed(most))
