"""Does the limiter admit what it says? More is offered than a limit lets through; what it admits is counted. Pure.

What a key may do is taken from its own headers: `x-ratelimit-limit-requests` is the rate a minute, and the first
answer's `-remaining-requests` plus that request itself the burst, if the bucket was full (`-reset-requests` is then one
request's share of the minute; otherwise the check waits until it is).

What a correct limiter admits: from the first offer (sent at s0, answered at e0) to the last (answered at e1), where the
last that was refused was sent at r, a token bucket of `burst` that refills `rate` a second lets through

    at least   floor(burst + (r - e0) * rate) - 1      at a refusal it holds less than one; when it decided lies
    at most    floor(burst + (e1 - s0) * rate)         somewhere between sending and answer

and a client that then waits as the 429 told it is admitted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import ceil, floor
from typing import Final

import msgspec

from aiaas.errors import CheckFailed

MOST_REQUESTS: Final = 2000  # for one check; a burst beyond it would be a load test
EXCESS: Final = 5  # requests beyond the burst that are offered at once
BUCKET_PATIENCE: Final = 90.0  # seconds that the check waits for a bucket; a minute's limit is whole again after 60

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)(ms|s))?")


class ToldLimit(msgspec.Struct, frozen=True):
    """What an answer's headers tell of the request limit; seconds."""

    per_minute: int
    remaining: int
    reset_after: float
    retry_after: float | None = None


class OfferedRequest(msgspec.Struct, frozen=True):
    """One request of the check: when it was sent and answered, seconds, and whether it was let in."""

    sent: float
    ended: float
    admitted: bool
    told: ToldLimit


class LimitCheck(msgspec.Struct, frozen=True):
    """One statement about the limiter: expected against seen."""

    name: str
    expected: str
    seen: str
    held: bool


def told_of(headers: Mapping[str, str]) -> ToldLimit | None:
    """The limit of an answer; None where its headers name none. Names in lower case."""
    limit, remaining = headers.get("x-ratelimit-limit-requests"), headers.get("x-ratelimit-remaining-requests")
    if limit is None or remaining is None or not limit.isdecimal() or not remaining.isdecimal():
        return None
    wait = headers.get("retry-after-ms", "")
    retry_after = float(wait) / 1000 if wait.isdecimal() else None
    return ToldLimit(
        int(limit), int(remaining), seconds_told(headers.get("x-ratelimit-reset-requests", "")), retry_after
    )


def seconds_told(text: str) -> float:
    """Seconds of `6m0s`, `1.5s` or `120ms`, as OpenAI writes them; 0 for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return 0.0
    hours, minutes, rest, unit = match.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest or 0) / (1000 if unit == "ms" else 1)


def is_full(first: ToldLimit) -> bool:
    """Whether the bucket was full before this, the first request: it then owes one request's share and no more."""
    return first.reset_after <= 60.0 / first.per_minute + 0.01  # headers are rounded up to milliseconds


def offers_needed(per_minute: int, burst: int, seconds: float) -> int:
    """How many requests outrun the limit for so long. Raises CheckFailed where that is too many for a check."""
    number = burst + EXCESS + ceil(2 * per_minute / 60 * seconds)
    if number > MOST_REQUESTS:
        raise CheckFailed(
            f"this key may send {per_minute} requests a minute and {burst} at once; to outrun that takes {number} "
            f"requests, and a check sends at most {MOST_REQUESTS}; "
            "make a key with less: `aiaas keys create check --rpm 60 --burst 10`"
        )
    return number


def most_admitted(offers: Sequence[OfferedRequest]) -> int:
    """How many of the offers, the first of which met a full bucket, a correct limiter admits at the most."""
    first, ended = offers[0], max(offer.ended for offer in offers)
    return floor(first.told.remaining + 1 + (ended - first.sent) * first.told.per_minute / 60)


def judge_offers(
    offers: Sequence[OfferedRequest], at_once: int, waited: OfferedRequest | None
) -> tuple[LimitCheck, ...]:
    """The statements about offers that began with a full bucket, and about the one after the wait.

    at_once   so many of the offers, from the first on, were made without a pause
    """
    first, ended = offers[0], max(offer.ended for offer in offers)
    refused = [offer for offer in offers if not offer.admitted]
    burst, rate = first.told.remaining + 1, first.told.per_minute / 60
    admitted = sum(offer.admitted for offer in offers)
    low = max(floor(burst + (max((offer.sent for offer in refused), default=0.0) - first.ended) * rate) - 1, burst)
    high = most_admitted(offers)
    before = sum(offer.admitted for offer in offers[:at_once])
    told = sum(offer.told.retry_after is not None for offer in refused)
    checks = [
        LimitCheck(
            "admitted while more is offered",
            f"{low} to {high} of {len(offers)} in {ended - first.sent:.1f} s "
            f"({first.told.per_minute} a minute, {burst} at once)",
            str(admitted),
            low <= admitted <= high and bool(refused),
        ),
        LimitCheck("admitted at once", f"{burst} or more of {at_once}", str(before), before >= burst),
        LimitCheck("429s say when to come again", f"{len(refused)}", f"{told}", told == len(refused)),
    ]
    if waited is not None:
        seen = "admitted" if waited.admitted else "refused"
        checks.append(LimitCheck("after waiting as told", "admitted", seen, waited.admitted))
    return tuple(checks)
