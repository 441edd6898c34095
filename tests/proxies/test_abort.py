"""vLLM learns at once that a client has left, in whatever phase its request is."""

from __future__ import annotations

import asyncio
import statistics
from typing import Final

import pytest

from tests.fakes.vllm import STREAM_HEAD, Hang, Received, Send, Step, chunk
from tests.proxies.client import Connection, Target, chat
from tests.proxies.conftest import Site, StartProxy
from tests.proxies.servers import Proxy
from tests.proxies.upstream import Stamped, event
from tests.waiting import until

pytestmark = [pytest.mark.proxies, pytest.mark.asyncio(loop_scope="session")]

CLIENTS: Final = 10
P50: Final = 0.1  # seconds
LONGEST: Final = 1.0  # the machine may be busy
UNNOTICED: Final = 1.0
# The engine's doing when the client leaves. A silent one is harder to stop than one whose writes fail.
PHASES: Final[dict[str, tuple[bool, tuple[Step, ...]]]] = {
    "before the head": (True, (Hang(),)),
    "before the first token": (True, (Send(STREAM_HEAD), Hang())),
    "in the stream, in a pause": (True, (Send(STREAM_HEAD + chunk(event("a"))), Hang())),
    "in the stream, between events": (True, (Stamped(1000, 0.02), Hang())),
    "without a stream": (False, (Hang(),)),
}


async def left(site: Site, target: Target, phase: str, *, politely: bool) -> tuple[float, Received]:
    """When a client left, in the loop's time, and its request at the engine."""
    streams, steps = PHASES[phase]
    before = len(site.engine.posts)
    site.engine.play(*steps)
    connection = await Connection.open(target)
    await connection.send(chat(stream=streams))
    await until(lambda: len(site.engine.posts) > before)
    if phase.startswith("in the stream"):
        async with asyncio.timeout(10):
            assert b" 200 " in await connection.reader.readline()
            await connection.reader.readuntil(b"\n\n")
    await asyncio.sleep(0.05)  # so that what was written has passed
    now = asyncio.get_running_loop().time()
    if politely:
        await connection.say_goodbye()
    else:
        connection.abort()
    return now, site.engine.posts[before]


@pytest.mark.parametrize("phase", PHASES)
async def test_the_engine_sees_a_client_leave(site: Site, proxy: Proxy, phase: str) -> None:
    """Half of the clients are gone for vLLM within 100 ms, by TLS's goodbye or without, and all of them soon."""
    found = []
    for number in range(CLIENTS):
        began, request = await left(site, site.through(proxy), phase, politely=number % 2 == 0)
        await until(request.gone.is_set, 10)
        assert request.gone_at is not None
        found.append(request.gone_at - began)
    p50, longest = statistics.median(found), max(found)
    print(f"\n{proxy.name}, {phase}: p50 {p50 * 1000:.1f} ms, longest {longest * 1000:.1f} ms")
    assert p50 < P50
    assert longest < LONGEST


@pytest.mark.parametrize("phase", ["before the head", "without a stream"])
@pytest.mark.parametrize(
    ("name", "option"), [("haproxytech", "abortonclose"), ("haproxy-ingress", "config-backend"), ("openshift", None)]
)
async def test_haproxy_hides_a_client_that_leaves_early(
    site: Site, start_proxy: StartProxy, name: str, option: str | None, phase: str
) -> None:
    """Without abortonclose vLLM goes on generating for nobody. (In the backend alone it lets some clients be noticed;
    in `defaults`, where the notes of the rendering want it, all of them.)"""
    running = start_proxy(name, site.port, without=(option,) if option else (), noted=False)
    found = [await left(site, site.through(running), phase, politely=politely) for politely in (True, False)]
    await asyncio.sleep(UNNOTICED)
    assert [request.gone.is_set() for _, request in found] == [False, False]
