"""An API key's stored record, and the result of checking a presented key: a principal or a rejection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

import msgspec

# Why a key is refused, for the log only. The order of the checks: a key that is revoked and expired is "revoked".
RejectionReason = Literal["missing", "malformed", "unknown_id", "wrong_secret", "revoked", "expired"]
# Which keys go first where requests wait, the most urgent first.
PriorityClass = Literal["interactive", "default", "batch"]
PRIORITY_CLASSES: Final[tuple[PriorityClass, ...]] = ("interactive", "default", "batch")


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
    until     the moment from which it is refused
    tag       its lookup tag, if it was a foreign key
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
    name       given by the operator, unique in the file
    hash       passlib hash of the whole key: a digest of one that aiaas made, argon2id of an imported one
    previous   the secret before the last rotation while it still overlaps, or None
    created    moment of creation, UTC
    expires    the moment from which it is refused; None means never
    disabled   revoked, kept for the log
    models     public model names that it may use; None is all
    priority_class  `class` in the file
    allow_fields  fields of the engine that it may set as it likes, whatever the config says
    users_header  the header in which the application behind the key names its users, who take turns; None for a key
               of one user
    user_limits  limits of each of these users, within the key's own
    imported   not made by aiaas: it is found by its `tag`, since it has no id inside
    tag        short lookup digest of an imported key, so that hardly any wrong key costs a slow hash
    weak       imported with --weak: guessable, its hash does not belong in git
    """

    id: str
    name: str
    hash: str = field(repr=False)
    created: datetime
    expires: datetime | None = None
    disabled: bool = False
    models: tuple[str, ...] | None = None
    priority_class: PriorityClass = "default"
    allow_fields: tuple[str, ...] = ()
    users_header: str | None = None
    user_limits: KeyLimits = NO_LIMITS
    limits: KeyLimits = NO_LIMITS
    metadata: Mapping[str, str] = field(default_factory=dict)
    previous: PreviousSecret | None = None
    imported: bool = False
    tag: str | None = field(default=None, repr=False)
    weak: bool = False

    @property
    def overlap_end(self) -> datetime | None:
        """When the previous secret ends, which never outlives the key; None where the key has only one."""
        if self.previous is None:
            return None
        return self.previous.until if self.expires is None else min(self.previous.until, self.expires)


class Principal(msgspec.Struct, frozen=True, gc=False):
    """The identity behind an authenticated request. Made once for each key, not for each request.

    `gc=False`: it is in no cycle, and the collector would visit 50,000 of them after a reload.

    key_id   as in the record; "-" where authentication is off
    name     the `user` of the log line
    models   public model names that it may use; None is all
    allow_fields  fields of the engine that it may set as it likes; None where the config decides about all of them
    users_header, user_limits  as in the record, the header in lower case
    """

    key_id: str
    name: str
    models: frozenset[str] | None
    limits: KeyLimits
    priority_class: PriorityClass = "default"
    allow_fields: frozenset[str] | None = None
    users_header: str | None = None
    user_limits: KeyLimits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a key is not valid: for the log, never for the client.

    key_id  of the record that it belongs to, or else the id inside it, which has an id's form; None where it has none
    """

    reason: RejectionReason
    key_id: str | None = None
