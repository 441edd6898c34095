"""aiaas.proxy.upstream.kept_relay: a stream that may go on is relayed like any other, and keeps what its client has."""

from __future__ import annotations

import asyncio

import pytest

from aiaas.proxy.upstream.kept_relay import KeptRelay
from tests.fakes.vllm import DONE, LAST_CHUNK, STREAM_HEAD, Reset, Send, SendSlowly, Wait, chunk, error_stream_event
from tests.proxy.upstream.test_resume import (
    CHAT,
    PIECES,
    PROMPT,
    ROLE,
    WITH_USAGE,
    event,
    first,
    first_body,
    replicas,
    rest,
    resuming,
    usage,
    whole,
)
from tests.waiting import until

__all__ = ["replicas"]

WHOLE = STREAM_HEAD + b"".join(
    map(
        chunk,
        (event(ROLE), *(event({"content": piece}) for piece in PIECES), event({"content": ""}, "stop"),
         usage(PROMPT, len(PIECES)), DONE),
    )
) + LAST_CHUNK  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
@pytest.mark.parametrize("request_", [CHAT, WITH_USAGE], ids=["without usage", "with usage"])
async def test_bytes_are_those_of_a_stream_that_may_not_go_on(gateway, replicas, request_, size):
    """However they come."""
    bodies = []
    for resume in ("off", "near"):
        replicas[0].scripts.clear()
        replicas[0].play(SendSlowly(WHOLE, size))
        running = await resuming(gateway, replicas, resume=resume)
        bodies.append((await (await running.client()).post(request_)).body)
    assert bodies[0] == bodies[1]


async def test_error_event_that_comes_in_parts_is_held_back_too(gateway, replicas):
    """None of it reaches the client of an answer that goes on."""
    replicas[0].play(Send(first(PIECES[:9])), SendSlowly(chunk(error_stream_event()) + chunk(DONE) + LAST_CHUNK, 5))
    replicas[1].play(Send(rest(PIECES[9:], 9)))
    running = await resuming(gateway, replicas)
    assert (await (await running.client()).post(WITH_USAGE)).body == whole()


async def test_error_that_is_the_clients_own_is_not_a_death(gateway, replicas):
    """An error event below 500 goes through, and ends the stream."""
    wrong = error_stream_event("too long", 400)
    replicas[0].play(Send(first(PIECES[:9]) + chunk(wrong) + chunk(DONE) + LAST_CHUNK))
    running = await resuming(gateway, replicas)
    got = await (await running.client()).post(CHAT)
    assert got.body == first_body(PIECES[:9]) + wrong + DONE
    assert not replicas[1].posts


async def test_kept_text_is_what_the_client_has_and_is_freed(gateway, replicas):
    """Event for event while the stream flows; nothing is left behind its end."""
    go = asyncio.Event()
    many = ["x"] * 300
    replicas[0].play(Send(first(many)), Wait(go), Reset())
    running = await resuming(gateway, replicas, resume_wait="10ms")
    answering = asyncio.ensure_future((await running.client()).post(CHAT | {"n": 2}))
    await until(lambda: bool(running.gateway.live) and running.gateway.live[0].events == len(many))
    [relay] = [stream for endpoint in running.endpoints() for stream in endpoint.streams]
    assert isinstance(relay, KeptRelay)
    assert relay.relayed() == first_body(many)
    assert running.gateway.fleet.kept.used > 0
    go.set()
    await answering
    assert running.gateway.fleet.kept.used == 0


async def test_stream_moves_before_its_endpoint_goes(gateway, replicas):
    """As if the endpoint had died, but its engine hears that it need not go on."""
    replicas[0].play(Send(first(PIECES[:9])), Wait(asyncio.Event()))
    replicas[1].play(Send(rest(PIECES[9:], 9)))
    running = await resuming(gateway, replicas)
    answering = asyncio.ensure_future((await running.client()).post(WITH_USAGE))
    await until(lambda: bool(running.gateway.live) and running.gateway.live[0].events == 9)
    [relay] = [stream for endpoint in running.endpoints() for stream in endpoint.streams]
    assert isinstance(relay, KeptRelay)
    relay.move()
    assert (await answering).body == whole()
    assert replicas[0].posts[0].gone.is_set()


async def test_stream_that_has_just_begun_does_not_move(gateway, replicas):
    """It would end with an error event: better it ends where it is."""
    go = asyncio.Event()
    last = chunk(event({"content": ""}, "stop")) + chunk(DONE) + LAST_CHUNK
    replicas[0].play(Send(first(PIECES[:2])), Wait(go), Send(last))
    running = await resuming(gateway, replicas)
    answering = asyncio.ensure_future((await running.client()).post(CHAT))
    await until(lambda: bool(running.gateway.live) and running.gateway.live[0].events == 2)
    [relay] = [stream for endpoint in running.endpoints() for stream in endpoint.streams]
    assert isinstance(relay, KeptRelay)
    relay.move()
    go.set()
    assert (await answering).body.endswith(DONE)
