"""aiaas.proxy.upstream.queue: whose turn it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.proxy.upstream.queue import FairQueue


def drained(queue: FairQueue[str]) -> list[str]:
    """All waiting requests, in the order of their turns."""
    order = []
    while (waiter := queue.take()) is not None:
        order.append(waiter)
    return order


@pytest.mark.parametrize(
    ("arrivals", "order"),
    [
        ("", ""),
        ("a1 a2 a3", "a1 a2 a3"),
        ("a1 a2 a3 b1", "a1 b1 a2 a3"),
        ("a1 a2 b1 b2 c1", "a1 b1 c1 a2 b2"),
        ("b1 a1 b2 a2", "b1 a1 b2 a2"),
    ],
    ids=["nobody", "one key", "one key's backlog", "three keys", "in the order in which keys came"],
)
def test_turns(arrivals: str, order: str) -> None:
    """First come, first served within a key, one each in turn between keys."""
    queue: FairQueue[str] = FairQueue(10)
    for waiter in arrivals.split():
        assert queue.put(waiter[0], waiter)
    assert drained(queue) == order.split()


def test_backlog_holds_up_nobody_else() -> None:
    """The first request of a key has its turn after one of a key that has a thousand waiting."""
    queue: FairQueue[str] = FairQueue(2000)
    for count in range(1000):
        queue.put("a", f"a{count}")
    assert queue.take() == "a0"
    queue.put("b", "b0")
    assert [queue.take(), queue.take(), queue.take()] == ["a1", "b0", "a2"]


def test_key_that_comes_back_is_last_in_the_round() -> None:
    """Leaving and coming again gains nothing."""
    queue: FairQueue[str] = FairQueue(10)
    for waiter in ("a1", "b1", "c1"):
        queue.put(waiter[0], waiter)
    queue.remove("a", "a1")
    queue.put("a", "a2")
    assert drained(queue) == ["b1", "c1", "a2"]


def test_full() -> None:
    """At most `size` requests wait; one that leaves makes room; a size of 0 lets none wait."""
    queue: FairQueue[str] = FairQueue(2)
    assert [queue.put("a", "a1"), queue.put("b", "b1"), queue.put("c", "c1")] == [True, True, False]
    assert repr(queue) == "<FairQueue: 2 of 2 wait, 2 keys>"
    queue.remove("c", "c1")
    assert not queue.put("c", "c1")
    queue.remove("a", "a1")
    assert queue.put("c", "c1")
    assert drained(queue) == ["b1", "c1"]
    assert not FairQueue[str](0).put("a", "a1")


def test_leaving_request_takes_no_other_along() -> None:
    """The others of its key wait on in their order; one that was served, or left before, leaves nothing behind."""
    queue: FairQueue[str] = FairQueue(10)
    for waiter in ("a1", "a2", "a3", "a4", "b1"):
        queue.put(waiter[0], waiter)
    assert queue.take() == "a1"
    for _ in range(2):
        queue.remove("a", "a1")
        queue.remove("a", "a3")
    assert len(queue) == 3
    assert drained(queue) == ["b1", "a2", "a4"]


STEPS = st.lists(st.tuples(st.sampled_from(["put", "take", "remove"]), st.sampled_from("abc"), st.integers(0, 5)))


@given(STEPS)
def test_like_the_plain_rule(steps: list[tuple[str, str, int]]) -> None:
    """After any steps the queue agrees with lists that are searched: same turns, same length, nobody lost or twice."""
    queue: FairQueue[int] = FairQueue(6)
    keys: list[str] = []
    rows: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    for count, (step, key, place) in enumerate(steps):
        if step == "put":
            room = sum(map(len, rows.values())) < 6
            assert queue.put(key, count) == room
            if room:
                rows[key].append(count)
                keys += [] if key in keys else [key]
        elif step == "take":
            expected = None
            if keys:
                turn = keys.pop(0)
                expected = rows[turn].pop(0)
                keys += [turn] if rows[turn] else []
            assert queue.take() == expected
        elif place < len(rows[key]):
            queue.remove(key, rows[key].pop(place))
            keys = [known for known in keys if rows[known]]
        assert len(queue) == sum(map(len, rows.values()))
        assert bool(queue) == any(rows.values())
