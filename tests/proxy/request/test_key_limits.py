"""aiaas.proxy.request.key_limits: a key's own limits and the config's, and the bucket of cheap requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aiaas.keys.model import KeyLimits
from aiaas.limits.model import UNLIMITED, Limits, Rate
from aiaas.proxy.request.key_limits import cheap_limits, effective_limits
from tests.proxy.conftest import plan_of

PLAN: dict[str, Any] = {"backends": {"a": {"url": "http://a:1", "models": ["m"]}}}


@pytest.mark.parametrize(
    ("section", "own", "limits"),
    [
        ({}, KeyLimits(), Limits(requests=Rate(10, 10))),
        ({"burst": 3}, KeyLimits(), Limits(requests=Rate(10, 3))),
        ({"burst": 3}, KeyLimits(requests_per_minute=60), Limits(requests=Rate(60, 60))),
        ({"burst": 3}, KeyLimits(burst=5), Limits(requests=Rate(10, 5))),
        ({}, KeyLimits(requests_per_minute=60, burst=1), Limits(requests=Rate(60, 1))),
        ({"requests_per_minute": None}, KeyLimits(burst=1), Limits()),
        ({"tokens_per_minute": 9, "tokens_per_day": 8}, KeyLimits(tokens_per_minute=7), Limits(
            requests=Rate(10, 10), tokens=Rate(7, 7), tokens_per_day=8)),
        ({"max_concurrent": 2}, KeyLimits(max_concurrent=5), Limits(requests=Rate(10, 10), concurrent=5)),
        ({"enabled": False}, KeyLimits(requests_per_minute=1, max_concurrent=1), Limits()),
    ],
    ids=[
        "default", "default burst", "own rate with its own burst", "own burst on the default rate", "own both",
        "a burst without a rate", "own tokens, default quota", "own concurrency", "limits off",
    ],
)  # fmt: skip
def test_a_keys_own_limits_come_before_the_defaults(section: dict[str, Any], own: KeyLimits, limits: Limits) -> None:
    """Field by field; the default's burst belongs to the default's rate."""
    assert replace(effective_limits(plan_of(PLAN | {"rate_limit": section}), own), other=None) == limits


@pytest.mark.parametrize(
    ("section", "own", "rate"),
    [
        pytest.param({}, KeyLimits(), Rate(100, 100), id="ten times the default"),
        pytest.param({"burst": 3}, KeyLimits(requests_per_minute=60, burst=4), Rate(600, 40), id="the key's own"),
        pytest.param({"cheap_factor": 3, "burst": 2}, KeyLimits(), Rate(30, 6), id="another factor"),
        pytest.param({"requests_per_minute": None}, KeyLimits(), None, id="no limit on requests"),
    ],
)
def test_cheap_requests_have_a_multiple_of_the_keys_rate(
    section: dict[str, Any], own: KeyLimits, rate: Rate | None
) -> None:
    """Slots and tokens are shared; each bucket names the other, for a store that begins anew."""
    limits = effective_limits(plan_of(PLAN | {"rate_limit": {"max_concurrent": 3, **section}}), own)
    cheap = cheap_limits(limits)
    assert (cheap.requests, cheap.other, cheap.concurrent, cheap.cheap) == (rate, limits.requests, 3, True)


def test_limits_of_users_have_no_default() -> None:
    """They only narrow the key's, and have a bucket of cheap requests of their own."""
    plan = plan_of(PLAN | {"rate_limit": {"tokens_per_minute": 9, "max_concurrent": 3}})
    limits = effective_limits(plan, KeyLimits(), KeyLimits(requests_per_minute=6, burst=2))
    assert limits.user == Limits(Rate(6, 2), other=Rate(60, 20))
    assert replace(limits, user=None) == effective_limits(plan, KeyLimits())
    assert cheap_limits(limits).user == Limits(Rate(60, 20), cheap=True, other=Rate(6, 2))
    off = plan_of(PLAN | {"rate_limit": {"enabled": False}})
    assert effective_limits(off, KeyLimits(), KeyLimits(requests_per_minute=6)) == UNLIMITED


def test_cheap_requests_are_unlimited_where_limits_are_off() -> None:
    """`rate_limit.enabled: false` holds for all requests."""
    limits = effective_limits(plan_of(PLAN | {"rate_limit": {"enabled": False}}), KeyLimits(requests_per_minute=1))
    assert cheap_limits(limits) == replace(UNLIMITED, cheap=True)
