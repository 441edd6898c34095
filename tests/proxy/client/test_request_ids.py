"""aiaas.proxy.client.request_ids: ids that reveal nothing."""

from __future__ import annotations

import re

from aiaas.proxy.client.request_ids import BLOCK, ID_BYTES, RequestIds
from tests.fakes.vllm import FakeVllm
from tests.proxy.conftest import StartGateway


def test_ids_are_distinct_and_of_one_form() -> None:
    """Over several blocks of random bytes."""
    made = RequestIds()
    ids = [made.new() for _ in range(3 * BLOCK + 1)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[0-9a-f]{24}", one) for one in ids)


def test_ids_use_every_random_byte_once() -> None:
    """No counter, and no part that two ids share; a system call for each block."""
    block = bytes(number % 251 for number in range(ID_BYTES * BLOCK))
    drawn: list[int] = []

    def entropy(count: int) -> bytes:
        drawn.append(count)
        return block

    made = RequestIds(entropy)
    ids = {made.new() for _ in range(BLOCK)}
    assert drawn == [len(block)]
    assert ids == {block[at : at + ID_BYTES].hex() for at in range(0, len(block), ID_BYTES)}
    made.new()
    assert drawn == [len(block)] * 2


async def test_two_requests_have_nothing_in_common(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Two ids of one process once told how many requests had come between them."""
    running = await gateway(fake_vllm)
    client = await running.client()
    first, second = [(await client.get("/v1/models")).header("x-request-id") or "" for _ in range(2)]
    assert (len(first), len(second)) == (24, 24)
    assert abs(int(first, 16) - int(second, 16)) > 2**32
    assert first[:8] != second[:8]
