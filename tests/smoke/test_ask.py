"""Asking: one request, one `Seen`; a limit that passes is waited for."""

from __future__ import annotations

import json

import pytest

from aiaas.httpclient.target import parse_target
from aiaas.smoke.ask import Asker, SmokeSettings, wait_told
from aiaas.smoke.result import Seen
from tests.fakes.vllm import (
    STREAM_HEAD,
    Close,
    FakeVllm,
    Hang,
    Reset,
    Send,
    Sleep,
    chunk,
    json_answer,
    stream,
    token_event,
)


def refused(code: str = "rate_limit_exceeded", **headers: str) -> Seen:
    """A 429 answer."""
    body = json.dumps({"error": {"message": "No.", "type": "t", "code": code}}).encode()
    return Seen(429, {name.replace("_", "-"): value for name, value in headers.items()}, body, "http_429")


@pytest.mark.parametrize(
    ("seen", "wait"),
    [
        pytest.param(Seen(200), None, id="no refusal"),
        pytest.param(refused(retry_after_ms="1500", retry_after="2"), 1.5, id="milliseconds"),
        pytest.param(refused(retry_after="2"), 2.0, id="seconds"),
        pytest.param(refused(), None, id="not told"),
        pytest.param(refused("quota_exceeded", retry_after="2"), None, id="a quota"),
        pytest.param(refused(retry_after="3600"), None, id="too long"),
        pytest.param(Seen(429, {"retry-after": "2"}, b"<html>", "http_429"), None, id="an ingress's"),
    ],
)
def test_a_limit_that_passes_tells_how_long(seen: Seen, wait: float | None) -> None:
    """Any other answer is returned as it is."""
    assert wait_told(seen) == wait


async def test_a_limit_is_waited_for(fake: FakeVllm) -> None:
    """As long as the answer says; then the request is sent again."""
    body = {"error": {"message": "No.", "type": "t", "code": "rate_limit_exceeded"}}
    fake.play(Send(json_answer(body, status=429, headers="retry-after-ms: 20\r\n")))
    said: list[str] = []
    asker = Asker(SmokeSettings(parse_target(fake.url), key="sk-1", model="m"), said.append)
    seen = await asker.generate(max_tokens=5)
    asker.close()
    assert (seen.status, len(fake.posts)) == (200, 2)
    assert said == []  # of a moment nobody need know
    assert (fake.posts[1].json["model"], fake.posts[1].json["max_tokens"]) == ("m", 5)
    assert fake.posts[1].began - fake.posts[0].began >= 0.015  # a loop's timers count in milliseconds
    assert 0.015 <= asker.rested < 1


async def test_parts_are_seen_with_their_moments(fake: FakeVllm) -> None:
    """In seconds since the request was sent."""
    whole = stream(token_event(), token_event())
    cut = whole.index(token_event(), whole.index(token_event()) + 1) - 6
    fake.play(Send(whole[:cut]), Sleep(0.05), Send(whole[cut:]))
    asker = Asker(SmokeSettings(parse_target(fake.url), model="m"), lambda _: None)
    seen = await asker.generate(stream=True)
    asker.close()
    assert seen.body == token_event() * 2
    assert seen.arrivals[-1] - seen.arrivals[0] > 0.04
    assert seen.seconds >= seen.arrivals[-1]


async def test_no_answer_is_an_answer_too(fake: FakeVllm) -> None:
    """A closed connection, or a refused one."""
    asker = Asker(SmokeSettings(parse_target(fake.url), model="m", endpoint="completions"), lambda _: None)
    fake.play(Reset())
    seen = await asker.generate()
    assert (seen.status, seen.error, seen.connected) == (None, "reset", True)
    assert (fake.posts[0].path, fake.posts[0].json["prompt"]) == ("/v1/completions", "Name three colours.")
    await fake.stop()
    gone = await asker.generate()
    assert (gone.status, gone.error, gone.connected) == (None, "connect", False)


async def test_going_away_is_told_from_being_left(fake: FakeVllm) -> None:
    """The result says whether the stream was long enough to leave."""
    asker = Asker(SmokeSettings(parse_target(fake.url), model="m"), lambda _: None)
    fake.play(Send(STREAM_HEAD), *[Send(chunk(token_event()))] * 3, Hang())
    fake.play(Send(stream(token_event())), Close())
    assert [(await asker.leave(2))[1] for _ in range(2)] == [True, False]
    asker.close()
