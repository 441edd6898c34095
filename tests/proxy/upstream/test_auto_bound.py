"""aiaas.proxy.upstream.auto_bound: the bound that follows vLLM's metrics, second by second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

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


def bound_of(places: float, *, found: bool = True, preemptions: int = 0, kv: float = 0.1) -> AutoBound:
    """A bound that was found a while ago."""
    return AutoBound(places, "", found, preemptions, 1.0, 0.0, 0.0, kv_usage=kv)


def look(
    state: AutoBound, seen: VllmLoad, now: float = 9.0, *, own: int | None = None, waits: bool = True
) -> AutoBound:
    """One look; of the only gateway, if `own` is not given."""
    return next_bound(state, seen, now, own=seen.running + seen.waiting if own is None else own, waits=waits)


def looks(state: AutoBound, seen: VllmLoad, count: int, *, own: int | None = None, waits: bool = True) -> AutoBound:
    """Several looks that see the same."""
    for second in range(count):
        state = look(state, seen, float(second), own=own, waits=waits)
    return state


@pytest.mark.parametrize(
    ("tokens", "places"), [(0, 64), (120_000, 58), (1_000, LEAST_PLACES), (10_000_000, FIRST_MOST)]
)
def test_begins_with_what_surely_fits(tokens: int, places: int) -> None:
    """By the size of the KV cache; a crowd must not be refused at the start although vLLM has room."""
    assert first_bound(VllmLoad(0, 0, 0.0, 0, tokens, 1.0), 0.0).places == places


def test_begins_with_what_other_gateways_leave() -> None:
    """97 requests surely fit; 40 are there."""
    begun = first_bound(load(running=38, waiting=2), 0.0)
    assert (begun.places, begun.found) == (57, False)


def test_begins_with_a_quarter_of_a_busy_vllm() -> None:
    """The other gateways have all places, and go back once more requests come."""
    begun = first_bound(load(running=120), 0.0)
    assert (begun.places, begun.found) == (30, True)


def test_gateways_that_begin_together_divide_the_first_bound() -> None:
    """Each began with all of it."""
    begun = first_bound(load(), 0.0)
    assert look(begun, load(running=90, waiting=5), 1.0, own=50).places == 97
    divided = look(begun, load(running=95, waiting=5), 1.0, own=50)
    assert divided.places == 48
    assert look(divided, load(running=95, waiting=5), 2.0, own=40).places == 48


def test_waiting_requests_in_vllm_show_its_places() -> None:
    """Four looks are enough, however far above it was: the first one sees that so many run, three that no more do."""
    seen = load(running=64, waiting=36)
    assert looks(bound_of(100, found=False), seen, 3).places >= 100
    assert looks(bound_of(100, found=False), seen, 4).places == 65


def test_prompts_that_are_read_in_turn_do_not_show_its_places() -> None:
    """Some always wait while more and more run, or while fewer run than before."""
    state = bound_of(256, found=False)
    for second in range(20):
        state = look(state, load(running=20 + 10 * second, waiting=5), float(second))
    assert state.places >= 256
    assert looks(state, load(running=150, waiting=5), 9).places >= 256


def test_prompts_that_do_not_fit_lower_the_bound() -> None:
    """The cache is too full for the next prompt, but vLLM throws out none."""
    before = look(bound_of(58, kv=0.9), load(running=30, kv=0.9))
    assert looks(before, load(running=19, waiting=2, kv=0.9), 4).places == 20


def test_places_are_found_although_not_all_are_used() -> None:
    """The bound on unread prompts keeps the others from being used."""
    assert looks(bound_of(256, found=False), load(running=64, waiting=5), 4).places == 65


def test_waiting_requests_do_not_raise_the_bound() -> None:
    """Others than this gateway may have sent them."""
    assert looks(bound_of(6), load(running=64, waiting=36), 4, own=6, waits=False).places <= 6


@pytest.mark.parametrize(
    ("seen", "places"), [(load(running=64, waiting=9), 17), (load(running=64, kv=0.99), 14)], ids=["places", "cache"]
)
def test_an_idle_gateway_keeps_a_quarter(seen: VllmLoad, places: int) -> None:
    """It must not begin with two places when its crowd comes."""
    assert looks(bound_of(200), seen, 4, own=1, waits=False).places == places


def test_a_joining_gateway_keeps_a_quarter() -> None:
    """For 20 s; afterwards its part is what it has."""
    full = load(running=100, kv=0.99)
    begun = first_bound(load(running=100), 0.0)
    assert look(begun, full, 19.0, own=8).places == 22
    assert look(begun, full, 20.0, own=8).places == 7


@pytest.mark.parametrize(("preempted", "places"), [(1, 45), (3, 45), (4, 40)])
def test_preemptions_lower_the_bound(preempted: int, places: int) -> None:
    """By a tenth of the running requests, by a fifth after several."""
    assert look(bound_of(80), load(running=50, kv=0.9, preemptions=preempted)).places == places


def test_a_full_cache_lowers_the_bound_and_it_rests() -> None:
    """Before vLLM has to throw a request out; for 5 s it does not grow again."""
    low = look(bound_of(50, kv=0.98), load(running=50, kv=0.98))
    assert low.places == 45
    for now in (10.0, 12.0, 13.9):
        low = look(low, load(running=45, kv=0.5), now)
        assert low.places == 45
    assert look(low, load(running=45, kv=0.5), 14.1).places == 46


@pytest.mark.parametrize(("rising", "places"), [(0.005, 51), (0.015, 50)])
def test_does_not_grow_into_a_cache_that_will_be_full(rising: float, places: int) -> None:
    """1.5 % more each second are 45 % in 30 s."""
    state = replace(bound_of(50, kv=0.4), rising=rising)
    assert look(state, load(running=50, kv=0.4 + rising)).places == places


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


@pytest.mark.parametrize("kv", [0.81, 0.97])
def test_does_not_grow_into_a_cache_that_fills(kv: float) -> None:
    """Answers that are under way grow into it."""
    assert look(bound_of(8, kv=kv), load(running=8, kv=kv)).places == 8


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
    assert looks(bound_of(20), load(running=64, waiting=16), 4, own=20).places == 17


@given(
    st.lists(
        st.tuples(st.integers(0, 5000), st.integers(0, 5000), st.floats(0, 1), st.integers(0, 9), st.booleans()),
        max_size=50,
    )
)
def test_is_never_below_the_least_or_above_the_most(seen: list[tuple[int, int, float, int, bool]]) -> None:
    """Whatever vLLM says: a bound of zero would stop all requests."""
    state = first_bound(load(), 0.0)
    for second, (running, waiting, kv, preemptions, waits) in enumerate(seen):
        state = look(state, load(running, waiting, kv, preemptions), float(second), waits=waits)
        assert LEAST_PLACES <= state.places <= MOST_PLACES
