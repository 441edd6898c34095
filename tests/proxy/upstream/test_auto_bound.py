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
)
from aiaas.proxy.upstream.vllm_load import VllmLoad


def load(running: int = 0, waiting: int = 0, kv: float = 0.1, preemptions: int = 0, started: float = 1.0) -> VllmLoad:
    """The metrics of one look."""
    return VllmLoad(running, waiting, kv, preemptions, 200_000, started)


def bound_of(places: float, *, found: bool = True, preemptions: int = 0) -> AutoBound:
    """A bound that was found a while ago."""
    return AutoBound(places, "", found, preemptions, 1.0, 0.0, 0.0)


def look(state: AutoBound, seen: VllmLoad, now: float = 9.0, *, waits: bool = True) -> AutoBound:
    """One look of the only gateway."""
    return next_bound(state, seen, now, own=seen.running + seen.waiting, waits=waits)


@pytest.mark.parametrize(
    ("tokens", "places"), [(0, 64), (120_000, 58), (1_000, LEAST_PLACES), (10_000_000, FIRST_MOST)]
)
def test_begins_with_what_surely_fits(tokens: int, places: int) -> None:
    """By the size of the KV cache; a crowd must not be refused at the start although vLLM has room."""
    assert first_bound(VllmLoad(0, 0, 0.0, 0, tokens, 1.0), 0.0, None).places == places


def test_begins_with_the_last_bound_where_one_is_known() -> None:
    """A reload does not begin again."""
    begun = first_bound(load(), 100.0, bound_of(40))
    assert (begun.places, begun.found) == (40, True)


def test_waiting_requests_in_vllm_show_its_places() -> None:
    """One look is enough, however far above it was."""
    assert look(bound_of(100), load(running=64, waiting=36)).places == 65


def test_waiting_requests_do_not_raise_the_bound() -> None:
    """Others than this gateway may have sent them."""
    assert look(bound_of(10), load(running=64, waiting=36)).places == 10


@pytest.mark.parametrize(("preempted", "places"), [(1, 45), (3, 45), (4, 40)])
def test_preemptions_lower_the_bound(preempted: int, places: int) -> None:
    """By a tenth of the running requests, by a fifth after several."""
    assert look(bound_of(80), load(running=50, kv=0.9, preemptions=preempted)).places == places


def test_a_full_cache_lowers_the_bound_and_it_rests() -> None:
    """Before vLLM has to throw a request out; for 5 s it does not grow again."""
    low = look(bound_of(50), load(running=50, kv=0.98))
    assert low.places == 45
    for now in (10.0, 12.0, 13.9):
        low = look(low, load(running=45, kv=0.5), now)
        assert low.places == 45
    assert look(low, load(running=45, kv=0.5), 14.1).places == 46


def test_grows_by_five_percent_until_vllm_was_full() -> None:
    """From 8 to 64 in some 43 s."""
    state, now = bound_of(8, found=False), 0.0
    while state.places < 64:
        now += 1.0
        state = look(state, load(running=state.places), now)
    assert 40 <= now <= 46


def test_grows_slowly_afterwards() -> None:
    """By 1/32 every 3 s."""
    state = bound_of(64)
    for second in range(1, 31):
        state = look(state, load(running=state.places), float(second))
    assert state.places == 86


@pytest.mark.parametrize("kv", [0.86, 0.97])
def test_does_not_grow_into_a_cache_that_fills(kv: float) -> None:
    """Answers that are under way grow into it."""
    assert look(bound_of(8), load(running=8, kv=kv)).places == 8


def test_does_not_grow_where_nobody_waits() -> None:
    """Nor for the time in which nobody did."""
    state = bound_of(8, found=False)
    for second in range(100):
        state = look(state, load(running=8), float(second), waits=False)
    assert look(state, load(running=8), 100.0).bound < 8.5


def test_does_not_grow_while_places_are_free() -> None:
    """A request that waits for another endpoint needs no place here."""
    assert look(bound_of(8), load(running=4)).places == 8


def test_a_restarted_vllm_has_not_preempted() -> None:
    """Its count begins again, and its old count is not compared."""
    after = look(bound_of(8, preemptions=100), load(running=8, preemptions=3, started=2.0), waits=False)
    assert after.places == 8
    assert after.preemptions == 3


def test_several_gateways_share_a_vllm_unknown_to_each_other() -> None:
    """Together they have the places of vLLM, and their parts become more alike."""
    bounds = [bound_of(60), bound_of(20), bound_of(4)]
    for second in range(600):
        own = [bound.places for bound in bounds]
        seen = load(running=min(64, sum(own)), waiting=max(0, sum(own) - 64))
        bounds = [
            next_bound(bound, seen, float(second), own=used, waits=True)
            for bound, used in zip(bounds, own, strict=True)
        ]
    places = sorted(bound.places for bound in bounds)
    assert 58 <= sum(places) <= 72
    assert places[-1] <= 1.6 * places[0]  # 15 times at first


def test_a_request_for_several_choices_is_one_request() -> None:
    """vLLM counts its choices: of 20 requests for four choices each, 16 fit into 64 places."""
    after = next_bound(bound_of(20), load(running=64, waiting=16), 9.0, own=20, waits=True)
    assert after.places == 17


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
        state = look(state, load(running, waiting, kv, preemptions), float(second), waits=waits)
        assert LEAST_PLACES <= state.places <= MOST_PLACES
