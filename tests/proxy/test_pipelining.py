"""Requests that a client sends before it has the answer to the one before. Raw bytes, both loops."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
from collections.abc import Sequence

import pytest

from aiaas.proxy.client.connection import WRITE_HIGH_WATER, ClientConnection
from tests.fakes.vllm import FakeVllm, Send, Wait, json_answer
from tests.proxy.conftest import Got, Raw, Running, StartGateway, chunked
from tests.proxy.loops import both_loops
from tests.waiting import until

BODY = {"model": "m", "messages": []}


# Each test on both loops: they differ in how many bytes one read brings.
event_loop_policy = both_loops


@pytest.fixture
async def running(gateway: StartGateway, fake_vllm: FakeVllm) -> Running:
    """A gateway that takes small heads only."""
    return await gateway(fake_vllm, server={"max_header_size": "4KiB"})


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
    """The body's error is answered in its turn."""
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


# -- every order ---------------------------------------------------------------------------------------------------

KINDS = ("health", "models", "unknown", "chat", "bad host", "bad coding")
STATUS = {"health": 200, "models": 200, "unknown": 404, "chat": 200, "bad host": 400, "bad coding": 501}
REFUSED = ("bad host", "bad coding")


def request_of(client: Raw, kind: str) -> bytes:
    """The bytes of one request."""
    if kind == "chat":
        return client.request(BODY)
    if kind == "bad host":
        return client.request(None, path="/health", method="GET", headers={"Host": "a@b"})
    if kind == "bad coding":
        return chunked(client, b"0\r\n\r\n").replace(b"chunked", b"gzip, chunked")
    path = {"health": "/health", "models": "/v1/models", "unknown": "/none"}[kind]
    return client.request(None, path=path, method="GET")


def served(kind: str, got: Got) -> bool:
    """Whether `got` is the answer to a request of this kind."""
    if got.status != STATUS[kind] or not got.whole:
        return False
    marks = {"health": b'"ok"', "models": b'"list"', "chat": b'"fake"', "unknown": b'"not_found"'}
    return kind in REFUSED or marks[kind] in got.body


async def answers_to(running: Running, kinds: Sequence[str], *, one_write: bool) -> list[Got]:
    """All answers of a connection to these requests."""
    client = await running.client()
    data = b"".join(request_of(client, kind) for kind in kinds)
    if one_write:
        client.send(data)
    else:
        for at in range(len(data)):
            client.send(data[at : at + 1])
            if at % 7 == 0:
                await asyncio.sleep(0)
    answers = []
    while len(answers) < len(kinds):
        answers.append(await client.answer())
        if answers[-1].header("connection") == "close":
            assert await client.ended() == b""
            break
    client.reset()
    return answers


def check_order(kinds: Sequence[str], answers: Sequence[Got], *, one_write: bool) -> None:
    """Each request has its answer, up to the first refusal, which is the last answer."""
    for at, (kind, got) in enumerate(zip(kinds, answers, strict=False)):
        last = at == len(answers) - 1
        if kind not in REFUSED and last and at > 1 and b"pipelined" in got.body:
            assert not one_write or at == 2
            return
        assert served(kind, got), (kinds, at, got)
        assert last or kind not in REFUSED, (kinds, at)
    refused = [at for at, kind in enumerate(kinds) if kind in REFUSED]
    assert len(answers) == (refused[0] + 1 if refused else len(kinds)), (kinds, answers)
    assert not one_write or len(answers) <= 3


@pytest.mark.parametrize("one_write", [True, False], ids=["one write", "single bytes"])
@pytest.mark.parametrize("number", [1, 2, 3])
async def test_requests_in_every_order_are_answered_in_turn(running: Running, number: int, one_write: bool) -> None:
    """Whether an answer is given inside of the read, behind a wait, or is a refusal."""
    orders = list(itertools.product(KINDS, repeat=number))
    for kinds in orders if one_write else random.Random(number).sample(orders, min(len(orders), 40)):
        check_order(kinds, await answers_to(running, kinds, one_write=one_write), one_write=one_write)
    await running.quiet()
    assert not running.log_lines("library")


@pytest.mark.parametrize("one_write", [True, False], ids=["one write", "single bytes"])
async def test_fifty_pipelined_requests_are_answered_in_turn(running: Running, one_write: bool) -> None:
    """Up to the one that is refused."""
    choose = random.Random(50)
    for _ in range(20 if one_write else 3):
        kinds = choose.choices(KINDS[:4] if choose.random() < 0.7 else KINDS, k=50)
        check_order(kinds, await answers_to(running, kinds, one_write=one_write), one_write=one_write)
    await running.quiet()


# -- a client that does not read -----------------------------------------------------------------------------------


async def test_client_that_never_reads_costs_bounded_memory(running: Running) -> None:
    """It goes on sending: its answers stop at the bound of the buffer, then it is refused behind them."""
    client = await running.client(receive_buffer=2048)
    request = client.request(None, path="/v1/models", method="GET")
    (connection,) = await connections(running, 1)
    assert connection.transport is not None
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    sent = 0
    while not connection.writing_paused:
        connection.last_used = 0.0
        client.send(request)
        sent += 1
        await until(lambda: connection.last_used)
    for _ in range(2):
        client.send(request)
    sent += 2
    await until(lambda: connection._refused)
    assert connection.transport.get_write_buffer_size() < WRITE_HIGH_WATER + 4096
    assert len(connection._queue) == 2
    for _ in range(50):
        client.send(request * 100)
        await asyncio.sleep(0)
    assert len(connection._queue) == 2
    answers = []
    while not answers or answers[-1].status == 200:
        answers.append(await client.answer())
    assert len(answers) <= sent
    assert (answers[-1].status, answers[-1].header("connection")) == (400, "close")
    assert await client.ended() == b""


async def connections(running: Running, number: int) -> list[ClientConnection]:
    """The gateway's connections, once it has `number` of them."""
    await until(lambda: len(running.open_side.connections) == number)
    return running.open_side.connections
