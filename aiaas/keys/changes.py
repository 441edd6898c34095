"""What can be done to the records of a key file, as functions from records to records. Pure.

The commands hold the file's lock around them; the clock and the randomness come in.
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

State = Literal["active", "revoked", "expired"]
Records = tuple[KeyRecord, ...]


class KeyChangeError(AiaasError):
    """A change that cannot be made; one sentence with what to do instead."""


class NoSuchKeyError(KeyChangeError):
    """No record has that name or id."""


def state_of(record: KeyRecord, now: datetime) -> State:
    """Whether a key works at `now`; revoked wins over expired."""
    if record.disabled:
        return "revoked"
    return "expired" if record.expires is not None and record.expires <= now else "active"


def find(records: Sequence[KeyRecord], name_or_id: str) -> KeyRecord:
    """The record of that name, else of that id. Raises NoSuchKeyError, with the nearest names."""
    found = next((record for record in records if record.name == name_or_id), None)
    found = found or next((record for record in records if record.id == name_or_id), None)
    if found is not None:
        return found
    near = difflib.get_close_matches(name_or_id, [record.name for record in records], n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else "; `aiaas keys list` shows all"
    raise NoSuchKeyError(f"no key is named {name_or_id[:80]!r}{hint}")


def check_new_name(records: Sequence[KeyRecord], name: str) -> None:
    """Raises KeyChangeError where a new key cannot have that name."""
    if not NAME.fullmatch(name):
        raise KeyChangeError(f"{name[:80]!r} is not a name; a name is {NAME_RULE}")
    if any(record.name == name for record in records):
        raise KeyChangeError(f"a key named {name!r} exists already; `aiaas keys rotate {name}` gives it a new secret")


def add(records: Records, record: KeyRecord) -> Records:
    """With one more record at the end. Raises KeyChangeError for a name or an id that is taken."""
    check_new_name(records, record.name)
    if any(other.id == record.id for other in records):  # one in 10^14; never silently two keys in one
        raise KeyChangeError("the new key's id is taken; try again")
    return (*records, record)


def put(records: Records, changed: KeyRecord) -> Records:
    """With `changed` in the place of the record of the same id."""
    return tuple(changed if record.id == changed.id else record for record in records)


def rotated(record: KeyRecord, digest: str, now: datetime, overlap: timedelta) -> KeyRecord:
    """The record under a new secret; the old one holds for `overlap` more, but never longer than the key itself.

    An older overlapping secret ends here. An imported key becomes one of our own: its old secret keeps being found by
    its tag.
    Raises KeyChangeError for a key that is revoked or expired.
    """
    if (state := state_of(record, now)) != "active":
        raise KeyChangeError(f"{record.name} is {state}; create a new key under another name")
    until = now + overlap if record.expires is None else min(now + overlap, record.expires)
    previous = PreviousSecret(record.hash, until, record.tag, record.imported) if overlap else None
    return replace(record, hash=digest, tag=None, previous=previous, imported=False, weak=False)


def pruned(records: Records, now: datetime) -> tuple[Records, Records]:
    """(what stays, what goes): revoked and expired keys go, and so do old secrets whose overlap has ended."""
    gone = tuple(record for record in records if state_of(record, now) != "active")
    kept = (record for record in records if state_of(record, now) == "active")
    return tuple(_without_ended_overlap(record, now) for record in kept), gone


def parse_overlap(text: str) -> timedelta:
    """A duration. Raises ValueError with what is allowed."""
    try:
        return timedelta(seconds=parse_duration(text))
    except OverflowError:
        raise ValueError("is too long") from None


def parse_expiry(text: str, now: datetime) -> datetime:
    """A duration from `now`, or a date or moment in UTC. Raises ValueError for one that is past, or none."""
    try:
        moment = now + parse_overlap(text)
    except ValueError:
        try:
            moment = parse_time(text)
        except ValueError:
            hint = "write for example 90d, 2027-01-31 or 2027-01-31T12:00:00Z"
            raise ValueError(f"{text!r} is no expiry; {hint}") from None
    except OverflowError:
        raise ValueError(f"{text!r} is beyond the calendar") from None
    if moment <= now:
        raise ValueError(f"{text!r} is in the past")
    return moment.astimezone(UTC).replace(microsecond=0)


def _without_ended_overlap(record: KeyRecord, now: datetime) -> KeyRecord:
    ended = record.previous is not None and record.previous.until <= now
    return replace(record, previous=None) if ended else record
