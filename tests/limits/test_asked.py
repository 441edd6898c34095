"""An admission whose answer comes too late, and what became of its request meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from aiaas.limits.asked import Asked, claimed
from aiaas.limits.model import Lease, Limits
from aiaas.limits.resp import RedisReplyError, Reply
from aiaas.limits.script import Standing

LET_IN = b"1 5 10 0 -inf -inf -inf 0 -inf 0"
REFUSED = b"0 5 10 0 -inf -inf -inf 0 -inf 0"


class FakeStore:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.settled: list[tuple[str, int, bool]] = []

    def granted(self, key: str, limits: Limits, tokens: int, now: float, found: Standing, lease_id: str) -> Lease:
        return Lease(key, limits, tokens, now, False, found.wall, lease_id)

    def settle_now(self, lease: Lease, used_tokens: int, ran: bool) -> None:
        self.settled.append((lease.id, used_tokens, ran))


def an_asked() -> tuple[FakeStore, Asked]:
    store = FakeStore()
    return store, Asked(store, "alice", Limits(), 7, "id")


def test_a_request_that_left_gives_everything_back() -> None:
    """Cancelled, or refused without the store: nobody settles it but the late answer."""
    store, asked = an_asked()
    asked(LET_IN)
    assert store.settled == [("id", 0, False)]


@pytest.mark.parametrize("answer_first", [True, False], ids=["answer, then end", "end, then answer"])
def test_a_request_that_ran_is_settled_once(answer_first: bool) -> None:
    """With what it used, whichever comes first."""
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
def test_what_the_store_did_not_let_in_is_not_settled(reply: Reply) -> None:
    """It charged nothing."""
    store, asked = an_asked()
    asked.runs()
    asked(reply)
    asked.settle(9, True)
    assert store.settled == []


async def test_a_reply_that_its_waiter_did_not_live_to_see_is_taken() -> None:
    """Cancelled in the moment after the reply came; one that is an error has nothing to be taken."""
    for error in (None, RedisReplyError("ERR")):
        store, asked = an_asked()
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        waiter = asyncio.create_task(claimed(reply, asked))
        await asyncio.sleep(0)
        if error is None:
            reply.set_result(LET_IN)
        else:
            reply.set_exception(error)
        waiter.cancel()
        await asyncio.wait([waiter])
        assert waiter.cancelled()
        assert store.settled == ([("id", 0, False)] if error is None else [])
