"""The arguments of the shared store's script. The script itself runs in test_redis.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aiaas.limits.model import UNLIMITED, Lease, Limits, Rate
from aiaas.limits.script import (
    SCRIPT,
    admit_arguments,
    admit_keys,
    look_keys,
    renew_arguments,
    settle_arguments,
    settle_keys,
    slots_key_of,
)

ALL = Limits(Rate(60, 10), Rate(600, 500), 1000, 2000, 3)


def test_all_keys_of_an_api_key_are_in_one_slot_of_a_cluster() -> None:
    """Its id is the hash tag; the keys of slots and users are left out where these are not limited."""
    slots, user = replace(UNLIMITED, concurrent=1), replace(UNLIMITED, user=UNLIMITED)
    assert admit_keys("k1", slots, "u") == ("aiaas:{k1}:limits", "aiaas:{k1}:slots")
    assert admit_keys("k1", UNLIMITED, "u") == look_keys("k1", slots, "u") == ("aiaas:{k1}:limits",)
    assert look_keys("k1", user, "u") == ("aiaas:{k1}:limits", "aiaas:{k1}:limits:u")
    assert admit_keys("k1", user, "u") == ("aiaas:{k1}:limits", "aiaas:{k1}:limits:u", "aiaas:{k1}:users")
    both = replace(slots, user=slots)
    assert settle_keys(Lease("k1", both, 0, True, user="u")) == admit_keys("k1", both, "u")[:-1]
    assert slots_key_of("k1") == "aiaas:{k1}:slots"


def test_a_limit_that_there_is_not_is_an_empty_argument() -> None:
    """tonumber('') is nil in Lua."""
    assert admit_arguments(UNLIMITED, 5, "id", 15.0) == ("admit", 5, "id", 15.0, 0, "", *[""] * 7)
    assert admit_arguments(ALL, 5, "id", 15.0)[6:] == (60, 10, 600, 500, 1000, 2000, 3)
    assert admit_arguments(replace(ALL, cheap=True), 5, "id", 15.0)[4] == 1
    both = admit_arguments(replace(UNLIMITED, user=ALL), 5, "id", 15.0, "u")
    assert both[5:] == ("u", *[""] * 7, 60, 10, 600, 500, 1000, 2000, 3)


@pytest.mark.parametrize(
    ("lease", "used", "ran", "expected"),
    [
        pytest.param(Lease("k", UNLIMITED, 5, False), 3, True, None, id="nothing to settle"),
        pytest.param(Lease("k", ALL, 5, False, 9.5, "id"), 5, True, None, id="used as reserved"),
        pytest.param(
            Lease("k", Limits(concurrent=1), 5, True, 9.5, "id"),
            3,
            True,
            ("settle", 0, 1, 9.5, 0, "id", "", "", 0, 0),
            id="a slot",
        ),
        pytest.param(
            Lease("k", ALL, 5, True, 9.5, "id"),
            8,
            False,
            ("settle", 3, 0, 9.5, 0, "id", 60, 600, 1, 1),
            id="everything",
        ),
        pytest.param(
            Lease("k", Limits(Rate(600, 100), cheap=True), 0, False, 9.5, "id"),
            0,
            False,
            ("settle", 0, 0, 9.5, 1, "", 600, "", 0, 0),
            id="a cheap request that did not run",
        ),
        pytest.param(
            Lease("k", Limits(user=Limits(concurrent=1)), 5, False, 9.5, "id", None, "u"),
            5,
            True,
            ("settle", 0, 1, 9.5, 0, "", "", "", 0, 0, "id", "", "", 0, 0),
            id="a slot of the user",
        ),
    ],
)
def test_a_settlement_asks_for_no_more_than_there_is_to_do(
    lease: Lease, used: int, ran: bool, expected: tuple[object, ...] | None
) -> None:
    """Nothing to settle spares the round trip."""
    assert settle_arguments(lease, used, ran) == expected


def test_a_renewal_names_its_leases() -> None:
    """All of one key at once."""
    assert renew_arguments(["a", "b"], 15.0) == ("renew", 15.0, "a", "b")


def test_the_script_asks_no_clock_but_the_servers_and_once() -> None:
    """Two readings within one decision could disagree."""
    assert SCRIPT.count("'TIME'") == 1
    assert "os." not in SCRIPT
