"""The servers of a store: slots, redirects, answers of sentinels and nodes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aiaas.limits.connection import StoreAwayError
from aiaas.limits.redis_url import StorePlace, parse_redis_url
from aiaas.limits.resp import RedisReplyError, Reply
from aiaas.limits.topology import Redirect, SlotRange, find_place, find_primary, redirect_of, slot_of, slot_ranges
from tests.fakes.redis import RedisServer, Sentinels

HERE = StorePlace("10.0.0.1", 6379)


def test_a_slot_is_crc16_of_the_tag() -> None:
    """The check value of the cluster specification; test_servers.py asks a real node for others."""
    assert slot_of("123456789") == 0x31C3


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param("MOVED 3999 10.0.0.2:6381", Redirect(3999, StorePlace("10.0.0.2", 6381), False), id="moved"),
        pytest.param("ASK 3999 redis-2.redis:6381", Redirect(3999, StorePlace("redis-2.redis", 6381), True), id="ask"),
        pytest.param("MOVED 1 2001:db8::1:6381", Redirect(1, StorePlace("2001:db8::1", 6381), False), id="IPv6"),
        pytest.param("MOVED 1 :6381", Redirect(1, StorePlace("10.0.0.1", 6381), False), id="the node that answered"),
        pytest.param("TRYAGAIN Multiple keys request", None, id="another error"),
        pytest.param("MOVED x", None, id="nonsense"),
    ],
)
def test_a_redirect_names_slot_and_node(error: str, expected: Redirect | None) -> None:
    """A node without a name of its own means itself."""
    assert redirect_of(RedisReplyError(error), HERE) == expected


def test_slots_are_those_of_the_primaries() -> None:
    """The first node of each row; an empty or unknown name is that of the node that answered."""
    rows: Reply = [
        [0, 99, [b"10.0.0.2", 6379, b"id"], [b"10.0.0.3", 6379, b"replica"]],
        [100, 199, [b"", 6380, b"id"]],
        [200, 299, [None, 6381, b"id", []]],
        [300, 16383, [b"?", 6382, b"id"]],
    ]
    assert slot_ranges(rows, HERE) == [
        SlotRange(0, 99, StorePlace("10.0.0.2", 6379)),
        SlotRange(100, 199, StorePlace("10.0.0.1", 6380)),
        SlotRange(200, 299, StorePlace("10.0.0.1", 6381)),
        SlotRange(300, 16383, StorePlace("10.0.0.1", 6382)),
    ]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        pytest.param([], "not know a node with slots", id="an empty cluster"),
        pytest.param(b"OK", "not know a node with slots", id="no list"),
        pytest.param([[0, 99]], "an invalid answer", id="no node"),
        pytest.param([[5, 4, [b"h", 1]]], "an invalid answer", id="backwards"),
        pytest.param([[0, 16384, [b"h", 1]]], "an invalid answer", id="a slot too many"),
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(reply: Reply, said: str) -> None:
    """With the node's address."""
    with pytest.raises(StoreAwayError, match=rf"10\.0\.0\.1:6379 .*{said}"):
        slot_ranges(reply, HERE)


async def test_a_primary_is_found_where_one_sentinel_answers(tmp_path: Path) -> None:
    """Sentinels that are away are skipped; the error for an unknown name has each sentinel's answer."""
    sentinels = Sentinels(tmp_path)
    try:
        await asyncio.to_thread(sentinels.start)
        port = sentinels.sentinel.port
        url = parse_redis_url(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/{sentinels.NAME}")
        assert await find_primary(url, None) == StorePlace("127.0.0.1", sentinels.primary.port)
        other = parse_redis_url(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/other")
        with pytest.raises(
            StoreAwayError, match=rf"127\.0\.0\.1:1.*; the sentinel 127\.0\.0\.1:{port} does not know a primary"
        ):
            await find_primary(other, None)
    finally:
        sentinels.end()


async def test_server_without_cluster_mode_is_reported(redis_server: RedisServer) -> None:
    """With its own words and the address."""
    url = parse_redis_url(f"redis+cluster://127.0.0.1:{redis_server.port}")
    with pytest.raises(StoreAwayError, match="cluster support disabled"):
        await find_place(url, None, "alice")
