"""aiaas.proxy.upstream.resume: an answer goes on at another endpoint, as its client sees it, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from aiaas.openai.errors import error_event
from aiaas.proxy.upstream import kept_relay
from aiaas.proxy.upstream.attempt import error_of_break
from aiaas.proxy.upstream.connection import Failure, FailureKind
from aiaas.proxy.upstream.relay import PING
from tests.fakes.vllm import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Close,
    FakeVllm,
    Flood,
    Hang,
    Reset,
    Send,
    Step,
    Wait,
    chunk,
    error_answer,
    error_stream_event,
    json_answer,
)
from tests.waiting import until

TEXT = ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "so", "on"]
PIECES = [TEXT[0], *(f" {word}" for word in TEXT[1:])]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "temperature": 0}
WITH_USAGE = CHAT | {"stream_options": {"include_usage": True}, "max_tokens": 12}
PROMPT = 7  # LLM tokens


class Replica(FakeVllm):
    """Counts a piece of PIECES as one token, and a prompt as PROMPT tokens; goes on with any part of the text."""

    tokenizes = True

    def script_for(self, method: str, path: str) -> Sequence[Step]:
        received = self.got[-1]
        if path != "/tokenize":
            return super().script_for(method, path)
        self.posts.pop()
        if not self.tokenizes:
            return (Send(json_answer({"detail": "Not Found"}, status=404)),)
        last = received.json["messages"][-1]
        text = last["content"] if last["role"] == "assistant" else ""
        return (Send(json_answer({"count": PROMPT + text.count(" ") + bool(text), "max_model_len": 1, "tokens": []})),)


def event(delta: dict[str, Any], finish: str | None = None, created: int = 1) -> bytes:
    """As vLLM 0.32 writes it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": None}
    frame = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": created, "model": "m"}
    return b"data: " + json.dumps(frame | {"choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"


def usage(prompt: int, completion: int, created: int = 1) -> bytes:
    counts = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    frame = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": created, "model": "m"}
    return b"data: " + json.dumps(frame | {"choices": [], "usage": counts}, separators=(",", ":")).encode() + b"\n\n"


ROLE = {"role": "assistant", "content": ""}


def first(pieces: Sequence[str]) -> bytes:
    """The beginning of a stream."""
    return STREAM_HEAD + b"".join(map(chunk, (event(ROLE), *(event({"content": piece}) for piece in pieces))))


def rest(pieces: Sequence[str], before: int) -> bytes:
    """The stream of a continuation behind `before` tokens."""
    told = [event({"content": piece}, created=2) for piece in pieces]
    ends = [event({"content": ""}, "stop", created=2), usage(PROMPT + before, len(pieces), created=2), DONE]
    return STREAM_HEAD + b"".join(map(chunk, (event(ROLE, created=2), *told, *ends))) + LAST_CHUNK


def whole() -> bytes:
    """The body of the uncut stream, with its usage."""
    told = [event({"content": piece}) for piece in PIECES]
    return b"".join((event(ROLE), *told, event({"content": ""}, "stop"), usage(PROMPT, len(PIECES)), DONE))


@pytest.fixture
async def replicas(monkeypatch):
    """Two endpoints; streams may go on from their first second on."""
    monkeypatch.setattr(kept_relay, "SAFE_SECONDS", 0.0)
    made = [await Replica.start(), await Replica.start()]
    yield made
    for each in made:
        await each.stop()


async def resuming(gateway, replicas, **backend):
    """A gateway before both, the first of which gets the first request (ties go by turns)."""
    return await gateway(*reversed(replicas), backend={"resume": "exact", "balance": "least_inflight"} | backend)


# An engine's last word after SIGTERM, with its token's text (docs/vllm/README.md).
ABORT = event({"content": PIECES[9]}, "abort")
DEATHS = [
    pytest.param((Reset(),), id="reset"),
    pytest.param((Close(),), id="closed"),
    pytest.param((Send(LAST_CHUNK),), id="ended without an end"),
    pytest.param((Send(chunk(error_stream_event())), Send(chunk(DONE) + LAST_CHUNK)), id="error event"),
    pytest.param((Send(chunk(error_stream_event()) + chunk(DONE)), Reset()), id="error event, then reset"),
    pytest.param((Send(chunk(ABORT) + chunk(DONE) + LAST_CHUNK),), id="abort, a clean end"),
]


@pytest.mark.parametrize("death", DEATHS)
async def test_answer_goes_on_at_the_other_endpoint(gateway, replicas, death):
    """The client reads the very bytes of the uncut answer, and is charged for it once."""
    replicas[0].play(Send(first(PIECES[:9])), *death)
    replicas[1].play(Send(rest(PIECES[9:], 9)))
    running = await resuming(gateway, replicas)
    got = await (await running.client()).post(WITH_USAGE)
    assert (got.status, got.whole) == (200, True)
    assert got.body == whole()
    asked = replicas[1].posts[0].json
    assert asked["messages"] == [*CHAT["messages"], {"role": "assistant", "content": "".join(PIECES[:9])}]
    assert (asked["continue_final_message"], asked["add_generation_prompt"], asked["max_tokens"]) == (True, False, 3)
    line = running.log_lines()[-1]
    assert (line["resumed"], line["resume_way"], line["input_tokens"], line["output_tokens"]) == (
        1,
        "continue",
        PROMPT,
        len(PIECES),
    )
    assert (line["first_upstream"], line["upstream"], line["error_code"]) == (replicas[0].url, replicas[1].url, None)
    assert b'aiaas_streams_resumed_total{model="m",outcome="resumed"} 1.0' in running.metrics.expose()
    assert all(
        not endpoint.pool.inflight for state in running.gateway.active.backends.values() for endpoint in state.endpoints
    )


async def ends_as_without(gateway, replicas, request: dict[str, Any], steps: Sequence[Step], **backend: Any):
    """The line of a request whose client reads with `resume` what it reads without, to the byte."""
    bodies = []
    for resume in ("off", backend.pop("resume", "exact")):
        replicas[0].scripts.clear()
        replicas[0].play(*steps)
        running = await resuming(gateway, replicas, resume=resume, **backend)
        got = await (await running.client()).post(request)
        bodies.append((got.status, got.body, got.whole))
    assert bodies[0] == bodies[1]
    return running.log_lines()[-1]


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"tool_choice": "required", "temperature": 1}, id="tool required"),
        pytest.param({"response_format": {"type": "json_object"}, "temperature": 1}, id="grammar"),
        pytest.param({"frequency_penalty": 1, "temperature": 1}, id="penalty, exact"),
        pytest.param({"new_field": 1, "temperature": 1}, id="unknown field"),
    ],
)
async def test_answer_that_must_not_go_on_ends_as_without_resume(gateway, replicas, fields, death):
    """Today's bytes, and the line says why; the other endpoint hears nothing."""
    line = await ends_as_without(gateway, replicas, CHAT | fields, (Send(first(PIECES[:9])), *death))
    assert (line["resumed"], line["resume_outcome"]) == (0, "not_resumable")
    assert line["resume_reason"]
    assert not replicas[1].posts


