"""Sessions on replicas of one vLLM, on a virtual clock: `balance: auto` beside the rule that it replaced."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.proxy.upstream.virtual_replicas import Auto, Bounded, Fleet, Load, PrefixHash

AGENTS = Load(48)
BUSY = Load(100, think=3.0)
SECONDS = 400.0
# The hit rate of all earlier turns and the common prompt, and the seconds within which 90 % have their first token.
HITS = 0.93
WAIT = 0.5


def run(load: Load, *routers: Auto | PrefixHash, seed: int = 1) -> Fleet:
    """The fleet of four after its time."""
    fleet = Fleet(load, routers, 4, seed)
    fleet.run(SECONDS)
    return fleet


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_agents_find_their_cache(seed: int) -> None:
    """48 agents with a common prompt of 20,000 tokens: each turn goes where the one before was."""
    fleet = run(AGENTS, Auto(4), seed=seed)
    assert fleet.hit_rate >= HITS
    assert fleet.p90 <= WAIT
    assert fleet.stayed() >= 0.99
    places = Counter(session.places[-1] for session in fleet.ended)
    assert min(places.values()) >= 0.6 * max(places.values())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_prefix_of_the_body_scatters_agents(seed: int) -> None:
    """The old rule misses all of that: so this model can tell the two apart."""
    fleet = run(AGENTS, PrefixHash(4), seed=seed)
    assert fleet.hit_rate < HITS - 0.1
    assert fleet.p90 > 4 * WAIT
    assert fleet.stayed() < 0.6


@pytest.mark.parametrize("load", [AGENTS, BUSY], ids=["20 % load", "70 % load"])
@pytest.mark.parametrize("gateways", [2, 4])
def test_gateways_agree_without_a_word(load: Load, gateways: int) -> None:
    """Each turn goes through any of them, and 95 of 100 to the endpoint that the session is at most often."""
    fleet = run(load, *(Auto(4) for _ in range(gateways)))
    assert fleet.utilization < 0.8
    assert fleet.stayed() >= 0.95
    assert fleet.hit_rate >= HITS - 0.01


@pytest.mark.parametrize("load", [AGENTS, Load(72, think=3.0)], ids=["20 % load", "50 % load"])
def test_bound_on_prompts_moves_no_session(load: Load) -> None:
    """A long prompt that is read makes an endpoint not free; turns whose prompt is cached there go there all the same.

    Else 20 of 100 turns move at low load, and at half load each of them makes further ones move.
    """
    router = Bounded(4, 32)
    fleet = run(load, router)
    assert fleet.stayed() >= 0.99
    assert fleet.hit_rate >= HITS
    assert fleet.p90 <= WAIT
    assert router.waits < 50  # first turns, whose prompts are long: each waits until the one before it has been read
    assert all((e.pending >= 0, e.reserved >= 0) == (True, True) for e in router.backend.endpoints)


def test_replica_that_goes_moves_only_its_own_sessions() -> None:
    """At most 30 % of the sessions move, and they come back with it."""
    router = Auto(4)
    gone = router.backend.endpoints[2]
    fleet = Fleet(Load(100, turns=60, each=200), [router], 4)
    at: dict[str, dict[str, int]] = {}

    def note(name: str) -> None:
        at[name] = {session.name: session.places[-1] for session in fleet.live if session.places}

    def down() -> None:
        note("before")
        gone.up = False

    def up() -> None:
        note("during")
        gone.up = True

    fleet.at = {150.0: down, 220.0: up, 380.0: lambda: note("after")}
    fleet.run(SECONDS)
    before, during, after = at["before"], at["during"], at["after"]
    moved = {name for name in before if during[name] != before[name]}
    own = {name for name, place in before.items() if place == 2}
    assert own <= moved
    assert len(moved) <= 0.3 * len(before)
    assert len(own) >= 0.15 * len(before)
    assert {after[name] for name in own if name in after} == {2}
    assert len(own & set(after)) > 10
