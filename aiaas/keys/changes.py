"""The changes to a key file's records, as functions from records to records. Pure.

The commands hold the file's lock meanwhile, and pass in the clock and the randomness.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from aiaas.errors import AiaasError
from aiaas.keys.model import KeyRecord, PreviousSecret
from aiaas.keys.records import NAME, NAME_RULE, parse_time
from aiaas.units import parse_duration

KeyState = Literal["active", "revoked", "expired"]
Records = tuple[KeyRecord, ...]


class KeyChangeError(AiaasError):
    """A change is not possible; the message says in one sentence what to do instead."""


class NoSuchKeyError(KeyChangeError):
    """The file has no record with that name or id."""


def state_of(record: KeyRecord, now: datetime) -> KeyState:
    """Whether a key works at `now`; revoked wins over expired."""
    if record.disabled:
        return "revoked"
    return "expired" if record.expires is not None and record.expires <= now else "active"


def find(records: Sequence[KeyRecord], name_or_id: str) -> KeyRecord:
    """Find the record with that name, else with that id. Raises NoSuchKeyError, with the nearest names."""
    found = next((record for record in records if record.name == name_or_id), None)
    found = found or next((record for record in records if record.id == name_or_id), None)
    if found is not None:
        return found
    near = difflib.get_close_matches(name_or_id, [record.name for record in records], n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else "; `aiaas keys list` shows all"
    raise NoSuchKeyError(f"there is no key {name_or_id[:80]!r}{hint}")


def check_new_name(records: Sequence[KeyRecord], name: str) -> None:
    """Raise KeyChangeError where a new key cannot have that name."""
    if not NAME.fullmatch(name):
        raise KeyChangeError(f"{name[:80]!r} is not a valid name; use {NAME_RULE}")
    if any(record.name == name for record in records):
        raise KeyChangeError(f"there is already a key {name!r}; `aiaas keys rotate {name}` gives it a new secret")


def add(records: Records, record: KeyRecord) -> Records:
    """Add a record at the end. Raises KeyChangeError for a name or an id that is taken."""
    check_new_name(records, record.name)
    if any(other.id == record.id for other in records):  # one in 10^14; two keys must never share an id
        raise KeyChangeError("the new key's id is taken; try again")
    return (*records, record)


def put(records: Records, changed: KeyRecord) -> Records:
    """Put `changed` in the place of the record with its id."""
    return tuple(changed if record.id == changed.id else record for record in records)


def rotated(record: KeyRecord, digest: str, now: datetime, overlap: timedelta) -> KeyRecord:
    """Give the record a new secret; the old one stays valid for `overlap`, but never longer than the key itself.

    An even older secret that still overlaps ends now. An imported key becomes one that aiaas made; its old secret is
    still found by its tag.
    Raises KeyChangeError for a key that is revoked or expired.
    """
    if (state := state_of(record, now)) != "active":
        raise KeyChangeError(f"{record.name} is {state}; create a new key under another name")
    until = now + overlap if record.expires is None else min(now + overlap, record.expires)
    previous = PreviousSecret(record.hash, until, record.tag, record.imported) if overlap else None
    return replace(record, hash=digest, tag=None, previous=previous, imported=False, weak=False)


def pruned(records: Records, now: datetime) -> tuple[Records, Records]:
    """Split the records into (kept, removed): revoked and expired keys, and old secrets whose overlap has ended."""
    gone = tuple(record for record in records if state_of(record, now) != "active")
    kept = (record for record in records if state_of(record, now) == "active")
    return tuple(_without_ended_overlap(record, now) for record in kept), gone


def parse_overlap(text: str) -> timedelta:
    """Parse a duration. Raises ValueError, which says what is allowed."""
    try:
        return timedelta(seconds=parse_duration(text))
    except OverflowError:
        raise ValueError("is too long") from None


def parse_expiry(text: str, now: datetime) -> datetime:
    """Parse a duration from `now`, or a date or moment in UTC. Raises ValueError for other texts and for the past."""
    try:
        moment = now + parse_overlap(text)
    except ValueError:
        try:
            moment = parse_time(text)
        except ValueError:
            hint = "write for example 90d, 2027-01-31 or 2027-01-31T12:00:00Z"
            raise ValueError(f"{text!r} is not a valid expiry; {hint}") from None
    except OverflowError:
        raise ValueError(f"{text!r} is after the year 9999") from None
    if moment <= now:
        raise ValueError(f"{text!r} is in the past")
    return moment.astimezone(UTC).replace(microsecond=0)


def _without_ended_overlap(record: KeyRecord, now: datetime) -> KeyRecord:
    ended = record.previous is not None and record.previous.until <= now
    return replace(record, previous=None) if ended else record
