"""The slots of this process in the shared store, and the store's last answers."""

from __future__ import annotations

from aiaas.limits.known import KNOWN_LIMIT, LastKnown
from aiaas.limits.model import Lease, Limits, Rate
from aiaas.limits.standing import Standing
from aiaas.limits.state import State


def an_answer(slots: int = 0) -> Standing:
    state = State()
    state.slots = slots
    return Standing(True, 5.0, 10.0, state)


def test_state_of_the_latest_keys_is_known() -> None:
    """The keys used last, each at most once."""
    known: LastKnown[int] = LastKnown()
    for number in range(KNOWN_LIMIT):
        known.answered(number, Limits(), 0, an_answer(), 0.0)
    known.answered(0, Limits(), 0, an_answer(7), 0.0)
    known.answered(KNOWN_LIMIT, Limits(), 0, an_answer(), 0.0)
    assert len(known) == KNOWN_LIMIT
    assert known.take(1) is None
    taken = known.take(0)
    assert taken is not None
    assert taken.standing.state.slots == 7
    assert known.take(0) is None
    assert known.take(2) is not None


def test_settlement_corrects_the_last_answer() -> None:
    """Tokens by what was used beyond the reservation, a request that did not run, and its slot."""
    known: LastKnown[str] = LastKnown()
    limits = Limits(Rate(9, 9), concurrent=1)
    known.answered("a", limits, 5, an_answer(), 0.0)
    known.held["a"] = {"id"}
    assert known.held_by("a") == 1
    known.settled("a", limits, Lease("a", limits, 5, True, 10.0, "id"), 3, False)
    assert (known.held_by("a"), known.held) == (0, {})
    found = known.take("a")
    assert found is not None
    assert (found.requests, found.cheap, found.tokens, found.slots) == (0, 0, 3, 0)


def test_cheap_requests_are_counted_apart() -> None:
    """In the answer, and where they did not run."""
    known: LastKnown[str] = LastKnown()
    cheap = Limits(Rate(9, 9), cheap=True)
    for _ in range(2):
        known.answered("a", cheap, 0, an_answer(), 0.0)
    known.settled("a", cheap, Lease("a", cheap, 0, False, 10.0, "id"), 0, False)
    found = known.take("a")
    assert found is not None
    assert (found.requests, found.cheap) == (0, 0)
