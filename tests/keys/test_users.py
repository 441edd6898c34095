"""The users of one key: their names in the gateway, and what limits they can have."""

from __future__ import annotations

import pytest

from aiaas.keys.model import NO_LIMITS, KeyLimits
from aiaas.keys.users import LONGEST_USER, NO_USER, user_limits_fault, user_of


def test_user_is_a_hash_of_the_beginning_of_the_value() -> None:
    """Of at most 256 bytes of it, whatever they are; another one for another key."""
    assert user_of("k1", "alice") == user_of("k1", "alice")
    assert len({user_of("k1", "alice"), user_of("k1", "bob"), user_of("k2", "alice")}) == 3
    assert user_of("k1", "x" * LONGEST_USER) == user_of("k1", "x" * LONGEST_USER + "y")
    assert user_of("k1", "x" * (LONGEST_USER - 1) + "y") != user_of("k1", "x" * LONGEST_USER)
    assert user_of("k1", "\udcff\udc80") != user_of("k1", "\udcff")
    assert int(user_of("k1", "J\xf6rg"), 16) < 2**64


def test_requests_without_a_name_are_one_user() -> None:
    """An empty one names nobody."""
    assert user_of("k1", None) == user_of("k1", "") == user_of("k2", None) == NO_USER


@pytest.mark.parametrize(
    ("header", "key", "user", "fault"),
    [
        pytest.param(None, KeyLimits(1), NO_LIMITS, None, id="no limits on users"),
        pytest.param("x-user", KeyLimits(10, 5), KeyLimits(10, 5, 7), None, id="up to those of the key"),
        pytest.param("x-user", NO_LIMITS, KeyLimits(max_concurrent=2), None, id="a key with the config's"),
        pytest.param(None, NO_LIMITS, KeyLimits(1), "limits on users need users_header", id="no header"),
        pytest.param("x-user", NO_LIMITS, KeyLimits(burst=2), "burst needs requests_per_minute", id="burst alone"),
        pytest.param(
            "x-user",
            KeyLimits(max_concurrent=2),
            KeyLimits(max_concurrent=3),
            "max_concurrent of a user is 3, above the key's own 2",
            id="above the key's",
        ),
    ],
)
def test_limits_on_users_only_narrow_those_of_the_key(
    header: str | None, key: KeyLimits, user: KeyLimits, fault: str | None
) -> None:
    """And need a header that names the users."""
    found = user_limits_fault(header, key, user)
    assert found is fault is None or (found is not None and fault is not None and found.startswith(fault))
