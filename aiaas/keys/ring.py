"""The keys of one key file, indexed: which stored secrets could a presented key be, without hashing anything.

Immutable. A reload makes a new ring (in a thread; 10,000 records take some 0.1 s) and swaps one reference. Looking up
costs a checksum, a SHA-256 and two dict lookups, however many keys there are.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Self

from aiaas.keys.format import TAG_LENGTH, WEAK_TAG_LENGTH, foreign_key_fault, parse_key, tag_of
from aiaas.keys.model import KeyRecord, Principal


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """One hash that a key may match, and who that makes it. A rotated record that overlaps has two.

    until  POSIX seconds from which it is refused; None is never
    """

    principal: Principal
    hash: str = field(repr=False)
    tag: str | None = field(repr=False)
    imported: bool
    until: float | None

    def usable(self, now: float) -> bool:
        """Whether it has not expired at `now` (POSIX seconds)."""
        return self.until is None or now < self.until


class KeyRing:
    """All keys of a key file. Build it with `from_records`."""

    __slots__ = ("_by_hash", "_by_id", "_by_tag", "records")

    records: tuple[KeyRecord, ...]

    def __init__(
        self,
        records: tuple[KeyRecord, ...],
        by_id: Mapping[str, tuple[StoredSecret, ...]],
        by_tag: Mapping[str, tuple[StoredSecret, ...]],
        by_hash: Mapping[tuple[str, str], StoredSecret],
    ) -> None:
        self.records = records
        self._by_id = by_id
        self._by_tag = by_tag
        self._by_hash = by_hash

    def __repr__(self) -> str:
        return f"KeyRing({len(self.records)} keys)"

    @classmethod
    def from_records(cls, records: Iterable[KeyRecord]) -> Self:
        """Index records; disabled ones are kept in `records` and found by no key."""
        records = tuple(records)
        by_id: dict[str, tuple[StoredSecret, ...]] = {}
        by_tag: dict[str, tuple[StoredSecret, ...]] = {}
        by_hash: dict[tuple[str, str], StoredSecret] = {}
        for record in records:
            for secret in () if record.disabled else _secrets(record):
                by_hash[record.id, secret.hash] = secret
                if secret.imported:
                    tag = secret.tag or ""  # the key file refuses an imported key without a tag
                    by_tag[tag] = (*by_tag.get(tag, ()), secret)
                else:
                    by_id[record.id] = (*by_id.get(record.id, ()), secret)
        return cls(records, MappingProxyType(by_id), MappingProxyType(by_tag), MappingProxyType(by_hash))

    def candidates(self, presented: str) -> tuple[StoredSecret, ...]:
        """The stored secrets that `presented` could match: nearly always none or one. Hashes nothing slowly.

        Expired ones are among them; `StoredSecret.usable` tells.
        """
        if foreign_key_fault(presented) is not None:
            return ()
        parsed = parse_key(presented)
        own = () if parsed is None else self._by_id.get(parsed.key_id, ())
        if not own and not self._by_tag:
            return ()
        tag = tag_of(presented)
        found = [secret for secret in own if secret.tag is None or _tags_match(tag, secret.tag)]
        if self._by_tag:
            for length in _TAG_LENGTHS:
                found.extend(self._by_tag.get(tag[:length], ()))
        return tuple(found)

    def current(self, secret: StoredSecret) -> StoredSecret | None:
        """The same stored secret under this ring's limits and expiry; None where it is gone or disabled."""
        return self._by_hash.get((secret.principal.key_id, secret.hash))


_TAG_LENGTHS: Final = (TAG_LENGTH, WEAK_TAG_LENGTH)

EMPTY_RING: Final = KeyRing.from_records(())


def _secrets(record: KeyRecord) -> Iterable[StoredSecret]:
    expires = None if record.expires is None else record.expires.timestamp()
    yield StoredSecret(_principal(record, expires), record.hash, record.tag, record.imported, expires)
    if (previous := record.previous) is not None:
        until = previous.until.timestamp() if expires is None else min(expires, previous.until.timestamp())
        yield StoredSecret(_principal(record, until), previous.hash, previous.tag, previous.imported, until)


def _principal(record: KeyRecord, until: float | None) -> Principal:
    return Principal(
        key_id=record.id,
        name=record.name,
        models=None if record.models is None else frozenset(record.models),
        limits=record.limits,
        expires=until,
    )


def _tags_match(presented: str, stored: str) -> bool:
    return hmac.compare_digest(presented[: len(stored)], stored)
