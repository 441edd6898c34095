"""aiaas.keys.throttle: how many wrong keys a source may present, and how long it is remembered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.keys.throttle import BURST, MAX_SOURCES, SECONDS_A_TRY, FailureThrottle, source_of

NOW = 1_790_000_000.0


def test_a_few_failures_are_nobodys_business() -> None:
    """One failure less than the burst, and there is nothing to wait for."""
    throttle = FailureThrottle()
    for _ in range(BURST - 1):
        throttle.failed("a", NOW)
    assert throttle.wait("a", NOW) == 0
    throttle.failed("a", NOW)
    assert throttle.wait("a", NOW) == SECONDS_A_TRY
    assert throttle.wait("b", NOW) == 0


def test_all_is_forgiven_in_time() -> None:
    """One failure each INTERVAL, all of them after BURST intervals."""
    throttle = FailureThrottle()
    for _ in range(50):
        throttle.failed("a", NOW)
    assert throttle.wait("a", NOW) == SECONDS_A_TRY  # never more, however many there were
    assert throttle.wait("a", NOW + SECONDS_A_TRY) == 0
    later = NOW + 10 * BURST * SECONDS_A_TRY
    for _ in range(BURST - 1):
        throttle.failed("a", later)
    assert throttle.wait("a", later) == 0
    throttle.failed("a", later)
    assert throttle.wait("a", later) == SECONDS_A_TRY  # nothing is saved up meanwhile


def test_a_clock_that_is_set_back_locks_nobody_out() -> None:
    """At most as long as a full bucket takes."""
    throttle = FailureThrottle()
    for _ in range(BURST):
        throttle.failed("a", NOW)
    assert throttle.wait("a", NOW - 10_000_000) == SECONDS_A_TRY


def test_memory_is_bounded() -> None:
    """The source that failed least recently is forgotten."""
    throttle = FailureThrottle()
    for number in range(MAX_SOURCES + 100):
        for _ in range(BURST):
            throttle.failed(str(number), NOW)
    assert len(throttle) == MAX_SOURCES
    assert throttle.wait("0", NOW) == 0
    assert throttle.wait(str(MAX_SOURCES + 99), NOW) == SECONDS_A_TRY


def test_a_source_that_fails_again_is_not_the_first_forgotten() -> None:
    """A flood of further sources does not free a source while it goes on."""
    throttle = FailureThrottle()
    for number in range(MAX_SOURCES):
        for _ in range(BURST):
            throttle.failed(str(number), NOW)
    throttle.failed("0", NOW)
    throttle.failed("another", NOW)
    assert [throttle.wait(source, NOW) for source in ("0", "1")] == [SECONDS_A_TRY, 0]


@given(st.lists(st.floats(0, 30), max_size=200))
def test_hashes_of_a_source_are_bounded_over_any_time(pauses: list[float]) -> None:
    """BURST, and one for each INTERVAL, whenever the source tries."""
    throttle, now, hashed = FailureThrottle(), NOW, 0
    for pause in pauses:
        now += pause
        if throttle.wait("a", now) == 0:
            throttle.failed("a", now)
            hashed += 1
    assert hashed <= BURST + (now - NOW) / SECONDS_A_TRY + 1e-3


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::6", "2001:db8:1:3::/64"),
        ("unix", "unix"),
    ],
    ids=["IPv4", "IPv6", "first of its network", "the next network", "no address"],
)
def test_a_source_is_what_one_client_can_hold(address: str, source: str) -> None:
    """A client with one IPv6 address has 2^64 of them."""
    assert source_of(address) == source