GRAMMAR = WITH_USAGE | {"response_format": {"type": "json_object"}}


def whole_again(pieces: Sequence[str]) -> bytes:
    """The whole stream of another engine."""
    told = [event({"content": piece}, created=2) for piece in pieces]
    ends = [event({"content": ""}, "stop", created=2), usage(PROMPT, len(PIECES), created=2), DONE]
    return STREAM_HEAD + b"".join(map(chunk, (event(ROLE, created=2), *told, *ends))) + LAST_CHUNK


@pytest.mark.parametrize("death", DEATHS)
async def test_deterministic_request_is_sent_again_and_the_rest_flows(gateway, replicas, death):
    """The part that the client has is skipped, however the second engine divides its text into events."""
    replicas[0].play(Send(first(PIECES[:9])), *death)
    replicas[1].play(Send(whole_again(["".join(PIECES[:4]), "".join(PIECES[4:9]), *PIECES[9:]])))
    running = await resuming(gateway, replicas)
    got = await (await running.client()).post(GRAMMAR)
    assert got.body == whole()
    assert replicas[1].posts[0].json == replicas[0].posts[0].json
    line = running.log_lines()[-1]
    assert (line["resume_way"], line["resume_outcome"]) == ("replay", "resumed")
    assert (line["input_tokens"], line["output_tokens"]) == (PROMPT, len(PIECES))


