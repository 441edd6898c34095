"""An admission that the shared store did not answer in time. Its answer is settled when it comes."""

from __future__ import annotations

from typing import Protocol

from aiaas.limits.connection import StoreLateError
from aiaas.limits.model import Lease, Limits
from aiaas.limits.resp import Reply
from aiaas.limits.standing import Standing, standing


class Grants(Protocol):
    """The part of the store that a late answer needs."""

    def granted(self, key: str, limits: Limits, tokens: int, found: Standing, lease_id: str, user: str = "") -> Lease:
        """The lease of what the store admitted; its slots are renewed from now on."""

    def settle_now(self, lease: Lease, used_tokens: int, ran: bool) -> None:
        """As `Store.settle`."""


class Asked:
    """Called with the store's reply where it comes too late, or after the request has left.

    An admitted request is settled as it ended: at once, or by `settle` where the request still runs.
    """

    __slots__ = ("_ended", "_key", "_lease", "_lease_id", "_limits", "_store", "_tokens", "_user")

    def __init__(self, store: Grants, key: str, limits: Limits, tokens: int, lease_id: str, user: str = "") -> None:
        self._store = store
        self._key = key
        self._limits = limits
        self._tokens = tokens
        self._lease_id = lease_id
        self._user = user
        self._lease: Lease | None = None
        self._ended: tuple[int, bool] | None = (0, False)

    def runs(self) -> None:
        """Note that the request was let in without the store; `settle` follows."""
        self._ended = None

    def settle(self, used_tokens: int, ran: bool) -> None:
        """Settle the request that has ended, as in `Store.settle`."""
        self._ended = (used_tokens, ran)
        if self._lease is not None:
            self._store.settle_now(self._lease, used_tokens, ran)

    def __call__(self, reply: Reply) -> None:
        """Take the late reply. An error or a refusal charged nothing."""
        if not isinstance(reply, bytes) or not (found := standing(reply)).allowed:
            return
        self._lease = self._store.granted(self._key, self._limits, self._tokens, found, self._lease_id, self._user)
        if self._ended is not None:
            self._store.settle_now(self._lease, *self._ended)


class AdmissionLateError(StoreLateError):
    """The store did not answer in time, and may have admitted the request. `asked` waits for the answer."""

    def __init__(self, reason: str, asked: Asked) -> None:
        super().__init__(reason)
        self.asked = asked
