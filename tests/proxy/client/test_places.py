"""aiaas.proxy.client.places: which connection ends for a new one, and the limits on all of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from aiaas.config.memory import connection_memory, memory_budget
from aiaas.errors import UpstreamError
from aiaas.proxy.client.places import HEAD_FACTOR, Guest, Places
from tests.proxy.conftest import config_of, plan_of


class Someone:
    """An occupant whose state is set by hand."""

    def __init__(self, last_used: float = 0.0) -> None:
        self.is_idle = True
        self.is_ending = False
        self.last_used = last_used


class Hall:
    """Places whose guests record when they are ended."""

    def __init__(self, **server: Any) -> None:
        self.reasons: Counter[str] = Counter()
        self.ended: list[str] = []
        plan = plan_of(config_of(["http://vllm"], {}, {"server": {"max_connections": 16, **server}}))
        self.places = Places(plan.server, lambda reason: self.reasons.update([reason]))

    def come(self, name: str, address: str | None = None, *, member: bool = False, used: float = 0.0) -> Guest:
        """A guest that must get in."""
        guest = self.places.enter(address, lambda: self.ended.append(name))
        assert guest is not None, name
        guest.occupant = Someone(used)
        if member:
            self.places.welcome(guest)
        assert guest.is_stranger is not member
        return guest


def busy(guest: Guest) -> Guest:
    """A guest whose request is being answered."""
    assert isinstance(guest.occupant, Someone)
    guest.occupant.is_idle = False
    return guest


def test_the_oldest_stranger_ends_for_a_new_connection() -> None:
    """A new one always gets in; members stay."""
    hall = Hall()
    hall.come("member", member=True)
    for number in range(20):
        hall.come(f"stranger {number}")
    assert hall.ended == [f"stranger {number}" for number in range(5)]
    assert (len(hall.places), hall.reasons["evicted"]) == (16, 5)


def test_a_stranger_that_is_being_answered_does_not_end() -> None:
    """Its key may still be under examination. A stranger whose last answer is written may end."""
    hall = Hall()
    answered = busy(hall.come("answered"))
    ending = busy(hall.come("ending"))
    assert isinstance(ending.occupant, Someone)
    ending.occupant.is_ending = True
    for number in range(16):
        hall.come(f"stranger {number}")
    assert hall.ended == ["ending", "stranger 0"]
    assert not answered.gone


def test_a_member_whose_answer_is_being_written_does_not_end() -> None:
    """The gateway reads nothing more from it, but its client has not got the answer's end yet."""
    hall = Hall()
    ending = busy(hall.come("ending", member=True))
    assert isinstance(ending.occupant, Someone)
    ending.occupant.is_ending = True
    for number in range(15):
        busy(hall.come(f"busy {number}"))
    assert hall.places.enter(None, lambda: None) is None
    assert hall.ended == []


def test_a_handshake_may_end() -> None:
    """A handshake has no occupant yet."""
    hall = Hall()
    hall.come("handshake").occupant = None
    for number in range(16):
        hall.come(f"stranger {number}")
    assert hall.ended == ["handshake"]


def test_longest_idle_member_ends_where_no_stranger_is_left() -> None:
    """Members that are being answered stay, however old."""
    hall = Hall()
    busy(hall.come("busy", member=True, used=0.0))
    for number, used in enumerate((7.0, 3.0, 5.0)):
        hall.come(f"member {number}", member=True, used=used)
    for number in range(12):
        busy(hall.come(f"asking {number}"))
    hall.come("new")
    assert hall.ended == ["member 1"]


def test_members_leave_places_to_strangers() -> None:
    """Beyond that an idle member ends, and without an idle one the request is refused: probes still get in."""
    hall = Hall()
    members = [hall.come(f"member {number}", member=True, used=float(number)) for number in range(8)]
    hall.come("ninth", member=True, used=9.0)
    assert hall.ended == ["member 0"]
    for guest in members[1:]:
        busy(guest)
    busy(hall.come("tenth", member=True, used=10.0))
    assert hall.ended == ["member 0", "ninth"]
    refused = hall.come("probe")
    with pytest.raises(UpstreamError) as caught:
        hall.places.welcome(refused)
    assert (caught.value.status, caught.value.code, refused.is_stranger) == (503, "overloaded", True)
    assert caught.value.headers == (("retry-after", "2"),)
    for number in range(100):
        hall.come(f"probe {number}")
    assert hall.reasons["full"] == 0


def test_accepted_connections_are_counted_and_refused_ones_not() -> None:
    """A refusal has a counter of its own."""
    hall = Hall(max_connections_per_address=2)
    for name in ("a", "b"):
        hall.come(name, "1.2.3.4").leave()
    hall.come("c", "1.2.3.4")
    hall.come("d", "1.2.3.4")
    assert hall.places.enter("1.2.3.4", lambda: None) is None
    assert hall.places.accepted == 4


def test_a_connection_is_refused_where_all_are_being_answered() -> None:
    """No connection may end for it."""
    hall = Hall()
    for number in range(16):
        busy(hall.come(f"busy {number}"))
    assert hall.places.enter(None, lambda: None) is None
    assert (hall.ended, hall.reasons) == ([], {"full": 1})


