"""aiaas.proxy.upstream.relay and tap: answers as a client sees them, over real sockets, and their
records."""

from __future__ import annotations

import asyncio
import json
import socket
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.streams import EMPTY_PAYLOAD
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiaas.openai.sse import MAX_EVENT
from aiaas.proxy.upstream.relay import PING
from aiaas.proxy.upstream.usage_tap import KEPT_MOST
from tests.fakes.vllm import (
    DONE,
    ENGINE_DEAD,
    LAST_CHUNK,
    STREAM_HEAD,
    Close,
    Flood,
    Hang,
    Reset,
    Send,
    SendSlowly,
    Step,
    Wait,
    answer,
    chunk,
    error_stream_event,
    json_answer,
    stream,
    token_event,
    usage_event,
)
from tests.proxy.end_table import MESSAGES_STREAM, RESPONSES_STREAM
from tests.waiting import until

CHAT = {"model": "m", "messages": []}
STREAM = {**CHAT, "stream": True}
STREAM_WITH_USAGE = {**STREAM, "stream_options": {"include_usage": True}}


def errors_in(body: bytes) -> list[dict[str, Any]]:
    """The errors that an SDK would raise on: data of whole events."""
    events = body.split(b"\n\n")
    return [json.loads(e[6:])["error"] for e in events if e.startswith(b"data: {") and b'"error"' in e]


# -- bytes ---------------------------------------------------------------------------------------------------------


async def test_body_is_identical(fake_vllm, gateway):
    """A JSON answer goes through byte for byte, with its length, its content type and our request id."""
    body = '{"id": "chatcmpl-1",  "reasoning_content":"\u00fc\\u00fc", "token_ids":[1,2]}\n'.encode()
    fake_vllm.play(Send(answer(200, body, content_type="application/json; x=y")))
    running = await gateway(fake_vllm)
    got = await (await running.client()).post(CHAT)
    assert (got.status, got.body, got.whole) == (200, body, True)
    assert got.header("content-length") == str(len(body))
    assert got.header("content-type") == "application/json; x=y"
    assert got.header("x-request-id") == fake_vllm.posts[0].headers["x-request-id"]


async def test_backends_own_headers_stay_behind(fake_vllm, gateway):
    """Framing, connection and the backend's name are its own business; other headers go through."""
    headers = "set-cookie: a=b\r\nlocation: http://vllm\r\nkeep-alive: 5\r\nx-request-id: theirs\r\nx-kept: 1\r\n"
    fake_vllm.play(Send(json_answer({}, headers=headers)))
    got = await (await (await gateway(fake_vllm)).client()).post(CHAT)
    names = [name for name, _ in got.headers]
    assert got.header("x-kept") == "1"
    assert not {"server", "set-cookie", "location", "keep-alive"} & set(names)
    assert got.header("x-request-id") != "theirs"


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b'{"a":') + chunk(b"1}") + LAST_CHUNK,
        b'HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{"a":1}',
    ],
    ids=["chunked", "until the end"],
)
async def test_body_without_a_length(fake_vllm, gateway, response):
    """The body goes on as chunks, and ends as the answer ends."""
    fake_vllm.play(SendSlowly(response, size=40), *([Close()] if b"close" in response else []))
    client = await (await gateway(fake_vllm)).client()
    got = await client.post(CHAT)
    assert (got.body, got.whole, got.header("transfer-encoding")) == (b'{"a":1}', True, "chunked")
    assert (await client.post(CHAT)).status == 200


async def test_empty_answers(fake_vllm, gateway):
    """An empty 200 and a 204 are whole answers without a body."""
    fake_vllm.play(Send(answer(200, b"")))
    fake_vllm.play(Send(b"HTTP/1.1 204 No Content\r\n\r\n"))
    client = await (await gateway(fake_vllm)).client()
    for status, length in [(200, "0"), (204, None)]:
        got = await client.post(STREAM)
        assert (got.status, got.body, got.whole, got.header("content-length")) == (status, b"", True, length)


