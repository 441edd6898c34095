"""The slots of this process in the shared store, and the store's last answers."""

from __future__ import annotations

from aiaas.limits.known import KNOWN_LIMIT, LastKnown
from aiaas.limits.model import Lease, Limits, Rate
from aiaas.limits.standing import Standing
from aiaas.limits.state import State

KEY, USER = ("a", None), ("a", "u")


def an_answer(slots: int = 0) -> Standing:
    state = State()
    state.slots = slots
    return Standing(True, 5.0, 10.0, state, State())


def test_state_of_the_latest_keys_is_known() -> None:
    """The keys used last, each at most once; users do not push keys out."""
    known, limits = LastKnown(), Limits(Rate(1, 1), user=Limits(Rate(1, 1)))
    for number in range(KNOWN_LIMIT):
        known.answered(str(number), Limits(), 0, "", an_answer(), 0.0)
    known.answered("0", limits, 0, "u", an_answer(7), 0.0)
    for number in range(KNOWN_LIMIT + 5):
        known.answered("0", limits, 0, str(number), an_answer(7), 0.0)
    known.answered("another", Limits(), 0, "", an_answer(), 0.0)
    assert len(known) == 2 * KNOWN_LIMIT
    assert known.take(("1", None)) is None
    taken = known.take(("0", None))
    assert taken is not None
    assert taken.standing.state.slots == 7
    assert known.take(("0", None)) is None
    assert known.take(("2", None)) is not None
    assert (known.take(("0", "4")), known.take(("0", "u"))) == (None, None)
    user = known.take(("0", "5"))
    assert user is not None
    assert user.standing.state.slots == 0


def test_slots_of_key_and_user_are_held_until_settled() -> None:
    """Each where it is limited."""
    for key, user in ((2, 1), (None, 1), (2, None)):
        known = LastKnown()
        limits = Limits(concurrent=key, user=Limits(concurrent=user))
        lease = Lease("a", limits, 5, key is not None, 10.0, "id", None, "u")
        known.granted(lease)
        assert (known.held_by(KEY), known.held_by(USER)) == (int(key is not None), int(user is not None))
        known.settled(lease, 5, True)
        assert known.held == {}


def test_a_settlement_corrects_key_and_user() -> None:
    """Tokens by what was used beyond the reservation, and a request that did not run."""
    known, limits = LastKnown(), Limits(Rate(9, 9), user=Limits(concurrent=1))
    known.answered("a", limits, 5, "u", an_answer(), 0.0)
    known.settled(Lease("a", limits, 5, False, 10.0, "id", None, "u"), 3, False)
    for holder in (KEY, USER):
        found = known.take(holder)
        assert found is not None
        assert (found.requests, found.tokens, found.slots) == (0, 3, 0)
