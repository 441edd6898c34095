"""The limits of a key: its own, field by field, before the config's. Pure.

A key has two buckets of requests: one for requests that the engine computes, and a larger one for cheap requests, which
only count tokens (`paths.CHEAP`). Clients send many of those for each real request (Claude Code 14 to show a context),
and one bucket for both would refuse the real ones.
"""

from __future__ import annotations

from dataclasses import replace

from aiaas.keys.model import NO_LIMITS, KeyLimits
from aiaas.limits.model import UNLIMITED, Limits, Rate
from aiaas.plan.model import Plan


def effective_limits(plan: Plan, own: KeyLimits, user: KeyLimits = NO_LIMITS) -> Limits:
    """A key's limits: its own, field by field, before the default; and those of each `user` behind it, which have no
    default. No limits if rate_limit.enabled is false."""
    default, factor = plan.limits.default, plan.limits.cheap_factor
    if not plan.limits.enabled:
        return default
    limits = _limits_of(own, default, factor)
    return limits if user == NO_LIMITS else replace(limits, user=_limits_of(user, UNLIMITED, factor))


def _limits_of(own: KeyLimits, default: Limits, factor: int) -> Limits:
    requests = default.requests
    if own.requests_per_minute is not None:
        requests = Rate(own.requests_per_minute, own.burst or own.requests_per_minute)
    elif own.burst is not None and requests is not None:
        requests = replace(requests, burst=own.burst)
    tokens = default.tokens if own.tokens_per_minute is None else Rate(own.tokens_per_minute, own.tokens_per_minute)
    return Limits(
        requests=requests,
        tokens=tokens,
        tokens_per_day=own.tokens_per_day if own.tokens_per_day is not None else default.tokens_per_day,
        tokens_per_month=own.tokens_per_month if own.tokens_per_month is not None else default.tokens_per_month,
        concurrent=own.max_concurrent if own.max_concurrent is not None else default.concurrent,
        other=None if requests is None else Rate(requests.per_minute * factor, requests.burst * factor),
    )


def cheap_limits(limits: Limits) -> Limits:
    """The limits of a key's cheap requests: the other bucket, and the same slots and tokens."""
    user = None if limits.user is None else cheap_limits(limits.user)
    return replace(limits, requests=limits.other, cheap=True, other=limits.requests, user=user)