async def test_client_leaving_at_its_end_leaves_the_next_one_alone(fake_vllm, gateway):
    """Its handler is cancelled; its answer ends, and the connection serves another request; only then it goes on.
    It once ended that other request, whose client waited until its timeout."""
    running = await gateway(fake_vllm)
    fake_vllm.play(Send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{"), Hang())
    client = await running.client()
    client.send(client.request(CHAT))
    await client.head()
    (connection,) = running.open_side.connections
    relay = connection.listener
    assert connection.handler.has_task  # since its key was new; without a task it would be cancelled at once
    connection.cancel()
    relay._upstream.data_received(b"}")
    next_one = SimpleNamespace()
    taken = running.endpoints()[0].pool.take_idle(asyncio.get_running_loop().time())
    assert taken is relay._upstream
    taken.exchange(b"", next_one)
    await running.quiet()
    assert taken._sink is next_one
    taken.abort()


EVENTS = st.sampled_from(
    [
        b"data: three\n\n\n",
        token_event("a"),
        token_event("\u2028 \u00fc \\n\\n"),
        token_event("usage"),
        b": comment\n\n",
        b"event: x\ndata: 1\ndata: 2\n\n",
        b"data: crlf\r\n\r\n",
        b"data: cr\r\r",
        b"data: mixed\n\r\n",
        b"\n\n",
        b'data: {"error": "no object"\n\n',
        b'data: {"usage": null}\n\n',
        usage_event(),
        DONE,
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(EVENTS, max_size=8), cuts=st.lists(st.integers(0, 2000), max_size=6), rest=st.booleans())
async def test_stream_is_identical_however_it_is_cut(fake_vllm, gateway, events, cuts, rest):
    """Any events, cut anywhere, with any line ends, arrive byte for byte when the client itself asked for usage."""
    body = b"".join(events) + token_event() + (DONE[:-2] if rest else DONE)
    borders = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    parts = [body[a:b] for a, b in pairwise(borders)]
    steps = [Send(STREAM_HEAD)]
    for part in parts:
        steps += [Send(chunk(part)), SendSlowly(b"")]
    fake_vllm.play(*steps, Send(LAST_CHUNK))
    running = await gateway(fake_vllm)
    client = await running.client()
    got = await client.post(STREAM_WITH_USAGE)
    client.close()
    assert (got.body, got.whole, got.status) == (body, True, 200)


@pytest.mark.parametrize(
    "odd",
    [
        b"data: {",
        b"data: x\r\n",
        b": a comment\n\n",
        b"data: {}\n\ndata: {}\n\n",
        b"\n\n\n",
    ],
    ids=["a half event", "a CR", "a comment", "two events", "empty lines"],
)
async def test_chunks_between_ordinary_events(fake_vllm, gateway, odd):
    """One read each, so that the ordinary ones go on as they came: the others keep their place and their bytes."""
    running = await gateway(fake_vllm)
    ordinary = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    pieces = [ordinary] * 3 + [odd] + [ordinary] * 2 + [DONE]
    steps: list[Step] = [Send(STREAM_HEAD)]
    for piece in pieces:
        steps.append(SendSlowly(chunk(piece), size=1000, pause=0.005))
    fake_vllm.play(*steps, Send(LAST_CHUNK))
    got = await (await running.client()).post(STREAM_WITH_USAGE)
    assert (got.body, got.whole) == (b"".join(pieces), True)


async def test_stream_head(fake_vllm, gateway):
    """A stream has the headers that stop proxies from buffering, and the backend's content type."""
    fake_vllm.play(Send(stream(token_event(), DONE)))
    got = await (await (await gateway(fake_vllm)).client()).post(STREAM)
    assert got.header("content-type") == "text/event-stream; charset=utf-8"
    assert (got.header("cache-control"), got.header("x-accel-buffering")) == ("no-cache", "no")


async def test_begun_stream_keeps_no_head(fake_vllm, gateway):
    """Neither the request's reader nor the answer's headers: a stream lasts, and they take two kilobytes."""
    fake_vllm.play(Send(STREAM_HEAD), Send(chunk(token_event())), Hang())
    running = await gateway(fake_vllm)
    client = await running.client()
    client.send(client.request(STREAM))
    await client.head()
    await client.chunk()
    [connection] = running.gateway._requests
    [relay] = running.endpoints()[0].streams
    assert relay._headers == []
    assert connection._request.content is EMPTY_PAYLOAD


async def test_event_by_event(fake_vllm, gateway):
    """Each event is with the client before the next is written."""
    steps: list[Step] = [Send(STREAM_HEAD)]
    turns = [asyncio.Event() for _ in range(5)]
    for turn in turns:
        steps += [Send(chunk(token_event())), Wait(turn)]
    fake_vllm.play(*steps, Send(chunk(DONE) + LAST_CHUNK))
    client = await (await gateway(fake_vllm)).client()
    client.send(client.request(STREAM))
    await client.head()
    for turn in turns:
        assert await client.chunk() == token_event()
        turn.set()
    assert await client.chunk() == DONE
    assert await client.chunk() == b""


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"], ids=["LF", "CR LF", "CR"])
async def test_event_goes_on_with_its_last_byte(fake_vllm, gateway, end):
    """An event cut inside its blank line is with the client as soon as the line is whole."""
    event = b"data: x" + end
    steps = [Send(STREAM_HEAD + chunk(event[:-1])), Wait(go := asyncio.Event()), Send(chunk(event[-1:])), Hang()]
    fake_vllm.play(*steps)
    client = await (await gateway(fake_vllm)).client()
    client.send(client.request(STREAM))
    await asyncio.sleep(0.02)
    go.set()
    await client.head()
    assert await client.chunk() == event


async def test_http_1_0_client(fake_vllm, gateway):
    """A client that knows no chunks gets the stream as it is, and its end is the connection's."""
    fake_vllm.play(Send(stream(token_event(), DONE)))
    client = await (await gateway(fake_vllm)).client()
    got = await client.post(STREAM, version="1.0")
    assert got.header("transfer-encoding") is None
    assert got.header("connection") == "close"
    assert got.body == token_event() + DONE


async def test_compressed_stream_is_not_searched(fake_vllm, gateway):
    """Unasked compression goes through at once, as bytes, without waiting for an event's end."""
    head = STREAM_HEAD[:-2] + b"content-encoding: gzip\r\n\r\n"
    fake_vllm.play(Send(head + chunk(b"\x1f\x8bbytes")), Hang())
    client = await (await gateway(fake_vllm)).client()
    client.send(client.request(STREAM))
    await client.head()
    assert await client.chunk() == b"\x1f\x8bbytes"


async def test_very_large_event(fake_vllm, gateway):
    """An event of megabytes in thousands of reads arrives whole, in time that grows with its length only."""
    event = b"data: " + b"x" * 12_000_000 + b"\n\n"
    fake_vllm.play(Send(STREAM_HEAD + chunk(event) + chunk(DONE) + LAST_CHUNK))
    got = await (await (await gateway(fake_vllm)).client()).post(STREAM)
    assert (got.whole, got.body == event + DONE) == (True, True)


async def test_endless_event(fake_vllm, gateway):
    """An event beyond the bound is nonsense: nothing was sent, so the client gets a 502, and memory stays bounded."""
    fake_vllm.play(Send(STREAM_HEAD), Flood(chunk(b"x" * 65536), 10_000))
    running = await gateway(fake_vllm)
    got = await (await running.client()).post(STREAM)
    assert (got.status, got.json["error"]["code"]) == (502, "upstream_error")
    assert fake_vllm.connections[0].flooded < MAX_EVENT + 16_000_000


# -- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, token_event() + DONE),
        ({"stream_options": {"include_usage": False}}, token_event() + DONE),
        ({"stream_options": {"include_usage": True}}, token_event() + usage_event() + DONE),
    ],
    ids=["not asked", "declined", "asked"],
)
@pytest.mark.parametrize("joined", [False, True], ids=["event by event", "in one read"])
async def test_usage_event(fake_vllm, gateway, options, expected, joined):
    """vLLM is always asked for usage, it is always counted, and only a client that asked for it sees it."""
    whole = stream(token_event(), usage_event(), DONE)
    fake_vllm.play(Send(whole) if joined else SendSlowly(whole, size=50))
    running = await gateway(fake_vllm)
    got = await (await running.client()).post({**STREAM, **options})
    assert (got.body, got.whole) == (expected, True)
    assert fake_vllm.posts[0].json["stream_options"]["include_usage"] is True
    line = running.log_lines()[-1]
    assert (line["input_tokens"], line["output_tokens"]) == (18, 5)


async def test_usage_event_with_other_line_ends(fake_vllm, gateway):
    """A server that writes CR LF is counted and relieved of its usage event too."""
    crlf = [event.replace(b"\n", b"\r\n") for event in (token_event(), usage_event(), DONE)]
    fake_vllm.play(Send(stream(*crlf)))
    running = await gateway(fake_vllm)
    got = await (await running.client()).post(STREAM)
    assert got.body == crlf[0] + crlf[2]
    assert running.log_lines()[-1]["output_tokens"] == 5


async def test_usage_on_every_event(fake_vllm, gateway):
    """With usage on every event (transcripts 14, 110) only the extra event is taken out, and the last figure counts."""

    def token(count: int) -> bytes:
        usage = {"prompt_tokens": 18, "total_tokens": 18 + count, "completion_tokens": count}
        return b"data: " + json.dumps({"choices": [{"delta": {"content": "#"}}], "usage": usage}).encode() + b"\n\n"

    fake_vllm.play(Send(stream(token(1), token(2), usage_event(18, 2), DONE)))
    running = await gateway(fake_vllm)
    got = await (await running.client()).post(STREAM)
    assert got.body == token(1) + token(2) + DONE
    assert running.log_lines()[-1]["output_tokens"] == 2


OPENAI_USAGE = {"prompt_tokens": 14, "total_tokens": 17, "completion_tokens": 3}
REPORTED = {
    "chat": ("/v1/chat/completions", CHAT, [json_answer({"id": "1", "usage": OPENAI_USAGE})]),
    "completions stream": (
        "/v1/completions",
        {"model": "m", "prompt": "x", "stream": True},
        [stream(b'data: {"choices":[{"text":"self"}]}\n\n', usage_event(14, 3), DONE)],
    ),
    "responses": (
        "/v1/responses",
        {"model": "m", "input": "x"},
        [json_answer({"usage": {"input_tokens": 14, "output_tokens": 3, "total_tokens": 17}, "user": None})],
    ),
    "responses stream": ("/v1/responses", {"model": "m", "input": "x", "stream": True}, [stream(*RESPONSES_STREAM)]),
    "messages": (
        "/v1/messages",
        {**CHAT, "max_tokens": 5},
        [json_answer({"type": "message", "usage": {"input_tokens": 14, "output_tokens": 3}})],
    ),
    "messages stream": ("/v1/messages", {**STREAM, "max_tokens": 5}, [stream(*MESSAGES_STREAM)]),
}


@pytest.mark.parametrize(("path", "body", "response"), REPORTED.values(), ids=REPORTED)
async def test_usage_is_read(fake_vllm, gateway, path, body, response):
    """Where vLLM reports usage differs by path; it is what is logged and counted, and not an estimate."""
    fake_vllm.play(Send(response[0]))
    running = await gateway(fake_vllm)
    got = await (await running.client()).post(body, path=path)
    assert got.whole
    line = running.log_lines()[-1]
    assert (line["input_tokens"], line["output_tokens"]) == (14, 3)
    assert running.metric('tokens_processed_total{model="m",type="output"}') == 3


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_usage_of_other_paths_stays(fake_vllm, gateway, path):
    """Responses and messages always tell usage; nothing is asked for, nothing is taken out."""
    events = RESPONSES_STREAM if path == "/v1/responses" else MESSAGES_STREAM
    fake_vllm.play(Send(stream(*events)))
    running = await gateway(fake_vllm)
    got = await (await running.client()).post({"model": "m", "input": "x", "messages": [], "stream": True}, path=path)
    assert got.body == b"".join(events)
    assert "stream_options" not in fake_vllm.posts[0].json


async def test_usage_at_the_end_of_a_long_answer(fake_vllm, gateway):
    """Embeddings of megabytes are not kept whole for their usage, and it is found all the same."""
    body = {"data": ['"usage": {' * 10] * (KEPT_MOST // 40), "usage": {"prompt_tokens": 14, "total_tokens": 14}}
    fake_vllm.play(Send(json_answer(body)))
    running = await gateway(fake_vllm)
    got = await (await running.client()).post({"model": "m", "input": "x"}, path="/v1/embeddings")
    assert len(got.body) > 2 * KEPT_MOST
    assert got.json == body
    line = running.log_lines()[-1]
    assert (line["input_tokens"], line["output_tokens"]) == (14, 0)


async def test_role_event_does_not_count_as_token(fake_vllm, gateway):
    """The first event of a chat says who speaks (transcript 12): a cut stream is not charged for it."""
    role = (
        b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
    )
    fake_vllm.play(Send(STREAM_HEAD + chunk(role) + chunk(token_event()) + chunk(token_event())), Reset())
    running = await gateway(fake_vllm)
    await (await running.client()).post({**CHAT, "stream": True})
    assert running.log_lines()[-1]["output_tokens"] == 2


@pytest.mark.parametrize("end", ["backend breaks off", "client leaves"])
async def test_usage_of_a_cut_stream(fake_vllm, gateway, end):
    """A cut stream counts what was streamed, also where an early event reported no output yet. Its input
    was reported, its output is an estimate."""
    events = b"".join(map(chunk, MESSAGES_STREAM[:1] + MESSAGES_STREAM[1:2] * 5))
    fake_vllm.play(Send(STREAM_HEAD + events), Wait(go := asyncio.Event()), Reset())
    running = await gateway(fake_vllm)
    client = await running.client()
    client.send(client.request({**STREAM, "max_tokens": 5}, path="/v1/messages"))
    await client.head()
    await client.chunk()
    if end == "client leaves":
        client.reset()
    else:
        go.set()
        await client.ended()
    await running.quiet()
    line = running.log_lines()[-1]
    assert (line["input_tokens"], line["output_tokens"]) == (14, 5)
    assert running.metric('aiaas_tokens_estimated_total{model="m",type="output"}') == 5


# -- the first event holds the status ------------------------------------------------------------------------------


async def test_head_is_held_until_the_first_event(fake_vllm, gateway):
    """vLLM says 200 before it schedules; half an event does not count as one."""
    fake_vllm.play(
        Send(STREAM_HEAD + chunk(token_event()[:10])),
        Wait(go := asyncio.Event()),
        Send(chunk(token_event()[10:])),
        Hang(),
    )
    running = await gateway(fake_vllm)
    client = await running.client()
    client.send(client.request(STREAM))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.reader.read(1)
    go.set()
    assert (await client.head()).status == 200
    assert await client.chunk() == token_event()


FAILS_BEFORE_THE_FIRST_EVENT = {
    "an error event": Send(stream(error_stream_event(), DONE)),
    "an error event in CR LF": Send(stream(error_stream_event().replace(b"\n", b"\r\n"))),
}


@pytest.mark.parametrize("step", FAILS_BEFORE_THE_FIRST_EVENT.values(), ids=FAILS_BEFORE_THE_FIRST_EVENT)
async def test_failing_replica_is_replaced(fake_vllms, gateway, step):
    """An engine that dies behind its 200 and before its first event is replaced, and the client sees nothing of it."""
    bad, good = await fake_vllms(), await fake_vllms()
    for fake in (bad, good):
        fake.default = (Send(stream(token_event(), DONE)),)
    running = await gateway(bad, good)
    first = running.backend().turn
    order = [bad, good] if (first + 1) % 2 == 0 else [good, bad]
    order[0].play(step)
    got = await (await running.client()).post(STREAM)
    assert (got.status, got.body, got.whole) == (200, token_event() + DONE, True)
    assert [len(order[0].posts), len(order[1].posts)] == [1, 1]
    line = running.log_lines()[-1]
    assert (line["status"], line["error_code"], line["retries"]) == (200, None, 1)
    assert running.metric('aiaas_retries_total{reason="engine"}') == 1
    assert sorted(endpoint.failures for endpoint in running.endpoints()) == [0, 1]


async def test_death_right_behind_the_first_event(fake_vllm, gateway):
    """Where a token came first, though in the same read, the request has run: both pass, and nothing is repeated."""
    fake_vllm.play(Send(stream(token_event(), error_stream_event(), DONE)))
    running = await gateway(fake_vllm)
    got = await (await running.client()).post(STREAM)
    assert (got.status, got.body) == (200, token_event() + error_stream_event() + DONE)
    assert (len(fake_vllm.posts), running.endpoints()[0].failures) == (1, 1)


async def test_failed_attempt_does_not_count_as_output(fake_vllm, gateway):
    """A stream's record is that of the attempt that the client saw."""
    fake_vllm.play(Send(stream(error_stream_event(), DONE)))
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Reset())
    running = await gateway(fake_vllm)
    got = await (await running.client()).post(STREAM)
    assert got.body.startswith(token_event())
    line = running.log_lines()[-1]
    assert (line["output_tokens"], line["retries"]) == (1, 1)


# -- failures after the first byte ---------------------------------------------------------------------------------

CUTS = {
    "FIN": (Close(), "upstream_error"),
    "RST": (Reset(), "upstream_error"),
    "bad chunk": (Send(b"xyz\r\n"), "upstream_error"),
    "silence": (Hang(), "upstream_timeout"),
}


@pytest.mark.parametrize("half", [b"", b'data: {"id": "half'], ids=["between events", "inside an event"])
@pytest.mark.parametrize(("cut", "code"), CUTS.values(), ids=CUTS)
async def test_stream_that_breaks_off(fake_vllm, gateway, cut, code, half):
    """The client gets what was whole, then one whole error event, then a proper end; never half an event."""
    sent = chunk(token_event() + half)
    fake_vllm.play(Send(STREAM_HEAD + sent), Wait(go := asyncio.Event()), cut)
    running = await gateway(fake_vllm, backend={"timeout": "150ms"})
    client = await running.client()
    client.send(client.request(STREAM))
    await client.head()
    assert await client.chunk() == token_event()
    go.set()
    last = await client.chunk()
    assert [error["code"] for error in errors_in(last)] == [code]
    assert last.startswith(b"data: {")
    assert last.endswith(b"\n\n")
    assert await client.chunk() == b""
    assert await client.ended() == b""
    line = running.log_lines()[-1]
    assert (line["status"], line["error_code"]) == (200, code)
    assert line["ended_by"] == ("gateway" if isinstance(cut, Hang) else "upstream")


async def test_messages_stream_that_breaks_off(fake_vllm, gateway):
    """The Anthropic SDK wants `event: error`."""
    fake_vllm.play(Send(STREAM_HEAD + chunk(MESSAGES_STREAM[0])), Reset())
    got = await (await (await gateway(fake_vllm)).client()).post({**STREAM, "max_tokens": 5}, path="/v1/messages")
    assert got.whole
    assert got.body.removeprefix(MESSAGES_STREAM[0]).startswith(b'event: error\ndata: {"type":"error","error":{')


@pytest.mark.parametrize("cut", [Close(), Reset(), Hang()], ids=["FIN", "RST", "silence"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_body_that_breaks_off(fake_vllm, gateway, cut, chunked):
    """A cut body that is not a stream closes without its end: a client must not take it for whole."""
    head = b"transfer-encoding: chunked\r\n\r\n" if chunked else b"content-length: 100\r\n\r\n"
    part = chunk(b'{"id":') if chunked else b'{"id":'
    fake_vllm.play(Send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + head + part), cut)
    running = await gateway(fake_vllm, backend={"timeout": "150ms"})
    client = await running.client()
    got = await client.post(CHAT)
    assert (got.status, got.whole) == (200, False)
    assert got.body in (b'{"id":', b"")
    assert await client.ended() == b""
    assert running.log_lines()[-1]["error_code"] in ("upstream_error", "upstream_timeout")


async def test_http_1_0_stream_that_breaks_off(fake_vllm, gateway):
    """Without chunks the error event is the last thing on the connection."""
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Reset())
    got = await (await (await gateway(fake_vllm)).client()).post(STREAM, version="1.0")
    assert got.body.startswith(token_event() + b"data: {")
    assert len(errors_in(got.body)) == 1


async def test_engine_death_inside_a_stream(fake_vllm, gateway):
    """An error event and [DONE] on a 200 (transcript 132) pass unchanged, are an error, and count against health."""
    events = token_event(), error_stream_event(), DONE
    fake_vllm.play(
        Send(STREAM_HEAD + chunk(events[0])), Wait(go := asyncio.Event()), Send(chunk(events[1] + DONE) + LAST_CHUNK)
    )
    running = await gateway(fake_vllm)
    client = await running.client()
    client.send(client.request(STREAM))
    await client.head()
    assert await client.chunk() == events[0]
    go.set()
    assert await client.chunk() == events[1] + DONE
    assert await client.chunk() == b""
    await running.quiet()
    line = running.log_lines()[-1]
    assert (line["status"], line["error_code"], line["ended_by"]) == (200, "upstream_error", "upstream")
    assert running.endpoints()[0].failures == 1
    sample = 'inference_requests_total{endpoint="/v1/chat/completions",model="m",status="error"}'
    assert running.metric(sample) == 1


async def test_client_error_inside_a_stream_is_nobody_elses(fake_vllm, gateway):
    """An error event with a code below 500 passes, and the endpoint is as healthy as before."""
    event = error_stream_event("too long", 400)
    fake_vllm.play(Send(stream(event, DONE)))
    running = await gateway(fake_vllm)
    got = await (await running.client()).post(STREAM)
    assert (got.status, got.body) == (200, event + DONE)
    assert running.endpoints()[0].failures == 0


async def test_model_that_talks_of_errors(fake_vllm, gateway):
    """A token that quotes an engine's last words is a token."""
    events = [token_event('{"error": {"code": 500}}'), token_event(ENGINE_DEAD), token_event("usage"), DONE]
    fake_vllm.play(Send(stream(*events)))
    running = await gateway(fake_vllm)
    got = await (await running.client()).post(STREAM)
    assert got.body == b"".join(events)
    assert running.log_lines()[-1]["error_code"] is None


# -- silence, heartbeat, deadline ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [(Hang(),), (Send(STREAM_HEAD), Hang()), (Send(STREAM_HEAD + chunk(b"data: half")), Hang())],
    ids=["before the head", "behind the head", "inside the first event"],
)
async def test_silence_before_the_first_event(fake_vllm, gateway, steps):
    """A 504 that the SDK does not repeat; the upstream request has ended."""
    fake_vllm.play(*steps)
    running = await gateway(fake_vllm, backend={"timeout": "100ms"})
    got = await (await running.client()).post(STREAM)
    assert (got.status, got.json["error"]["code"], got.header("x-should-retry")) == (504, "upstream_timeout", "false")
    await until(fake_vllm.posts[0].gone.is_set)
    assert len(fake_vllm.posts) == 1


async def test_silence_is_not_length(fake_vllm, gateway):
    """A stream that goes on longer than `timeout` and never pauses as long as that is left alone."""
    fake_vllm.play(
        Send(STREAM_HEAD),
        SendSlowly(chunk(token_event()) * 8, size=len(chunk(token_event())), pause=0.1),
        Send(chunk(DONE) + LAST_CHUNK),
    )
    running = await gateway(fake_vllm, backend={"timeout": "600ms"})
    got = await (await running.client()).post(STREAM)
    assert (got.body, got.whole) == (token_event() * 8 + DONE, True)


async def test_total_timeout(fake_vllm, gateway):
    """`total_timeout` bounds the whole request, however talkative: an error event, or 504 where nothing was sent."""
    talk = SendSlowly(chunk(token_event()) * 200, size=len(chunk(token_event())), pause=0.01)
    fake_vllm.play(Send(STREAM_HEAD), talk)
    running = await gateway(fake_vllm, backend={"timeout": "5s", "total_timeout": "200ms"})
    got = await (await running.client()).post(STREAM)
    assert (got.status, got.whole) == (200, True)
    assert [error["code"] for error in errors_in(got.body)] == ["upstream_timeout"]
    fake_vllm.play(Hang())
    got = await (await running.client()).post(CHAT)
    assert (got.status, got.json["error"]["code"]) == (504, "upstream_timeout")


async def test_heartbeat(fake_vllm, gateway):
    """Silence on a stream is filled with comments, the first of which spends the status; events follow as they came."""
    fake_vllm.play(
        Send(STREAM_HEAD), Wait(go := asyncio.Event()), Send(chunk(token_event()) + chunk(DONE) + LAST_CHUNK)
    )
    running = await gateway(fake_vllm, server={"heartbeat": "30ms"})
    client = await running.client()
    client.send(client.request(STREAM))
    await client.head()
    assert [await client.chunk() for _ in range(3)] == [PING] * 3
    go.set()
    rest = b""
    while data := await client.chunk():
        rest += data
    assert rest.replace(PING, b"") == token_event() + DONE
    assert running.log_lines()[-1]["ttft_seconds"] > 0.08


async def test_heartbeat_never_inside_an_event(fake_vllm, gateway):
    """While an event is unfinished the comment goes before it."""
    half = len(token_event()) // 2
    fake_vllm.play(
        Send(STREAM_HEAD + chunk(token_event()) + chunk(token_event()[:half])),
        Wait(go := asyncio.Event()),
        Send(chunk(token_event()[half:]) + LAST_CHUNK),
    )
    running = await gateway(fake_vllm, server={"heartbeat": "30ms"})
    client = await running.client()
    client.send(client.request(STREAM))
    await client.head()
    assert [await client.chunk(), await client.chunk()] == [token_event(), PING]
    go.set()
    while (data := await client.chunk()) == PING:
        pass
    assert data == token_event()


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["not streamed", "streamed"])
async def test_no_heartbeat_before_the_head(fake_vllm, gateway, body):
    """Until the backend has said that it streams, there is nothing to write a comment into."""
    fake_vllm.play(Wait(go := asyncio.Event()), Send(json_answer({"a": 1})))
    running = await gateway(fake_vllm, server={"heartbeat": "20ms"})
    client = await running.client()
    client.send(client.request(body))
    await asyncio.sleep(0.1)
    go.set()
    assert (await client.answer()).body == b'{"a":1}'


