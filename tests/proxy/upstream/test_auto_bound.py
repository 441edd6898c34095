"""aiaas.proxy.upstream.auto_bound: the bound that follows vLLM's metrics, second by second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.proxy.upstream.auto_bound import (
    FIRST_MOST,
    LEAST_PLACES,
    MOST_PLACES,
    AutoBound,
    first_bound,
    next_bound,
    part_of,
)
from aiaas.proxy.upstream.vllm_load import VllmLoad


def load(running: int = 0, waiting: int = 0, kv: float = 0.1, preemptions: int = 0, started: float = 1.0) -> VllmLoad:
    """The metrics of one look."""
    return VllmLoad(running, waiting, kv, preemptions, 200_000, started)


def bound(places: float, *, found: bool = True, preemptions: int = 0) -> AutoBound:
    """A bound that was found a while ago."""
    return AutoBound(places, "", found, preemptions, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("tokens", "places"), [(0, 64), (120_000, 58), (1_000, LEAST_PLACES), (10_000_000, FIRST_MOST)]
)
def test_begins_with_what_surely_fits(tokens: int, places: int) -> None:
    """By the size of the KV cache; a crowd must not be refused at the start although vLLM has room."""
    assert first_bound(VllmLoad(0, 0, 0.0, 0, tokens, 1.0), 0.0, None).places == places


def test_begins_with_the_last_bound_where_one_is_known() -> None:
    """A reload does not begin again."""
    begun = first_bound(load(), 100.0, bound(40))
    assert (begun.places, begun.found) == (40, True)


def test_waiting_requests_in_vllm_show_its_places() -> None:
    """One look is enough, however far above it was."""
    assert next_bound(bound(100), load(running=64, waiting=36), 9.0, waits=True).places == 65


def test_waiting_requests_do_not_raise_the_bound() -> None:
    """Others than this gateway may have sent them."""
    assert next_bound(bound(10), load(running=64, waiting=36), 9.0, waits=True).places == 10


@pytest.mark.parametrize(("preempted", "places"), [(1, 45), (3, 45), (4, 40)])
def test_preemptions_lower_the_bound(preempted: int, places: int) -> None:
    """By a tenth of what runs, by a fifth after several."""
    after = next_bound(bound(80), load(running=50, kv=0.9, preemptions=preempted), 9.0, waits=True)
    assert after.places == places


def test_a_full_cache_lowers_the_bound_and_it_rests() -> None:
    """Before vLLM has to throw a request out; for 5 s it does not grow again."""
    low = next_bound(bound(50), load(running=50, kv=0.98), 9.0, waits=True)
    assert low.places == 45
    for now in (10.0, 12.0, 13.9):
        low = next_bound(low, load(running=45, kv=0.5), now, waits=True)
        assert low.places == 45
    assert next_bound(low, load(running=45, kv=0.5), 14.1, waits=True).places == 46


def test_grows_by_five_percent_until_vllm_was_full() -> None:
    """From 8 to 64 in some 43 s."""
    state, now = bound(8, found=False), 0.0
    while state.places < 64:
        now += 1.0
        state = next_bound(state, load(running=state.places), now, waits=True)
    assert 40 <= now <= 46


def test_grows_slowly_afterwards() -> None:
    """By 1/32 every 3 s."""
    state = bound(64)
    for second in range(1, 31):
        state = next_bound(state, load(running=state.places), float(second), waits=True)
    assert state.places == 87  # 64 * (33/32)^10


@pytest.mark.parametrize("kv", [0.86, 0.97])
def test_does_not_grow_into_a_cache_that_fills(kv: float) -> None:
    """Answers that are under way grow into it."""
    assert next_bound(bound(8), load(running=8, kv=kv), 9.0, waits=True).places == 8


def test_does_not_grow_where_nobody_waits() -> None:
    """Nor for the time in which nobody did."""
    state = bound(8, found=False)
    for second in range(100):
        state = next_bound(state, load(running=8), float(second), waits=False)
    assert next_bound(state, load(running=8), 100.0, waits=True).bound < 8.5


def test_does_not_grow_while_places_are_free() -> None:
    """Requests that wait for their first token elsewhere do not need more places."""
    assert next_bound(bound(8), load(running=4), 9.0, waits=True).places == 8


def test_a_restarted_vllm_has_not_preempted() -> None:
    """Its count begins again, and its old count is not compared."""
    after = next_bound(bound(8, preemptions=100), load(running=8, preemptions=3, started=2.0), 9.0, waits=False)
    assert after.places == 8
    assert after.preemptions == 3


@given(
    st.lists(
        st.tuples(st.integers(0, 5000), st.integers(0, 5000), st.floats(0, 1), st.integers(0, 9), st.booleans()),
        max_size=50,
    )
)
def test_is_never_below_the_least_or_above_the_most(looks: list[tuple[int, int, float, int, bool]]) -> None:
    """Whatever vLLM says: a bound of zero would stop all requests."""
    state = first_bound(load(), 0.0, None)
    for second, (running, waiting, kv, preemptions, waits) in enumerate(looks):
        state = next_bound(state, load(running, waiting, kv, preemptions), float(second), waits=waits)
        assert LEAST_PLACES <= state.places <= MOST_PLACES


@pytest.mark.parametrize(("places", "processes", "part"), [(8, 1, 8), (8, 3, 3), (4, 16, 1)])
def test_processes_share_the_places(places: int, processes: int, part: int) -> None:
    """At least one each."""
    assert part_of(places, processes) == part