async def test_replay_that_differs_ends_with_the_error_event(gateway, replicas):
    """The second engine was not as deterministic as the first: nothing of it reaches the client."""
    replicas[0].play(Send(first(PIECES[:9])), Reset())
    replicas[1].play(Send(whole_again(["Other", *PIECES[1:]])))
    running = await resuming(gateway, replicas)
    got = await (await running.client()).post(GRAMMAR)
    assert got.body == first_body(PIECES[:9]) + error_of_ours()
    assert running.log_lines()[-1]["resume_outcome"] == "differs"


async def test_answer_that_took_too_long_is_not_replayed(gateway, replicas):
    """Its client would wait as long again."""
    go = asyncio.Event()
    replicas[0].play(
        Send(first(PIECES[:5])), Wait(go), Send(b"".join(chunk(event({"content": "a"})) for _ in range(9))), Reset()
    )
    running = await resuming(gateway, replicas, resume_wait="10ms")
    answering = asyncio.ensure_future((await running.client()).post(GRAMMAR))
    await until(lambda: bool(running.gateway.live) and running.gateway.live[0].events > 0)
    await asyncio.sleep(0.02)
    go.set()
    assert (await answering).body.endswith(error_of_ours())
    assert running.log_lines()[-1]["resume_reason"] == "to generate it again would take longer than resume_wait"


async def test_stream_that_has_just_begun_does_not_go_on(gateway, replicas):
    """A request that kills an engine does so early: it must not be carried to the next one."""
    line = await ends_as_without(gateway, replicas, CHAT, (Send(first(PIECES[:7])), Reset()))
    assert (line["resume_outcome"], line["resume_reason"]) == (
        "not_resumable",
        "it had less than 8 events, or less than a second",
    )


async def test_stream_goes_on_only_a_second_after_its_first_text(gateway, replicas, monkeypatch):
    """Eight events that came at once are no proof that the request is harmless."""
    monkeypatch.setattr(kept_relay, "SAFE_SECONDS", 1.0)
    line = await ends_as_without(gateway, replicas, CHAT, (Send(first(PIECES[:9])), Reset()))
    assert line["resume_outcome"] == "not_resumable"


async def test_stream_without_an_event_is_sent_again(gateway, replicas):
    """Its engine was lost before the client had anything; only `resume` allows the second attempt."""
    replicas[0].play(Send(STREAM_HEAD), Reset())
    replicas[1].play(Send(rest(PIECES, 0)))
    running = await resuming(gateway, replicas)
    got = await (await running.client()).post(WITH_USAGE)
    assert got.body == whole().replace(b'"created":1', b'"created":2')
    assert replicas[1].posts[0].json == replicas[0].posts[0].json
    assert running.log_lines()[-1]["retries"] == 1


async def test_stream_of_which_only_comments_came_is_sent_again(gateway, replicas):
    """A heartbeat has sent the status; the answer begins at the other endpoint."""
    silent = asyncio.Event()
    replicas[0].play(Send(STREAM_HEAD), Wait(silent), Reset())
    replicas[1].play(Send(rest(PIECES, 0)))
    running = await gateway(
        *reversed(replicas), backend={"resume": "exact", "balance": "least_inflight"}, server={"heartbeat": "20ms"}
    )
    client = await running.client()
    answering = asyncio.ensure_future(client.post(WITH_USAGE))
    await until(lambda: bool(running.gateway.live) and running.gateway.live[0].sent > 0)
    silent.set()
    got = await answering
    assert got.body.replace(PING, b"") == whole().replace(b'"created":1', b'"created":2')
    assert running.log_lines()[-1]["resume_way"] == "again"


async def test_client_that_did_not_ask_for_usage_gets_none(gateway, replicas):
    """The joined usage is for the gateway's own account."""
    replicas[0].play(Send(first(PIECES[:9])), Reset())
    replicas[1].play(Send(rest(PIECES[9:], 9)))
    running = await resuming(gateway, replicas)
    got = await (await running.client()).post(CHAT)
    assert got.body == whole().replace(usage(PROMPT, len(PIECES)), b"")
    assert running.log_lines()[-1]["output_tokens"] == len(PIECES)


async def test_events_are_counted_where_the_engine_counts_no_tokens(gateway, replicas):
    """Where `/tokenize` is away, an event counts as a token."""
    replicas[1].tokenizes = False
    replicas[0].play(Send(first(PIECES[:9])), Reset())
    replicas[1].play(Send(rest(PIECES[9:], 9)))
    running = await resuming(gateway, replicas)
    got = await (await running.client()).post(WITH_USAGE)
    assert got.body == whole()


