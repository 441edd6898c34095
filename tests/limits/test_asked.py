"""An admission whose answer comes too late, and the end of its request meanwhile."""

from __future__ import annotations

import pytest

from aiaas.limits.asked import Asked
from aiaas.limits.model import Lease, Limits
from aiaas.limits.resp import RedisReplyError, Reply
from aiaas.limits.standing import Standing

LET_IN = b"1 5 10 0 -inf -inf -inf 0 -inf 0 -inf"
REFUSED = b"0 5 10 0 -inf -inf -inf 0 -inf 0 -inf"


class FakeStore:
    """Records its calls."""

    def __init__(self) -> None:
        self.settled: list[tuple[str, int, bool]] = []

    def granted(self, key: str, limits: Limits, tokens: int, found: Standing, lease_id: str, user: str = "") -> Lease:
        return Lease(key, limits, tokens, False, found.wall, lease_id, None, user)

    def settle_now(self, lease: Lease, used_tokens: int, ran: bool) -> None:
        self.settled.append((lease.id, used_tokens, ran))


def an_asked() -> tuple[FakeStore, Asked]:
    store = FakeStore()
    return store, Asked(store, "alice", Limits(), 7, "id")


def test_a_request_that_left_gives_everything_back() -> None:
    """Cancelled, or refused without the store: only the late answer settles it."""
    store, asked = an_asked()
    asked(LET_IN)
    assert store.settled == [("id", 0, False)]


@pytest.mark.parametrize("answer_first", [True, False], ids=["answer, then end", "end, then answer"])
def test_a_request_that_ran_is_settled_once(answer_first: bool) -> None:
    """With its use, whichever comes first."""
    store, asked = an_asked()
    asked.runs()
    if answer_first:
        asked(LET_IN)
        assert store.settled == []
        asked.settle(9, True)
    else:
        asked.settle(9, True)
        assert store.settled == []
        asked(LET_IN)
    assert store.settled == [("id", 9, True)]


@pytest.mark.parametrize("reply", [REFUSED, RedisReplyError("NOSCRIPT"), None], ids=["refused", "error", "nothing"])
def test_request_refused_by_the_store_is_not_settled(reply: Reply) -> None:
    """Such a request charged nothing."""
    store, asked = an_asked()
    asked.runs()
    asked(reply)
    asked.settle(9, True)
    assert store.settled == []
