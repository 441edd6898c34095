"""aiaas.proxy.workers.channel: messages between two processes, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from types import MappingProxyType

import msgspec
import pytest

from aiaas.plan.model import EnginePlan
from aiaas.proxy.admin.port import Query
from aiaas.proxy.workers.channel import (
    Alive,
    Begin,
    Channel,
    Counted,
    Describe,
    Description,
    EngineHealth,
    EngineSuspected,
    Leaving,
    Message,
    Reload,
    Report,
    Serving,
    Stop,
)
from aiaas.proxy.workers.merge import MetricFamily, MetricSample

ENGINE = EnginePlan("simulator", "s", "s", ("--max-model-len", "8"), MappingProxyType({"A": "b"}), 8001, 30.0)
MESSAGES: list[Message] = [
    Begin(("aiaas.yaml", "prod.yaml"), ("text: é\n" * 100_000, "over"), ("text", ""), None),
    EngineHealth("vllm", False, "it died", None),
    EngineHealth("own", True, "it is healthy", ENGINE),
    Reload(),
    Report(),
    Describe(4, 2, "requests", Query(limit=7, key="alice")),
    Description(4, msgspec.Raw(msgspec.msgpack.encode({"a": 1}))),
    Stop(now=True),
    Serving(keys=3),
    EngineSuspected("vllm"),
    Alive(),
    Leaving(),
    Counted(
        [MetricFamily("a", "counter", "help", [MetricSample("a_total", {"le": "+Inf"}, float("inf"))])], asked=True
    ),
]


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Channel, socket.socket]]:
    """A channel, and the bare socket at its other end."""
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    channel = await Channel.open(one)
    yield channel, other
    other.close()
    await channel.close()


async def test_messages_arrive_whole_and_in_order(ends: tuple[Channel, socket.socket]) -> None:
    """Messages of any size; then comes the end."""
    ours, other = ends
    theirs = await Channel.open(other)
    for message in MESSAGES:
        ours.send(message)
    closing = asyncio.create_task(ours.close())
    assert [await theirs.receive() for _ in MESSAGES] == MESSAGES
    assert await theirs.receive() is None
    await closing
    await theirs.close()


async def test_an_end_that_takes_nothing_is_seen_and_holds_up_nobody(ends: tuple[Channel, socket.socket]) -> None:
    """A supervisor that hangs must not make its workers' memory grow."""
    ours, other = ends
    assert not ours.is_stuck
    ours.send(MESSAGES[0])
    assert ours.is_stuck
    while await asyncio.get_running_loop().sock_recv(other, 65536):
        if not ours.is_stuck:
            break
    assert not ours.is_stuck


@pytest.mark.parametrize("begun", [b"", b"\x00\x00", b"\x00\x00\x00\x10abc"], ids=["between", "in a length", "within"])
async def test_the_end_comes_also_in_the_middle_of_a_message(ends: tuple[Channel, socket.socket], begun: bytes) -> None:
    """The process was killed while it wrote; later messages to it go nowhere, without an error."""
    ours, other = ends
    other.send(begun)
    other.close()
    assert await ours.receive() is None
    for _ in range(10):
        ours.send(Reload())
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "body",
    [pytest.param(b"\xc1", id="no msgpack"), pytest.param(b"\x81\xa4type\xa7Counted", id="a field that is missing")],
)
async def test_nonsense_ends_the_channel(ends: tuple[Channel, socket.socket], body: bytes) -> None:
    """A bad message once ended the task that listens to a worker, and the supervisor waited for it for ever."""
    ours, other = ends
    other.send(len(body).to_bytes(4) + body)
    assert await ours.receive() is None
