"""The keys of one key file, indexed to find the stored secrets that a presented key could match.

Immutable. A reload makes a new ring (in a thread; 10,000 records take some 0.1 s) and swaps one reference. Looking up
costs a checksum, two dict lookups and one digest, however many keys there are.

A key that aiaas made contains its id, which leads to its record; the ring compares the record's digest at once. An
imported key is found by its tag, and the caller compares its slow hash.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final, Self

from aiaas.keys.format import TAG_LENGTH, WEAK_TAG_LENGTH, foreign_key_fault, parse_key, tag_of
from aiaas.keys.hashing import is_digest, verify_key
from aiaas.keys.model import KeyRecord, Principal, Rejection

_REVOKED: Final = -inf  # POSIX seconds from which a secret is refused


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """One hash or digest that a key may match, and its owner. A rotated record has two while they overlap.

    until  POSIX seconds from which it is refused: infinity means never, minus infinity that it is revoked
    """

    principal: Principal
    hash: str = field(repr=False)
    tag: str | None = field(repr=False)
    imported: bool
    until: float

    def usable(self, now: float) -> bool:
        """Whether it is neither revoked nor expired at `now` (POSIX seconds)."""
        return now < self.until

    def verdict(self, now: float) -> Principal | Rejection:
        """The verdict at `now` on a key that matches this secret."""
        if now < self.until:
            return self.principal
        return Rejection("revoked" if self.until == _REVOKED else "expired", self.principal.key_id)


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

    __slots__ = ("_by_hash", "_by_id", "_by_tag", "ids", "records")

    records: tuple[KeyRecord, ...]
    ids: frozenset[str]

    def __init__(
        self,
        records: tuple[KeyRecord, ...],
        by_id: Mapping[str, tuple[StoredSecret, ...]],
        by_tag: Mapping[str, tuple[StoredSecret, ...]],
        by_hash: Mapping[tuple[str, str], StoredSecret],
    ) -> None:
        self.records = records
        self.ids = frozenset(record.id for record in records)
        self._by_id = by_id
        self._by_tag = by_tag
        self._by_hash = by_hash

    def __repr__(self) -> str:
        return f"KeyRing({len(self.records)} keys)"

    @classmethod
    def from_records(cls, records: Iterable[KeyRecord]) -> Self:
        """Index records, revoked ones included, so that the log can explain a refusal."""
        records = tuple(records)
        by_id: dict[str, tuple[StoredSecret, ...]] = {}
        by_tag: dict[str, tuple[StoredSecret, ...]] = {}
        by_hash: dict[tuple[str, str], StoredSecret] = {}
        for record in records:
            for secret in _secrets(record):
                by_hash[record.id, secret.hash] = secret
                if not secret.imported:
                    by_id[record.id] = (*by_id.get(record.id, ()), secret)
                elif secret.tag is not None and not is_digest(secret.hash):  # the key file refuses any other
                    by_tag[secret.tag] = (*by_tag.get(secret.tag, ()), secret)
        return cls(records, by_id, by_tag, by_hash)

    def find(self, presented: str) -> Found:
        """Look up `presented`, without computing a slow hash."""
        if foreign_key_fault(presented) is not None:
            return Found(None, (), MALFORMED)
        parsed = parse_key(presented)
        own = () if parsed is None else self._by_id.get(parsed.key_id, ())
        for secret in own:
            if is_digest(secret.hash) and verify_key(presented, secret.hash):
                return Found(secret, (), MALFORMED)
        slow = [*self._slow_of_our_own(presented, own), *self._imported(presented)]
        if parsed is None:
            return Found(None, tuple(slow), MALFORMED)
        return Found(None, tuple(slow), Rejection("wrong_secret" if own else "unknown_id", parsed.key_id))

    def current(self, secret: StoredSecret) -> StoredSecret | None:
        """This ring's version of the stored secret `secret`; None where it is gone."""
        return self._by_hash.get((secret.principal.key_id, secret.hash))

    def _slow_of_our_own(self, presented: str, own: tuple[StoredSecret, ...]) -> Iterator[StoredSecret]:
        """Records made elsewhere, or before digests existed: there a tag is optional."""
        for secret in own:
            if not is_digest(secret.hash) and (secret.tag is None or _tag_matches(presented, secret.tag)):
                yield secret

    def _imported(self, presented: str) -> Iterator[StoredSecret]:
        if self._by_tag:
            tag = tag_of(presented)
            for length in _TAG_LENGTHS:
                yield from self._by_tag.get(tag[:length], ())


EMPTY_RING: Final = KeyRing.from_records(())


def _secrets(record: KeyRecord) -> Iterator[StoredSecret]:
    expires = inf if record.expires is None else record.expires.timestamp()
    until = _REVOKED if record.disabled else expires
    principal = Principal(
        key_id=record.id,
        name=record.name,
        models=None if record.models is None else frozenset(record.models),
        limits=record.limits,
    )
    yield StoredSecret(principal, record.hash, record.tag, record.imported, until)
    if (previous := record.previous) is not None and (ends := record.overlap_end) is not None:
        until = _REVOKED if record.disabled else ends.timestamp()
        yield StoredSecret(principal, previous.hash, previous.tag, previous.imported, until)


def _tag_matches(presented: str, stored: str) -> bool:
    return hmac.compare_digest(tag_of(presented)[: len(stored)], stored)
