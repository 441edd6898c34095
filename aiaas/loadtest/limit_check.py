"""Does the limiter admit what it says? Send more requests than the limit allows and count the admitted ones. Pure.

The key's limit comes from the answers' headers: `x-ratelimit-limit-requests` is the rate a minute. If the bucket was
full, the first answer's `-remaining-requests` plus that request itself is the burst, and `-reset-requests` is one
request's share of the minute; otherwise the check waits until the bucket is full.

Consider the offers from the first (sent at s0, answered at e0) to the last (answered at e1), and let r be when the last
refused offer was sent. A token bucket of `burst` that refills `rate` tokens a second admits

    at least   floor(burst + (r - e0) * rate - lost) - 1    it holds less than one token when it refuses, and it
    at most    floor(burst + (e1 - s0) * rate)              decides at some time between the request and its answer

and then admits a client that waits for the Retry-After of its 429. `lost` is what a full bucket may have spilled
between two offers: a bucket of one token does so after nearly every pause.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, floor
from typing import Final

import msgspec

from aiaas.errors import CheckFailed

MOST_REQUESTS: Final = 2000  # of one check; more would be a load test
EXCESS: Final = 5  # requests sent at once in addition to the burst
BUCKET_PATIENCE: Final = 90.0  # seconds that the check waits for a full bucket; a limit per minute refills within 60

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)(ms|s))?")


class ToldLimit(msgspec.Struct, frozen=True):
    """The request limit as an answer's headers report it; durations in seconds."""

    per_minute: int
    remaining: int
    reset_after: float
    retry_after: float | None = None


class OfferedRequest(msgspec.Struct, frozen=True):
    """One request of the check: when it was sent and answered, in seconds, and whether it was admitted."""

    sent: float
    ended: float
    admitted: bool
    told: ToldLimit


class LimitCheck(msgspec.Struct, frozen=True):
    """One statement about the limiter, with the expected and the observed result."""

    name: str
    expected: str
    seen: str
    held: bool


def told_of(headers: Mapping[str, str]) -> ToldLimit | None:
    """Read the limit from an answer's headers (names in lower case); None if they do not report a limit."""
    limit, remaining = headers.get("x-ratelimit-limit-requests"), headers.get("x-ratelimit-remaining-requests")
    if limit is None or remaining is None or not limit.isdecimal() or not remaining.isdecimal():
        return None
    wait = headers.get("retry-after-ms", "")
    retry_after = float(wait) / 1000 if wait.isdecimal() else None
    return ToldLimit(
        int(limit), int(remaining), seconds_told(headers.get("x-ratelimit-reset-requests", "")), retry_after
    )


def seconds_told(text: str) -> float:
    """Convert OpenAI's `6m0s`, `1.5s` or `120ms` to seconds; 0 for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return 0.0
    hours, minutes, rest, unit = match.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest or 0) / (1000 if unit == "ms" else 1)


def is_full(first: ToldLimit) -> bool:
    """Whether the bucket was full before the first request: it then needs one request's share of time to refill."""
    return first.reset_after <= 60.0 / first.per_minute + 0.01  # headers are rounded up to milliseconds


def offers_needed(per_minute: int, burst: int, seconds: float) -> int:
    """Return how many requests exceed the limit for `seconds`. Raises CheckFailed if a check cannot send that many."""
    number = burst + EXCESS + ceil(2 * per_minute / 60 * seconds)
    if number > MOST_REQUESTS:
        raise CheckFailed(
            f"this key may send {per_minute} requests a minute and {burst} at once; to exceed that takes {number} "
            f"requests, and a check sends at most {MOST_REQUESTS}; "
            "create a key with lower limits: `aiaas keys create check --rpm 60 --burst 10`"
        )
    return number


def most_admitted(offers: Sequence[OfferedRequest]) -> int:
    """Return how many of the offers a correct limiter admits at most, if the first one found a full bucket."""
    first, ended = offers[0], max(offer.ended for offer in offers)
    return floor(first.told.remaining + 1 + (ended - first.sent) * first.told.per_minute / 60)


def _most_lost(offers: Sequence[OfferedRequest], burst: int, rate: float) -> float:
    """The most tokens that a full bucket may have spilled: after a refusal it held less than one, after an admission at
    most `burst` - 1."""
    lost = 0.0
    for before, after in pairwise(offers):
        held = burst - 1 if before.admitted else 1
        lost += max(0.0, held + (after.ended - before.sent) * rate - burst)
    return lost


def judge_offers(
    offers: Sequence[OfferedRequest], at_once: int, waited: OfferedRequest | None
) -> tuple[LimitCheck, ...]:
    """Judge the offers, which began with a full bucket, and the one sent after the wait.

    at_once   how many offers, from the first on, were sent without a pause
    """
    first, ended = offers[0], max(offer.ended for offer in offers)
    refused = [offer for offer in offers if not offer.admitted]
    burst, rate = first.told.remaining + 1, first.told.per_minute / 60
    admitted = sum(offer.admitted for offer in offers)
    refilled = (max((offer.sent for offer in refused), default=0.0) - first.ended) * rate
    low = max(floor(burst + refilled - _most_lost(offers, burst, rate)) - 1, burst)
    high = most_admitted(offers)
    before = sum(offer.admitted for offer in offers[:at_once])
    told = sum(offer.told.retry_after is not None for offer in refused)
    checks = [
        LimitCheck(
            "admitted under overload",
            f"{low} to {high} of {len(offers)} in {ended - first.sent:.1f} s "
            f"({first.told.per_minute} a minute, {burst} at once)",
            str(admitted),
            low <= admitted <= high and bool(refused),
        ),
        LimitCheck("admitted at once", f"{burst} or more of {at_once}", str(before), before >= burst),
        LimitCheck("429s with a Retry-After", f"{len(refused)}", f"{told}", told == len(refused)),
    ]
    if waited is not None:
        seen = "admitted" if waited.admitted else "refused"
        checks.append(LimitCheck("request after the Retry-After", "admitted", seen, waited.admitted))
    return tuple(checks)
