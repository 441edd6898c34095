"""The arguments and the answers of the shared store's script. The script itself runs in test_redis.py."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from aiaas.limits.model import UNLIMITED, Lease, Limits, Rate
from aiaas.limits.script import (
    SCRIPT,
    admit_arguments,
    keys_of,
    renew_arguments,
    settle_arguments,
    slots_key_of,
    standing,
)

ALL = Limits(Rate(60, 10), Rate(600, 500), 1000, 2000, 3)


def test_both_keys_of_an_api_key_are_in_one_slot_of_a_cluster() -> None:
    """Its id is the hash tag; the key of the slots is left out where they are not limited."""
    assert keys_of("k1", slots=True) == ("aiaas:{k1}:limits", "aiaas:{k1}:slots")
    assert keys_of("k1", slots=False) == ("aiaas:{k1}:limits",)
    assert slots_key_of("k1") == "aiaas:{k1}:slots"


def test_a_limit_that_there_is_not_is_an_empty_argument() -> None:
    """tonumber('') is nil in Lua."""
    assert admit_arguments(UNLIMITED, 5, "id", 15.0) == ("admit", 5, "id", 15.0, *[""] * 7, 0)
    assert admit_arguments(ALL, 5, "id", 15.0)[4:] == (60, 10, 600, 500, 1000, 2000, 3, 0)
    assert admit_arguments(replace(ALL, cheap=True), 5, "id", 15.0)[-1] == 1


@pytest.mark.parametrize(
    ("lease", "used", "ran", "expected"),
    [
        pytest.param(Lease("k", UNLIMITED, 5, False), 3, True, None, id="nothing to settle"),
        pytest.param(Lease("k", ALL, 5, False, 9.5, "id"), 5, True, None, id="used as reserved"),
        pytest.param(
            Lease("k", Limits(concurrent=1), 5, True, 9.5, "id"),
            3,
            True,
            ("settle", "id", "", "", 0, 0, 0, 1, 9.5, 0),
            id="a slot",
        ),
        pytest.param(
            Lease("k", ALL, 5, True, 9.5, "id"),
            8,
            False,
            ("settle", "id", 60, 600, 1, 1, 3, 0, 9.5, 0),
            id="everything",
        ),
        pytest.param(
            Lease("k", Limits(Rate(600, 100), cheap=True), 0, False, 9.5, "id"),
            0,
            False,
            ("settle", "", 600, "", 0, 0, 0, 0, 9.5, 1),
            id="a cheap request that did not run",
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


def test_an_answer_reads_back_to_the_last_bit() -> None:
    """17 digits keep a double; a missing value is as good as new."""
    now = 28_000_000.123456 + 2**-20
    found = standing(b"1 %.17g 1.795e9 2 %.17g -inf 1.0e9 7 -inf 0 %.17g" % (now, now + 0.1, now + 0.2))
    assert (found.allowed, found.now, found.wall) == (True, now, 1.795e9)
    state = found.state
    assert (state.requests, state.tokens, state.slots) == (now + 0.1, -inf, 2)
    assert state.cheap == now + 0.2
    assert (state.day, state.day_tokens, state.month, state.month_tokens) == (1e9, 7, -inf, 0)


def test_the_script_asks_no_clock_but_the_servers_and_once() -> None:
    """Two readings within one decision could disagree."""
    assert SCRIPT.count("'TIME'") == 1
    assert "os." not in SCRIPT