async def test_silence_counts_through_heartbeats(fake_vllm, gateway):
    """Our own comments are not the backend's voice: a silent one ends in an error event all the same."""
    fake_vllm.play(Send(STREAM_HEAD), Hang())
    running = await gateway(fake_vllm, server={"heartbeat": "20ms"}, backend={"timeout": "120ms"})
    got = await (await running.client()).post(STREAM)
    assert (got.status, got.whole) == (200, True)
    assert got.body.startswith(PING)
    assert [error["code"] for error in errors_in(got.body.replace(PING, b""))] == ["upstream_timeout"]


# -- slow clients --------------------------------------------------------------------------------------------------

FLOOD = chunk(token_event("x" * 4000))


async def test_slow_client_stops_the_reading(fake_vllm, gateway):
    """A client that does not read makes the backend wait; hardly anything gathers here; then it gets every byte."""
    fake_vllm.play(Send(STREAM_HEAD), Flood(FLOOD, 5000), Send(chunk(DONE) + LAST_CHUNK))
    running = await gateway(fake_vllm)
    client = await running.client(receive_buffer=4096)
    client.send(client.request(STREAM))
    await client.head()
    connection = fake_vllm.connections[0]
    await until(lambda: not connection.writable.is_set())
    before = -1
    async with asyncio.timeout(10):  # the kernel's buffers may take some more, and then some more
        while connection.flooded != before:
            before = connection.flooded
            await asyncio.sleep(0.1)
    assert before < 20_000_000
    (open_connection,) = running.open_side.connections
    assert open_connection.transport.get_write_buffer_size() < 64 * 1024 + 256 * 1024 + len(FLOOD)
    size = 0
    while data := await client.chunk():
        size += len(data)
    assert size == 5000 * len(token_event("x" * 4000)) + len(DONE)