async def test_alias_is_the_models_own_name_at_the_other_endpoint_too(gateway, replicas):
    """The continuation is spliced like any request: alias, priority, salt."""
    replicas[0].play(Send(first(PIECES[:9])), Reset())
    replicas[1].play(Send(rest(PIECES[9:], 9)))
    running = await resuming(gateway, replicas)
    await (await running.client()).post(WITH_USAGE | {"model": "alias"})
    assert [each.json["model"] for each in replicas[1].got if each.method == "POST"] == ["m", "m", "m"]


async def test_answer_that_lacked_only_its_end_is_ended(gateway, replicas):
    """Its finish_reason was there: nothing is generated again, and the client sees a whole answer."""
    told = STREAM_HEAD + b"".join(map(chunk, (event(ROLE), event({"content": "a"}), event({"content": ""}, "stop"))))
    replicas[0].play(Send(told), Reset())
    running = await resuming(gateway, replicas)
    got = await (await running.client()).post(CHAT)
    assert got.body == event(ROLE) + event({"content": "a"}) + event({"content": ""}, "stop") + DONE
    assert got.whole
    line = running.log_lines()[-1]
    assert (line["resume_outcome"], line["error_code"]) == ("finished", None)
    assert not replicas[1].posts


# -- the second endpoint -------------------------------------------------------------------------------------------


async def test_nobody_else_is_up(gateway, replicas):
    """The error event comes at once, and not after `resume_wait`."""
    running = await gateway(replicas[0], backend={"resume": "exact", "resume_wait": "60s"})
    replicas[0].play(Send(first(PIECES[:9])), Reset())
    got = await (await running.client()).post(CHAT)
    assert got.body.endswith(error_of_ours())
    assert running.log_lines()[-1]["resume_outcome"] == "nobody"


def error_of_ours() -> bytes:
    return error_event(error_of_break(Failure(FailureKind.RESET, "")), "/v1/chat/completions")


async def test_endpoint_that_is_busy_or_gone_is_passed_over(gateway, replicas):
    """A refusal or a refused connection has not run the request: the next endpoint is asked."""
    third = await Replica.start()
    gone = await Replica.start()
    await gone.stop()
    replicas[0].play(Send(first(PIECES[:9])), Reset())
    replicas[1].play(Send(error_answer(503, "busy")))
    third.play(Send(rest(PIECES[9:], 9)))
    running = await gateway(gone, third, *reversed(replicas), backend={"resume": "exact", "balance": "least_inflight"})
    for endpoint in running.endpoints():
        if endpoint.plan.url == replicas[0].url:
            break
        endpoint.pool.inflight += 1
    first_ones = [endpoint for endpoint in running.endpoints() if endpoint.pool.inflight]
    client = await running.client()
    answering = asyncio.ensure_future(client.post(WITH_USAGE))
    await until(lambda: bool(replicas[0].posts))
    for endpoint in first_ones:
        endpoint.pool.inflight -= 1
    got = await answering
    assert got.body == whole()
    await third.stop()


async def test_engine_that_dies_in_the_rest_is_not_followed_by_a_third(gateway, replicas):
    """The request may be what kills: two replicas at the most, and none of this backend for a while."""
    third = await Replica.start()
    made = (*replicas, third)
    for each in made:
        each.play(Send(first(PIECES[:9])), Reset())
        each.play(Send(first(PIECES[:9])), Reset())
    running = await gateway(*made, backend={"resume": "exact", "balance": "least_inflight"})
    client = await running.client()
    got = await client.post(CHAT)
    assert got.body.endswith(error_of_ours())
    assert running.log_lines()[-1]["resume_outcome"] == "died_again"
    assert sum(len(each.posts) for each in made) == 2
    await (await running.client()).post(CHAT)
    line = running.log_lines()[-1]
    assert (line["resume_outcome"], sum(len(each.posts) for each in made)) == ("not_resumable", 3)
    assert line["resume_reason"] == "another answer that went on has just died, too"
    await third.stop()