def test_connection_is_refused_once_bodies_use_up_the_memory() -> None:
    """A refused connection uses no memory and no place."""
    hall = Hall()
    assert hall.places.hold(hall.places.most_bytes - hall.places.cost + 1)
    before = hall.places.held
    assert hall.places.enter("192.0.2.1", lambda: None) is None
    assert (hall.reasons, len(hall.places), hall.places.held) == ({"full": 1}, 0, before)
    hall.places.give_back(1)
    assert hall.places.enter("192.0.2.1", lambda: None) is not None
    assert hall.places.held == hall.places.most_bytes


def test_a_connection_that_has_left_is_not_ended_again() -> None:
    """Its place keeps no reference to it either."""
    hall = Hall()
    guest = hall.come("left")
    guest.leave()
    guest.end()
    assert (hall.ended, guest.occupant) == ([], None)


def test_addresses_are_forgotten_with_their_last_connection() -> None:
    """Otherwise each address that ever came would stay; without a limit any number of connections comes from one."""
    hall = Hall()
    guests = [hall.come(f"{number}", f"192.0.2.{number % 5}") for number in range(16)]
    assert len(hall.places._by_address) == 5
    for guest in guests:
        guest.leave()
    assert hall.places._by_address == {}


def test_one_connection_for_each_address() -> None:
    """The smallest limit."""
    hall = Hall(max_connections_per_address=1)
    guest = hall.come("first", "192.0.2.1")
    assert hall.places.enter("192.0.2.1", lambda: None) is None
    guest.leave()
    hall.come("second", "192.0.2.1")


def test_an_address_has_its_own_bound() -> None:
    """Other addresses do not notice, and a connection that leaves makes room."""
    hall = Hall(max_connections_per_address=2)
    first = hall.come("first", "192.0.2.1")
    hall.come("second", "192.0.2.1")
    assert hall.places.enter("192.0.2.1", lambda: None) is None
    hall.come("other", "192.0.2.2")
    first.leave()
    first.leave()
    hall.come("third", "192.0.2.1")
    assert hall.places.enter("192.0.2.1", lambda: None) is None
    assert (hall.ended, hall.reasons) == ([], {"address": 2})


def test_heads_count_in_the_budget_until_they_are_whole() -> None:
    """And until the connection ends."""
    hall = Hall()
    places = hall.places
    guest = hall.come("slow")
    assert guest.hold_head(1000)
    assert guest.hold_head(1500)
    assert places.held == places.cost + 1500 * HEAD_FACTOR
    guest.drop_head()
    assert places.held == places.cost
    assert guest.hold_head(1000)
    assert places.held == places.cost + 1000 * HEAD_FACTOR
    assert not guest.hold_head(places.most_bytes)
    assert places.held == places.cost + 1000 * HEAD_FACTOR
    guest.leave()
    guest.drop_head()
    assert places.held == 0
    assert not guest.hold(1)


def test_strangers_end_where_the_budget_is_spent() -> None:
    """Oldest first, until the new bytes fit; bodies count as well."""
    hall = Hall()
    places = hall.places
    guests = [hall.come(f"slow {number}") for number in range(4)]
    for guest in guests:
        assert guest.hold((places.most_bytes - 4 * places.cost) // 4)
    assert guests[3].hold(1000)
    assert hall.ended == ["slow 0"]
    assert places.hold(places.most_bytes // 2)
    assert hall.ended == ["slow 0", "slow 1", "slow 2"]
    assert places.held <= places.most_bytes


def test_a_connection_does_not_end_for_itself() -> None:
    """The connection cannot take more bytes; those that it has are counted until it leaves."""
    hall = Hall()
    guest = hall.come("alone")
    assert not guest.hold(hall.places.most_bytes)
    assert (hall.ended, hall.places.held) == ([], hall.places.cost)


def test_a_reload_changes_the_bounds() -> None:
    """The limit on descriptors bounds a new value."""
    hall = Hall()
    larger = plan_of(config_of(["http://vllm"], {}, {"server": {"max_connections": 100}})).server
    hall.places.follow(larger)
    assert hall.places.most == 100
    hall.places.bound_by(40)
    assert (hall.places.most, hall.places.reserved) == (40, 8)
    hall.places.follow(larger)
    assert repr(hall.places) == f"<Places 0 of 40, 0 of {hall.places.most_bytes} bytes>"


@pytest.mark.parametrize(
    ("descriptors", "most", "reserved"),
    [(0, 2, 1), (3, 3, 2), (9, 9, 8), (128, 128, 8), (160, 160, 10), (9999, 1600, 100)],
)
def test_members_never_have_all_places_nor_none(descriptors: int, most: int, reserved: int) -> None:
    """However few places there are: a member and a stranger each get in."""
    hall = Hall(max_connections=1600)
    hall.places.bound_by(descriptors)
    assert (hall.places.most, hall.places.reserved) == (most, reserved)


def test_tls_makes_each_connection_dearer() -> None:
    """TLS state is counted, so the budget is larger as well."""
    plain, secure = Hall().places, Hall(tls={"cert_file": "c", "key_file": "k"}).places
    assert (plain.cost, secure.cost) == (connection_memory(tls=False), connection_memory(tls=True))
    size = plain._server.max_body_size
    assert plain.most_bytes == memory_budget(size, 16, tls=False)
    assert secure.most_bytes == memory_budget(size, 16, tls=True) > plain.most_bytes
