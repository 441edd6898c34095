"""What is known about an API key: the stored record, and the principal that a verified key becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """A key's own limits; None in a field means: the config's default holds.

    requests_per_minute, tokens_per_minute  sustained rates
    burst                                   requests at once, after a pause
    tokens_per_day, tokens_per_month        quotas, in UTC windows
    max_concurrent                          requests in flight
    """

    requests_per_minute: int | None = None
    burst: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    max_concurrent: int | None = None


NO_LIMITS = KeyLimits()


@dataclass(frozen=True, slots=True)
class PreviousSecret:
    """The secret before the last rotation, while it overlaps.

    hash      as in the record
    until     from then on it is refused
    tag       its lookup tag
    imported  it was a foreign key, found by its tag and not by an id inside it
    """

    hash: str = field(repr=False)
    until: datetime
    tag: str | None = field(default=None, repr=False)
    imported: bool = False


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key as stored in the key file: its public part, and a hash of the hidden one.

    id         public key id, inside every key that aiaas makes; for an imported key a made-up one
    name       the operator's word for it, unique in the file
    hash       passlib hash (argon2id or pbkdf2_sha256) of the whole key
    previous   the secret before the last rotation while it still overlaps, or None
    created    when, UTC
    expires    from then on it is refused; None is never
    disabled   revoked, kept for the log
    models     public model names that it may use; None is all
    imported   not made by aiaas: it is found by its `tag`, since it has no id inside
    tag        short lookup digest of the key, so that hardly any wrong key costs a slow hash
    weak       imported with --weak: guessable, its hash does not belong in git
    """

    id: str
    name: str
    hash: str = field(repr=False)
    created: datetime
    expires: datetime | None = None
    disabled: bool = False
    models: tuple[str, ...] | None = None
    limits: KeyLimits = NO_LIMITS
    metadata: Mapping[str, str] = field(default_factory=dict)
    previous: PreviousSecret | None = None
    imported: bool = False
    tag: str | None = field(default=None, repr=False)
    weak: bool = False


@dataclass(frozen=True, slots=True)
class Principal:
    """Who an authenticated request is. Bound once per verified key, not per request.

    key_id   as in the record; "-" where authentication is off
    name     the `user` of the log line
    models   public model names that it may use; None is all
    expires  POSIX seconds from which it is refused; None is never
    """

    key_id: str
    name: str
    models: frozenset[str] | None
    limits: KeyLimits
    expires: float | None = None