async def test_client_that_takes_nothing_is_dropped(fake_vllm, gateway):
    """After `timeout` without a byte taken the client is dropped and the backend freed."""
    fake_vllm.play(Send(STREAM_HEAD), Flood(FLOOD, 50_000))
    running = await gateway(fake_vllm, backend={"timeout": "200ms"})
    client = await running.client(receive_buffer=4096)
    client.send(client.request(STREAM))
    await client.head()
    await until(lambda: fake_vllm.posts[0].gone.is_set(), 3)
    await running.quiet()
    line = running.log_lines()[-1]
    assert (line["status"], line["error_code"], line["ended_by"]) == (200, "client_too_slow", "client")


async def test_slow_but_steady_client_is_kept(fake_vllm, gateway):
    """A client that takes a little now and then is slow and not gone, however long it stays behind."""
    fake_vllm.play(Send(STREAM_HEAD), Flood(FLOOD, 200), Send(chunk(DONE) + LAST_CHUNK))
    running = await gateway(fake_vllm, backend={"timeout": "200ms"})
    client = await running.client(receive_buffer=4096)
    connection = await with_small_buffer(running)
    client.send(client.request(STREAM))
    await client.head()
    size = 0
    for _ in range(16):
        await asyncio.sleep(0.03)
        assert connection.writing_paused  # all the time: nothing but the shrinking of the buffer shows progress
        size += len(await client.reader.readexactly(4096))
    data = b""
    while not data.endswith(LAST_CHUNK):
        data = await client.reader.read(65536)
        size += len(data)
    assert size > 200 * len(token_event("x" * 4000))
    assert running.log_lines()[-1]["error_code"] is None