async def test_poison_in_the_prefill_reaches_two_replicas(gateway, replicas):
    """A request that kills before its first event is sent twice, and opens the breaker for the next one."""
    third = await Replica.start()
    made = (*replicas, third)
    for each in made:
        each.default = (Send(STREAM_HEAD), Reset())
    running = await gateway(*made, backend={"resume": "exact", "balance": "least_inflight"})
    assert (await (await running.client()).post(CHAT)).status == 502
    assert sum(len(each.posts) for each in made) == 2
    assert (await (await running.client()).post(CHAT)).status == 502
    assert sum(len(each.posts) for each in made) == 3
    await third.stop()


async def test_rest_that_differs_ends_with_the_error_event(gateway, replicas):
    """Nothing of another text reaches the client."""
    replicas[0].play(Send(first(["if x:", *PIECES[1:9], "\n"])), Reset())
    replicas[1].play(Send(rest(["\t\tother"], 9)))
    running = await resuming(gateway, replicas)
    got = await (await running.client()).post(CHAT)
    assert got.body == b"".join((first_body(["if x:", *PIECES[1:9], "\n"]), error_of_ours()))
    line = running.log_lines()[-1]
    assert (line["resume_outcome"], line["error_code"]) == ("differs", "upstream_error")


def first_body(pieces: Sequence[str]) -> bytes:
    return b"".join((event(ROLE), *(event({"content": piece}) for piece in pieces)))


async def test_thinking_behind_content_never_reaches_the_client(gateway, replicas):
    """A reasoning parser puts a continuation into the wrong channel: the answer ends instead."""
    replicas[0].play(Send(first(PIECES[:9])), Reset())
    replicas[1].play(Send(STREAM_HEAD + chunk(event({"reasoning": "dog"}, created=2))), Hang())
    running = await resuming(gateway, replicas)
    got = await (await running.client()).post(CHAT)
    assert got.body == first_body(PIECES[:9]) + error_of_ours()
    await replicas[1].posts[0].gone.wait()


# -- the gap -------------------------------------------------------------------------------------------------------


async def test_client_that_leaves_in_the_gap_ends_the_second_request(gateway, replicas):
    """The second engine stops as soon as nobody reads."""
    replicas[0].play(Send(first(PIECES[:9])), Reset())
    replicas[1].play(Hang())
    running = await resuming(gateway, replicas)
    client = await running.client()
    client.send(client.request(CHAT))
    await until(lambda: bool(replicas[1].posts))
    client.reset()
    await asyncio.wait_for(replicas[1].posts[0].gone.wait(), 1.0)
    await running.quiet()
    line = running.log_lines()[-1]
    assert (line["ended_by"], line["resume_outcome"]) == ("client", "client_left")
    assert [endpoint.pool.inflight for endpoint in running.endpoints()] == [0, 0]


async def test_client_hears_heartbeats_in_the_gap(gateway, replicas):
    """A wait for a slot looks like any other silence."""
    replicas[0].play(Send(first(PIECES[:9])), Reset())
    replicas[1].play(Send(rest(PIECES[9:], 9)))
    running = await gateway(
        *reversed(replicas),
        backend={"resume": "exact", "balance": "least_inflight", "max_inflight": 4, "fair": {"reserve": 0}},
        server={"heartbeat": "20ms"},
    )
    other = next(endpoint for endpoint in running.endpoints() if endpoint.plan.url == replicas[1].url)
    client = await running.client()
    other.pool.inflight += 4
    answering = asyncio.ensure_future(client.post(WITH_USAGE))
    await until(lambda: bool(running.backend().resuming))
    await asyncio.sleep(0.1)
    for _ in range(4):
        other.give_back()
    got = await answering
    assert got.body.replace(PING, b"") == whole()
    assert got.body.count(PING) >= 2


async def test_stream_that_finds_no_slot_in_time_ends(gateway, replicas):
    """It waits for `resume_wait` and no longer."""
    replicas[0].play(Send(first(PIECES[:9])), Reset())
    backend = {"max_inflight": 4, "fair": {"reserve": 0}, "resume_wait": "50ms"}
    running = await resuming(gateway, replicas, **backend)
    other = next(endpoint for endpoint in running.endpoints() if endpoint.plan.url == replicas[1].url)
    other.pool.inflight += 4
    got = await (await running.client()).post(CHAT)
    assert got.body.endswith(error_of_ours())
    assert running.log_lines()[-1]["resume_outcome"] == "nobody"
    assert not running.backend().resuming


