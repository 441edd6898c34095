"""The answers of the shared store's script, read back."""

from __future__ import annotations

from math import inf

from aiaas.limits.model import Limits, Rate
from aiaas.limits.standing import admission_of, refusal_of, standing


def test_an_answer_reads_back_to_the_last_bit() -> None:
    """17 digits keep a double; a missing value is as good as new."""
    now = 28_000_000.123456 + 2**-20
    found = standing(b"1 %.17g 1.795e9 2 %.17g -inf 1.0e9 7 -inf 0 %.17g" % (now, now + 0.1, now + 0.2))
    assert (found.allowed, found.now, found.wall) == (True, now, 1.795e9)
    state = found.state
    assert (state.requests, state.tokens, state.slots) == (now + 0.1, -inf, 2)
    assert state.cheap == now + 0.2
    assert (state.day, state.day_tokens, state.month, state.month_tokens) == (1e9, 7, -inf, 0)
    assert found.user is None
    assert found.of_user() is found


def test_an_answer_about_a_user_has_both_states() -> None:
    """The key's first; the result is that of both."""
    found = standing(b"1 5 10 1 5 -inf -inf 0 -inf 0 -inf 2 20 -inf -inf 0 -inf 0 -inf")
    assert found.user is not None
    assert (found.state.slots, found.user.slots, found.of_user().state.requests) == (1, 2, 20.0)
    limits = Limits(Rate(60, 30), user=Limits(Rate(60, 20)))
    looked = admission_of(found, limits, 0, 0, None).requests
    assert looked is not None
    assert looked.remaining == 5
    refused = refusal_of(found, Limits(Rate(60, 30), user=Limits(Rate(60, 15))), 0)
    assert (refused.refused_by, refused.of_user) == ("requests", True)