async def with_small_buffer(running):
    """The gateway's side of the only client, whose kernel buffer from now on holds next to nothing."""
    await until(lambda: bool(running.open_side.connections))
    (connection,) = running.open_side.connections
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return connection


async def test_pipelining_client_that_does_not_read(fake_vllm, gateway):
    """The next request waits until the client has taken its answer: two requests do not get around the bound."""
    fake_vllm.play(Send(json_answer({"x": "y" * 100_000})))
    fake_vllm.play(Send(STREAM_HEAD), Flood(FLOOD, 10_000), Send(chunk(DONE) + LAST_CHUNK))
    running = await gateway(fake_vllm)
    client = await running.client(receive_buffer=4096)
    connection = await with_small_buffer(running)
    client.send(client.request(CHAT) + client.request(STREAM))
    await until(lambda: connection.writing_paused)
    await running.quiet()
    await asyncio.sleep(0.05)
    assert len(fake_vllm.posts) == 1
    assert connection.transport.get_write_buffer_size() < 100_000 + 1000
    assert (await client.answer()).whole
    await client.head()
    size = 0
    while data := await client.chunk():
        size += len(data)
    assert size == 10_000 * len(token_event("x" * 4000)) + len(DONE)


# -- clients that leave --------------------------------------------------------------------------------------------

