"""Requests that a client sends before it has the answer to the one before. Raw bytes, both loops."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from tests.fakes.vllm import FakeVllm, Send, Wait, json_answer
from tests.proxy.conftest import CHAT, Raw, Running, StartGateway
from tests.waiting import until

BODY = {"model": "m", "messages": []}


@pytest.fixture(
    scope="module", params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"]
)
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Each test on both loops: they differ in how many bytes one read brings."""
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


@pytest.fixture
async def running(gateway: StartGateway, fake_vllm: FakeVllm) -> Running:
    """A gateway that takes small heads only."""
    return await gateway(fake_vllm, server={"max_header_size": "4KiB"})


def chunked(client: Raw, *chunks: bytes, headers: str = "") -> bytes:
    """A chat request whose body comes in the given raw chunks."""
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.key}\r\n"
        f"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"
    )
    return head.encode() + b"".join(chunks)


async def test_second_request_with_half_a_body_is_answered(running: Running, fake_vllm: FakeVllm) -> None:
    """The end of the first answer does not end the connection while the second request's body is still arriving."""
    finish = asyncio.Event()
    fake_vllm.play(Wait(finish), Send(json_answer({"id": 1})))
    fake_vllm.play(Send(json_answer({"id": 2})))
    client = await running.client()
    second = client.request(BODY)
    client.send(client.request(BODY) + second[:-5])
    await until(lambda: fake_vllm.posts)
    finish.set()
    assert (await client.answer()).json["id"] == 1
    client.send(second[-5:])
    assert (await client.answer()).json["id"] == 2
    assert (await client.get("/health")).status == 200


async def test_bytes_behind_a_last_second_request_leave_it_answered(running: Running, fake_vllm: FakeVllm) -> None:
    """The second request asks for the close; more bytes behind it cost it nothing."""
    finish = asyncio.Event()
    fake_vllm.play(Wait(finish), Send(json_answer({"id": 1})))
    fake_vllm.play(Send(json_answer({"id": 2})))
    client = await running.client()
    client.send(client.request(BODY) + client.request(BODY, headers={"Connection": "close"}) + b"rubbish")
    await until(lambda: fake_vllm.posts)
    finish.set()
    assert (await client.answer()).json["id"] == 1
    assert (await client.answer()).json["id"] == 2
    assert await client.ended() == b""


async def test_broken_second_body_leaves_the_first_answer(running: Running, fake_vllm: FakeVllm) -> None:
    """The end of the first body and a second, broken one come in one read: 200, then 400."""
    client = await running.client()
    first = client.request(BODY)
    client.send(first[:-5])
    await until(lambda: any(c.handler is not None for c in running.open_side.connections))
    client.send(first[-5:] + chunked(client, b"zz\r\n"))
    assert (await client.answer()).status == 200
    assert (await client.answer()).status == 400
    assert await client.ended() == b""
    assert len(fake_vllm.posts) == 1


async def test_broken_body_behind_health_is_a_400(running: Running) -> None:
    client = await running.client()
    client.send(client.request(None, path="/health", method="GET") + chunked(client, b"zz\r\n"))
    assert (await client.answer()).status == 200
    assert (await client.answer()).status == 400
    assert await client.ended() == b""


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/none"])
async def test_bytes_behind_a_last_request_are_read_to_the_end(running: Running, path: str) -> None:
    """Also where the answer is given inside of the read: a close would be a reset, which may destroy the answer."""
    client = await running.client()
    client.send(client.request(None, path=path, method="GET", headers={"Connection": "close"}) + b"more")
    await until(lambda: any(c._lingering is not None for c in running.open_side.connections), 1)
    assert (await client.answer()).header("connection") == "close"
    assert await client.ended() == b""
