"""aiaas.proxy.upstream.turns: the users of one key take turns; nothing but a hash of a user is kept."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from aiaas.proxy.upstream.fair_share import FairShare
from aiaas.proxy.upstream.turns import MOST_TURNS, TurnQueue
from tests.fakes.vllm import FakeVllm, Hang, Send, json_answer
from tests.proxy.conftest import StartGateway, new_key
from tests.waiting import until

HEADER = "X-OpenWebUI-User-Id"


def queue_of(arrivals: str) -> TurnQueue[str]:
    """These wait, in the order of arrival; a waiter's user is its first letter."""
    queue: TurnQueue[str] = TurnQueue()
    for waiter in arrivals.split():
        queue[waiter] = waiter[0]
    return queue


def order(queue: TurnQueue[str]) -> str:
    """All of them, each taken when it is its turn."""
    taken = []
    while len(queue):
        taken.append(next(iter(queue)))
        del queue[taken[-1]]
    return " ".join(taken)


def test_each_user_has_a_turn() -> None:
    """However many requests another one sent before; within a user the first comes first."""
    assert order(queue_of("a1 a2 a3 a4 b1 b2 c1")) == "a1 b1 c1 a2 b2 a3 a4"


def test_request_that_leaves_costs_no_turn() -> None:
    """Unless it was the next one of its user."""
    queue = queue_of("a1 a2 a3 b1")
    del queue["a2"]
    assert order(queue) == "a1 b1 a3"
    queue = queue_of("a1 a2 b1")
    del queue["a1"]
    assert order(queue) == "b1 a2"


@given(st.lists(st.sampled_from("abcd"), max_size=30), st.sampled_from("abcde"))
def test_requests_ahead_are_those_that_go_first(users: list[str], user: str) -> None:
    """As counted by taking all of them."""
    waiters = [f"{name}{number}" for number, name in enumerate(users)]
    queue = queue_of(" ".join(waiters))
    ahead = queue.ahead(user)
    queue[f"{user}-new"] = user
    assert order(queue).split().index(f"{user}-new") <= ahead


def test_newest_of_the_user_with_the_most_may_have_to_go() -> None:
    """For one with at least two fewer; among keys, the newest of the user with the most."""
    queue = queue_of("a1 b1 a2 a3")
    assert queue.crowding("c") == "a3"
    assert queue.crowding("") == "a3"
    assert queue.crowding("a") is None
    assert queue_of("a1 b1").crowding("c") is None
    assert TurnQueue[str]().crowding("c") is None
    assert next(reversed(queue)) == "a3"


def test_number_of_users_is_bounded() -> None:
    """Further ones share one turn, and nothing is left of those that have gone."""
    queue: TurnQueue[int] = TurnQueue()
    for number in range(MOST_TURNS + 10):
        queue[number] = str(number)
    assert len(queue._users) == MOST_TURNS + 1
    for number in range(MOST_TURNS + 10):
        assert number in queue
        del queue[number]
    assert (len(queue), len(queue._users)) == (0, 0)


def test_users_share_the_place_of_their_key() -> None:
    """A key with three users is served no more than another one; a full queue makes room for a user who has few."""
    fair: FairShare[str] = FairShare(7, credit=0)
    for waiter in ["k1", "k2", "k3", "k4", "o1", "o2"]:
        user = {"k": "u", "o": None}[waiter[0]]
        fair.put(waiter[0], waiter, "v" if waiter == "k4" else user)
    fair.put("k", "k5", "w")
    assert (fair.ahead("k"), fair.ahead("k", "u"), fair.ahead("k", "new"), fair.ahead("o", "u")) == (5, 5, 3, 2)
    assert fair.crowded("k", "new") == ("k", "k3")
    assert fair.crowded("k", "u") is None
    taken = []
    while (waiter := fair.head()) is not None:
        fair.remove(waiter[0], waiter)
        fair.charge(waiter[0], 1000.0)
        taken.append(waiter)
    assert taken == ["k1", "o1", "k4", "o2", "k5", "k2", "k3"]


async def test_users_of_a_key_take_turns_at_the_engine(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """One who floods does not hold up the next; who it is reaches neither the engine nor the log."""
    key = new_key("app", users_header=HEADER)
    backend = {"max_inflight": 1, "fair": {"reserve": 0}, "forward_headers": [HEADER, "x-other"]}
    running = await gateway(fake_vllm, backend=backend, keys=(key,))
    fair = running.backend().fair
    fake_vllm.default = (Send(json_answer({})),)
    fake_vllm.play(Hang())
    tasks = []
    for number, user in enumerate(("alice", "alice", "alice", "alice", "bob", None)):
        client = await running.client()
        client.key = key.text
        headers = {"x-other": "yes"} | ({} if user is None else {HEADER: user})
        tasks.append(asyncio.create_task(client.post({"model": "m", "messages": [], "n": number + 1}, headers=headers)))
        await until(lambda number=number: len(fake_vllm.posts) + fair.length == number + 1)  # type: ignore[misc]
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [post.json["n"] for post in fake_vllm.posts] == [1, 2, 5, 6, 3, 4]
    for post in fake_vllm.posts:
        assert post.headers["x-other"] == "yes"
        assert HEADER.lower() not in {name.lower() for name in post.headers}
    assert "alice" not in str(running.log_lines())