# Two milliseconds on an idle machine. No timer that could end the request instead is shorter than 5 s.
PROMPTLY = 4.0

PHASES = {
    "before the head": ((Hang(),), STREAM, False),
    "before the first event": ((Send(STREAM_HEAD), Hang()), STREAM, False),
    "mid-stream": ((Send(STREAM_HEAD + chunk(token_event())), Hang()), STREAM, True),
    "not streamed, before the head": ((Hang(),), CHAT, False),
    "not streamed, in the body": (
        (Send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"), Hang()),
        CHAT,
        True,
    ),
}


@pytest.mark.parametrize("leave", ["reset", "close", "half_close"], ids=["RST", "FIN", "half-close"])
@pytest.mark.parametrize(("steps", "body", "headed"), PHASES.values(), ids=PHASES)
async def test_client_leaves(fake_vllm, gateway, steps, body, headed, leave):
    """The upstream connection ends at once, in every phase, and everything is given back."""
    fake_vllm.play(*steps)
    running = await gateway(fake_vllm)
    client = await running.client()
    client.send(client.request(body))
    await until(lambda: bool(fake_vllm.posts))
    if headed:
        await client.head()
    left_at = asyncio.get_running_loop().time()
    getattr(client, leave)()
    await until(fake_vllm.posts[0].gone.is_set)
    gone_at = fake_vllm.posts[0].gone_at
    assert gone_at is not None
    assert gone_at - left_at < PROMPTLY
    await running.quiet()
    line = running.log_lines()[-1]
    assert (line["ended_by"], line["error_code"]) == ("client", "client_left")
    assert line["status"] == (200 if headed else 499)
    phase = "streaming" if headed else "waiting"
    assert running.metric(f'aiaas_aborts_total{{phase="{phase}"}}') == 1
    (endpoint,) = running.endpoints()
    assert (endpoint.pool.inflight, endpoint.failures, endpoint.streams) == (0, 0, set())
    assert not any(connection.listener for connection in running.open_side.connections)


# -- the drain deadline --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "body", "status"),
    [
        ((Send(STREAM_HEAD + chunk(token_event())), Hang()), STREAM, 200),
        ((Send(STREAM_HEAD), Hang()), STREAM, 503),
        ((Hang(),), CHAT, 503),
    ],
    ids=["mid-stream", "before the first event", "before the head"],
)
async def test_drain_deadline(fake_vllm, gateway, steps, body, status):
    """At the drain deadline a begun stream ends with an error event; a client without a byte gets an error answer."""
    fake_vllm.play(*steps)
    running = await gateway(fake_vllm)
    client = await running.client()
    client.send(client.request(body))
    await until(lambda: bool(fake_vllm.posts))
    if status == 200:
        await until(lambda: any(connection.listener.committed for connection in running.open_side.connections))
    else:
        await asyncio.sleep(0.02)
    running.gateway.end_requests()
    got = await client.answer()
    assert (got.status, got.whole) == (status, True)
    error = errors_in(got.body)[0] if status == 200 else got.json["error"]
    assert error["code"] == "draining"
    await until(fake_vllm.posts[0].gone.is_set)
