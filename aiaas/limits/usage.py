"""The vocabulary of usage accounting, and the protocol of its stores: LLM tokens by day, key and model.

A request counts once, when it is settled, with its settled tokens: so the sums here equal the limits' charges and
`tokens_processed_total`. A request that did not reach a backend was charged nothing and does not count.
The day is the UTC day of its admission, as for quotas. Requests of a key that names its users count for these, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Final, NamedTuple, Protocol

import msgspec

from aiaas.errors import AiaasError
from aiaas.units import DAY

# Users of one key and day that have a sum of their own in the store; OTHER_USERS has those of all further ones.
MOST_USERS_A_DAY: Final = 10_000
OTHER_USERS: Final = "others"

_EPOCH: Final = date(1970, 1, 1)


class UsageKey(NamedTuple):
    """The key of a sum. `day` counts UTC days since 1970-01-01.

    user  of the key, for the sum of this user over all models; then `model` is ""
    """

    day: int
    key_id: str
    model: str
    user: str = ""


class UsageSums(msgspec.Struct, gc=False):
    """The sums of one day, key and model or user. Mutable: a request that ends adds to it.

    name                     the key's name when it was last used
    input_tokens, output_tokens  as the backend reported
    estimated_input_tokens, estimated_output_tokens  of requests that ended before the backend's
                             report; not in the former
    last_used                POSIX seconds of the last request's admission
    """

    name: str
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    estimated_input_tokens: int = 0
    estimated_output_tokens: int = 0
    last_used: int = 0


KeptUsage = Mapping[UsageKey, UsageSums]


class UsageStoreError(AiaasError):
    """Usage could not be written or read; the message says in one sentence what to do."""


class UsageStore(Protocol):
    """A store of usage. Make one call at a time."""

    async def add(self, batch: str, usage: KeptUsage) -> None:
        """Add these sums. Raises UsageStoreError, after which the caller adds the same batch again.

        batch  names these sums: the next attempt with that name does not add again what a failed one has added
        """
        ...

    async def read(self, first_day: int, *, by_user: bool = False) -> KeptUsage:
        """Everything from `first_day` on, by model or by user. Raises UsageStoreError."""
        ...

    async def last_used(self) -> Mapping[str, int]:
        """For each known key id, POSIX seconds of its last use. Raises UsageStoreError."""
        ...

    async def close(self) -> None:
        """Close files and connections."""
        ...


def day_of(wall: float) -> int:
    """The UTC day of a moment in POSIX seconds."""
    return int(wall // DAY)


def day_text(day: int) -> str:
    """As `2026-03-01`."""
    return (_EPOCH + timedelta(days=day)).isoformat()


def day_from(text: str) -> int:
    """The inverse of `day_text`. Raises ValueError."""
    return (date.fromisoformat(text) - _EPOCH).days
