"""The keys of one key file, indexed to find the stored secrets that a presented key could match.

Immutable. A reload makes a new ring (in a thread; 10,000 records take some 0.1 s) and swaps one reference. Looking up
costs a checksum, two dict lookups and one digest, however many keys there are. A ring holds next to nothing that
the cyclic collector visits.

A key that aiaas made contains its id, which leads to its record; the ring compares the record's digest at once. An
imported key is found by its tag, and the caller compares its slow hash.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Final, Self

import msgspec

from aiaas.keys.format import TAG_LENGTH, WEAK_TAG_LENGTH, foreign_key_fault, parse_key, tag_of
from aiaas.keys.hashing import is_digest, verify_key
from aiaas.keys.model import KeyRecord, Principal, Rejection

_REVOKED: Final = -inf  # POSIX seconds from which a secret is refused


class StoredSecret(msgspec.Struct, frozen=True, gc=False):
    """One hash or digest that a key may match, and its owner. A rotated record has two while they overlap.

    until  POSIX seconds from which it is refused: infinity means never, minus infinity that it is revoked
    """

    principal: Principal
    hash: str
    tag: str | None
    imported: bool
    until: float

    def __repr__(self) -> str:
        return f"StoredSecret({self.principal!r}, imported={self.imported}, until={self.until})"

    def usable(self, now: float) -> bool:
        """Whether it is neither revoked nor expired at `now` (POSIX seconds)."""
        return now < self.until

    def verdict(self, now: float) -> Principal | Rejection:
        """The verdict at `now` on a key that matches this secret."""
        if now < self.until:
            return self.principal
        return Rejection("revoked" if self.until == _REVOKED else "expired", self.principal.key_id)


# Nearly always one, without a tuple, which the collector would visit.
_Secrets = StoredSecret | tuple[StoredSecret, ...]
_Sets = dict[frozenset[str], frozenset[str]]


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a look-up in the ring.

    secret     the secret whose digest matched, whatever its state
    slow       else the secrets that the key could match by a slow hash; nearly always none or one
    rejection  the verdict if none of those matches
    """

    secret: StoredSecret | None
    slow: tuple[StoredSecret, ...]
    rejection: Rejection


MALFORMED: Final = Rejection("malformed")
_TAG_LENGTHS: Final = (TAG_LENGTH, WEAK_TAG_LENGTH)


class KeyRing:
    """All keys of a key file. Build it with `from_records`.

    ids  the ids of all records, revoked and expired ones included
    """

    __slots__ = ("_by_id", "_by_tag", "ids")

    def __init__(
        self,
        ids: frozenset[str],
        by_id: dict[str, _Secrets],
        by_tag: dict[str, _Secrets],
    ) -> None:
        self.ids = ids
        self._by_id = by_id
        self._by_tag = by_tag

    def __repr__(self) -> str:
        return f"KeyRing({len(self.ids)} keys)"

    @classmethod
    def from_records(cls, records: Iterable[KeyRecord]) -> Self:
        """Index records, revoked ones included, so that the log can explain a refusal."""
        ids: list[str] = []
        by_id: dict[str, _Secrets] = {}
        by_tag: dict[str, _Secrets] = {}
        sets: _Sets = {}
        for record in records:
            ids.append(record.id)
            for secret in _secrets(record, sets):
                if not secret.imported:
                    _put(by_id, record.id, secret)
                elif secret.tag is not None and not is_digest(secret.hash):  # the key file refuses any other
                    _put(by_tag, secret.tag, secret)
        return cls(frozenset(ids), by_id, by_tag)

    def find(self, presented: str) -> Found:
        """Look up `presented`, without computing a slow hash."""
        if foreign_key_fault(presented) is not None:
            return Found(None, (), MALFORMED)
        parsed = parse_key(presented)
        own = () if parsed is None else _all(self._by_id, parsed.key_id)
        for secret in own:
            if is_digest(secret.hash) and verify_key(presented, secret.hash):
                return Found(secret, (), MALFORMED)
        slow = [*self._slow_of_our_own(presented, own), *self._imported(presented)]
        if parsed is None:
            return Found(None, tuple(slow), MALFORMED)
        return Found(None, tuple(slow), Rejection("wrong_secret" if own else "unknown_id", parsed.key_id))

    def current(self, secret: StoredSecret) -> StoredSecret | None:
        """This ring's version of the stored secret `secret`; None where it is gone."""
        key_id = secret.principal.key_id
        stored = _all(self._by_tag, secret.tag or "") if secret.imported else _all(self._by_id, key_id)
        same = (now for now in stored if now.hash == secret.hash and now.principal.key_id == key_id)
        return next(same, None)

    def expiries(self, now: float) -> tuple[int, float | None]:
        """How many secrets have expired by `now` (POSIX seconds), and when the next one will, None if none will."""
        found = [*list(self._by_id.values()), *list(self._by_tag.values())]  # `dismantle` may run meanwhile
        ends = [s.until for each in found for s in ((each,) if isinstance(each, StoredSecret) else each)]
        later = [until for until in ends if now < until < inf]
        return sum(_REVOKED < until <= now for until in ends), min(later, default=None)

    def dismantle(self) -> None:
        """Forget the keys one by one, in a thread, after the last look-up: to free 50,000 at once takes the GIL for
        60 ms."""
        for index in (self._by_id, self._by_tag):
            while index:
                index.popitem()

    def _slow_of_our_own(self, presented: str, own: tuple[StoredSecret, ...]) -> Iterator[StoredSecret]:
        """Records made elsewhere, or before digests existed: there a tag is optional."""
        for secret in own:
            if not is_digest(secret.hash) and (secret.tag is None or _tag_matches(presented, secret.tag)):
                yield secret

    def _imported(self, presented: str) -> Iterator[StoredSecret]:
        if self._by_tag:
            tag = tag_of(presented)
            for length in _TAG_LENGTHS:
                yield from _all(self._by_tag, tag[:length])


def _put(index: dict[str, _Secrets], name: str, secret: StoredSecret) -> None:
    before = index.get(name)
    index[name] = secret if before is None else (*_all(index, name), secret)


def _all(index: dict[str, _Secrets], name: str) -> tuple[StoredSecret, ...]:
    found = index.get(name, ())
    return (found,) if isinstance(found, StoredSecret) else found


EMPTY_RING: Final = KeyRing.from_records(())


def _secrets(record: KeyRecord, sets: _Sets) -> Iterator[StoredSecret]:
    expires = inf if record.expires is None else record.expires.timestamp()
    until = _REVOKED if record.disabled else expires
    principal = Principal(
        key_id=record.id,
        name=record.name,
        models=None if record.models is None else _one_set(record.models, sets),
        limits=record.limits,
        priority_class=record.priority_class,
        allow_fields=_one_set(record.allow_fields, sets) if record.allow_fields else None,
        users_header=None if record.users_header is None else record.users_header.lower(),
        user_limits=record.user_limits,
    )
    yield StoredSecret(principal, record.hash, record.tag, record.imported, until)
    if (previous := record.previous) is not None and (ends := record.overlap_end) is not None:
        until = _REVOKED if record.disabled else ends.timestamp()
        yield StoredSecret(principal, previous.hash, previous.tag, previous.imported, until)


def _one_set(names: tuple[str, ...], sets: _Sets) -> frozenset[str]:
    """The set of `names`, the same one for all keys that have it: the collector visits sets."""
    made = frozenset(names)
    return sets.setdefault(made, made)


def _tag_matches(presented: str, stored: str) -> bool:
    return hmac.compare_digest(tag_of(presented)[: len(stored)], stored)
