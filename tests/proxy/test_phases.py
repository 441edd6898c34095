"""Each way in which a connection can end, in each phase of its request. Raw bytes, both loops, some under TLS."""

from __future__ import annotations

import asyncio
import gc
import ssl
from pathlib import Path

import pytest

from aiaas.proxy.client.connection import ClientConnection
from tests.certificate import self_signed
from tests.fakes.vllm import STREAM_HEAD, FakeVllm, Send, Wait, chunk, json_answer, token_event
from tests.proxy.conftest import Raw, Running, StartGateway
from tests.proxy.loops import both_loops
from tests.waiting import until

BODY = {"model": "m", "messages": []}


event_loop_policy = both_loops


@pytest.fixture
async def running(gateway: StartGateway, fake_vllm: FakeVllm) -> Running:
    """A gateway without TLS."""
    return await gateway(fake_vllm)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and its key."""
    return self_signed(tmp_path_factory.mktemp("tls"), "DNS:localhost")


async def drain(running: Running) -> None:
    """As the server does at the deadline."""
    running.gateway.draining = True
    running.gateway.refuse()
    running.gateway.end_requests()
    await running.open_side.shutdown(0.1)


PHASES = (
    "idle", "half a head", "half a body", "first on a connection", "waiting", "waiting in a task", "streaming",
    "one behind", "half a body behind", "refusal behind",
)  # fmt: skip


async def brought_to(running: Running, fake: FakeVllm, phase: str, *, tls: ssl.SSLContext | None = None) -> Raw:
    """A client whose connection is in this phase; nothing of its answer comes by itself."""
    client = await running.client(tls=tls)
    first = client.request(BODY | {"stream": True})
    if phase == "idle":
        assert (await client.get("/health")).status == 200
        return client
    if phase == "half a head":
        client.send(first[:30])
        await until(lambda: any(c._incoming.head.size for c in running.open_side.connections))
        return client
    if phase == "half a body":
        client.send(first[:-5])
        await until(lambda: any(c.handler is not None for c in running.open_side.connections))
        return client
    if phase != "first on a connection":  # an idle connection to the backend, so that no task is needed
        fake.play(Send(json_answer({"id": 0})))
        assert (await client.post(BODY)).status == 200
    begun = [Send(STREAM_HEAD + chunk(token_event()))] if phase == "streaming" else []
    fake.play(*begun, Wait(asyncio.Event()))
    posts = len(fake.posts)
    if phase == "waiting in a task":
        client.send(first[:-5])
        await until(lambda: any(c.handler is not None for c in running.open_side.connections))
        client.send(first[-5:])
    else:
        behind = {"one behind": first, "half a body behind": first[:-5], "refusal behind": b"\x00\r\n\r\n"}
        client.send(first + behind.get(phase, b""))
    await until(lambda: len(fake.posts) > posts)
    if phase == "streaming":
        assert (await client.head()).status == 200
        assert await client.chunk() == token_event()
    (connection,) = running.open_side.connections
    assert connection.handler is not None
    assert connection.handler.has_task == (phase in ("first on a connection", "waiting in a task"))
    return client


@pytest.mark.parametrize("leave", ["close", "half_close", "reset"])
@pytest.mark.parametrize("phase", PHASES)
async def test_client_that_leaves_in_any_phase_leaves_nothing(
    running: Running, fake_vllm: FakeVllm, phase: str, leave: str
) -> None:
    """The request upstream ends with it, and what waited behind it is never begun."""
    client = await brought_to(running, fake_vllm, phase)
    posts = len(fake_vllm.posts)
    getattr(client, leave)()
    await until(lambda: not running.open_side.connections)
    await running.quiet()
    for post in fake_vllm.posts[1:]:
        await asyncio.wait_for(post.gone.wait(), 5)
    assert len(fake_vllm.posts) == posts
    assert running.metric("aiaas_requests_in_flight") == 0
    assert not running.log_lines("library")


@pytest.mark.parametrize("how", ["deadline", "shutdown"])
@pytest.mark.parametrize("phase", PHASES)
async def test_drain_in_any_phase_ends_each_connection(
    running: Running, fake_vllm: FakeVllm, phase: str, how: str
) -> None:
    """An answer that has not begun is a 503, one that has ends with an event; then all connections are closed."""
    client = await brought_to(running, fake_vllm, phase)
    async with asyncio.timeout(5):
        await (drain(running) if how == "deadline" else running.open_side.shutdown(0.1))
        rest = await client.ended()
        await until(lambda: not running.open_side.connections)
    await running.quiet()
    if phase in ("idle", "half a head"):
        assert rest == b""
    elif phase == "streaming":
        assert rest.count(b'"draining"') == (how == "deadline")
    elif how == "deadline":
        assert rest.startswith(b"HTTP/1.1 503 ")
        assert rest.count(b"HTTP/1.1") == 1
        assert b"connection: close" in rest
    assert running.metric("aiaas_requests_in_flight") == 0


@pytest.mark.parametrize("phase", PHASES)
async def test_reload_in_any_phase_leaves_the_request_alone(running: Running, fake_vllm: FakeVllm, phase: str) -> None:
    """It ends under the Plan that it began with, and the connection serves the next one."""
    client = await brought_to(running, fake_vllm, phase)
    running.gateway.replace_plan(running.gateway.active.plan)
    (connection,) = running.open_side.connections
    if phase == "idle":
        assert (await client.get("/health")).status == 200
    elif connection.handler is not None:
        assert running.gateway.in_flight == 1
        connection.cancel()
        await client.ended()
    await running.quiet()


# -- what is left --------------------------------------------------------------------------------------------------


def living() -> int:
    """The gateway's connections in memory."""
    return sum(type(thing) is ClientConnection for thing in gc.get_objects())