async def test_drain_deadline_in_the_gap_ends_the_stream_at_once(gateway, replicas):
    """Its error event says so, and no second request is sent."""
    replicas[0].play(Send(first(PIECES[:9])), Reset())
    backend = {"max_inflight": 4, "fair": {"reserve": 0}, "resume_wait": "200ms"}
    running = await resuming(gateway, replicas, **backend)
    other = next(endpoint for endpoint in running.endpoints() if endpoint.plan.url == replicas[1].url)
    other.pool.inflight += 4
    client = await running.client()
    answering = asyncio.ensure_future(client.post(CHAT))
    await until(lambda: bool(running.backend().resuming))
    running.gateway.end_requests()
    got = await answering
    assert b'"code":"draining"' in got.body
    await running.quiet()
    assert not replicas[1].posts


async def test_stream_that_broke_off_comes_before_requests_that_wait(gateway, replicas):
    """Its client has begun to read."""
    backend = {"max_inflight": 1, "fair": {"reserve": 0}}
    go = asyncio.Event()
    replicas[0].play(Send(first(PIECES[:9])), Wait(go), Reset())
    release = asyncio.Event()
    replicas[1].play(Wait(release), Send(json_answer({})))
    replicas[1].play(Send(rest(PIECES[9:], 9)))
    running = await resuming(gateway, replicas, **backend)
    begun = asyncio.ensure_future((await running.client()).post(WITH_USAGE))
    await until(lambda: bool(replicas[0].posts))
    busy = asyncio.ensure_future((await running.client()).post({"model": "m", "messages": []}))
    await until(lambda: bool(replicas[1].posts))
    waiting = asyncio.ensure_future((await running.client()).post({"model": "m", "messages": []}))
    await until(lambda: running.backend().waiting == 1)
    for endpoint in running.endpoints():
        if endpoint.plan.url == replicas[0].url:
            endpoint.report_failure("dead")
            endpoint.report_failure("dead")
    go.set()
    await until(lambda: bool(running.backend().resuming))
    release.set()
    assert (await begun).body == whole()
    assert replicas[1].posts[1].json["stream"]
    await asyncio.gather(busy, waiting)


async def test_stream_without_room_for_its_text_is_relayed(gateway, replicas):
    """Over `resume_memory` a stream only loses its chance to go on."""
    many = ["x"] * 400
    replicas[0].play(Send(first(many)), Reset())
    running = await gateway(
        *reversed(replicas), backend={"resume": "exact", "balance": "least_inflight"}, server={"resume_memory": "1B"}
    )
    got = await (await running.client()).post(CHAT)
    assert got.body == first_body(many) + error_of_ours()
    assert "resumed" not in running.log_lines()[-1]
    assert running.gateway.fleet.kept.used == 0


async def test_wait_for_the_rest_does_not_look_like_a_hang(gateway, replicas):
    """The second engine reads a prompt: the no-byte rule must not take it down with its other streams."""
    replicas[0].play(Send(first(PIECES[:9])), Reset())
    go = asyncio.Event()
    replicas[1].play(Send(STREAM_HEAD), Wait(go), Send(rest(PIECES[9:], 9).removeprefix(STREAM_HEAD)))
    running = await resuming(gateway, replicas)
    answering = asyncio.ensure_future((await running.client()).post(WITH_USAGE))
    await until(lambda: bool(replicas[1].posts))
    [stream] = [stream for endpoint in running.endpoints() for stream in endpoint.streams]
    assert stream.last_byte() is None
    go.set()
    assert (await answering).body == whole()


async def test_slow_client_of_a_joined_answer_opens_no_breaker(gateway, replicas):
    """It says nothing about the engines."""
    replicas[0].play(Send(first(PIECES[:9])), Reset())
    flood = chunk(event({"content": "x" * 60_000}, created=2))
    replicas[1].play(Send(STREAM_HEAD), Flood(flood, 50_000_000))
    running = await resuming(gateway, replicas, timeout="300ms")
    client = await running.client(receive_buffer=4096)
    client.send(client.request(CHAT))
    await client.head()
    await until(lambda: bool(replicas[1].posts) and replicas[1].posts[0].gone.is_set(), 4)
    await running.quiet()
    line = running.log_lines()[-1]
    assert (line["error_code"], line["resume_outcome"]) == ("client_too_slow", "client_left")
    assert running.backend().no_resume_until < 0