async def assert_nothing_lives(running: Running) -> None:
    """All connections have ended, and the counts of their references have freed them."""
    await until(lambda: not running.open_side.connections)
    await running.quiet()
    for _ in range(10):
        await asyncio.sleep(0)
    assert living() == 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("leave", ["close", "reset", "drain"])
@pytest.mark.parametrize("phase", PHASES)
async def test_end_in_any_phase_leaves_no_cycle(
    gateway: StartGateway, fake_vllm: FakeVllm, certificate: tuple[Path, Path], phase: str, leave: str, tls: bool
) -> None:
    """A connection's memory, and its TLS buffers with it, do not wait for the collector."""
    cert, key = certificate
    running = await gateway(fake_vllm, server={"tls": {"cert_file": str(cert), "key_file": str(key)}} if tls else {})
    trusting = ssl.create_default_context(cafile=cert) if tls else None
    client = await brought_to(running, fake_vllm, phase, tls=trusting)
    gc.collect()
    gc.disable()
    try:
        assert living() == 1
        if leave == "drain":
            await drain(running)
        else:
            getattr(client, leave)()
        await assert_nothing_lives(running)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "answered",
    ["wrong key", "no such path", "invalid JSON", "broken head", "slow head", "broken chunk", "502", "unread body"],
)
async def test_refused_request_leaves_no_cycle(gateway: StartGateway, fake_vllm: FakeVllm, answered: str) -> None:
    """The tracebacks of errors refer to frames, and these to the connection."""
    running = await gateway(fake_vllm, server={"header_timeout": "50ms" if answered == "slow head" else "5s"})
    gc.collect()
    gc.disable()
    try:
        client = await running.client()
        fake_vllm.play(Send(b"rubbish"))
        chunked = client.request(b"", headers={"Transfer-Encoding": "chunked"}).replace(b"Content-Length: 0\r\n", b"")
        client.send(
            {
                "wrong key": client.request(BODY, key="sk-wrong"),
                "no such path": client.request(BODY, path="/none"),
                "invalid JSON": client.request(b"{"),
                "broken head": b"\x00\r\n\r\n",
                "slow head": b"GET",
                "broken chunk": chunked + b"zz\r\n",
                "502": client.request(BODY),
                "unread body": client.request(BODY, path="/health")[:-5],
            }[answered]
        )
        assert (await client.answer()).status >= 400
        client.reset()
        await assert_nothing_lives(running)
    finally:
        gc.enable()
