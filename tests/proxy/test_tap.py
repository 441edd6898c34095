"""aiaas.proxy.tap: what a request is charged with, by what its answer told, through the gateway."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from aiaas.proxy.record import Record
from aiaas.proxy.tap import StreamTap, split_events
from tests.fakes.vllm import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    FakeVllm,
    Hang,
    Reset,
    Send,
    SendSlowly,
    Wait,
    answer,
    chunk,
    json_answer,
    stream,
    token_event,
    usage_event,
)
from tests.proxy.conftest import Running, StartGateway
from tests.proxy.end_table import ENDS, MESSAGES, MESSAGES_STREAM, RESPONSES, RESPONSES_STREAM, Ending

CHAT: dict[str, Any] = {"model": "m", "messages": []}
STREAM = CHAT | {"stream": True}
USAGE = {"prompt_tokens": 911, "completion_tokens": 200, "total_tokens": 1111}
LOGPROBS = [{str(token): {"logprob": -1.5, "rank": 1, "decoded_token": '"}'} for token in range(20)}] * 2000


@pytest.mark.parametrize("end", ENDS, ids=lambda end: f"{end.path}: {end.ends_with}")
def test_ends_are_known_event_by_event(end: Ending) -> None:
    """However the events fall into reads: each alone is the other way in which they come."""
    tap = StreamTap(Record("id", end.path, 0.0, "c"), end.path, end.choices, strip_usage=False)
    for data in end.events:
        for event in split_events(data):
            assert tap.read(event) == event
    assert tap.whole == end.whole


def told(running: Running) -> tuple[int, int, float]:
    """Input and output of the last request, and how much output was estimated in all."""
    line = running.log_lines()[-1]
    estimated = running.metric('aiaas_tokens_estimated_total{model="m",type="output"}')
    return line["input_tokens"], line["output_tokens"], estimated


@pytest.mark.parametrize("size", [1000, 65536, 10**9], ids=["many reads", "some reads", "one write"])
@pytest.mark.parametrize("first", ["usage", "prompt_logprobs"])
async def test_usage_of_a_long_answer_is_found(
    fake_vllm: FakeVllm, gateway: StartGateway, first: str, size: int
) -> None:
    """vLLM writes megabytes of `prompt_logprobs` behind it; 911 and 200 were reported, 1159 and 0 charged."""
    body = {"usage": USAGE, "prompt_logprobs": LOGPROBS}
    ordered = {first: body[first], **body}
    fake_vllm.play(SendSlowly(json_answer({"choices": [], **ordered}), size=size, pause=0))
    running = await gateway(fake_vllm)
    got = await (await running.client()).post(CHAT)
    assert len(got.body) > 1024 * 1024
    assert told(running) == (911, 200, 0)


PACKED = gzip.compress(json.dumps({"usage": USAGE}).encode())
NO_USAGE = {
    "compressed": answer(200, PACKED, headers="content-encoding: gzip\r\n"),
    "not JSON": answer(200, b"<html>", content_type="text/html"),
    "broken off": json_answer({"usage": USAGE})[:-20],
    "without it": json_answer({"choices": []}),
    "in a text": json_answer({"choices": [{"message": {"content": json.dumps({"usage": USAGE})}}]}),
    "in a tool's schema": json_answer({"tools": [{"properties": {"usage": USAGE}}]}),
    "absurd": json_answer({"usage": USAGE | {"completion_tokens": 2**63}}),
    "negative": json_answer({"usage": USAGE | {"prompt_tokens": -1}}),
    "a stream, compressed": STREAM_HEAD[:-2] + b"content-encoding: gzip\r\n\r\n" + chunk(b"\x1f\x8b") + LAST_CHUNK,
}  # fmt: skip


@pytest.mark.parametrize("response", NO_USAGE.values(), ids=NO_USAGE)
async def test_unknown_usage_costs_what_was_reserved(
    fake_vllm: FakeVllm, gateway: StartGateway, response: bytes
) -> None:
    """What cannot be found was not nothing; it is an estimate."""
    fake_vllm.play(Send(response), Reset())
    running = await gateway(fake_vllm)
    await (await running.client()).post(CHAT | {"max_tokens": 30, "n": 2})
    await running.quiet()
    taken, given, estimated = told(running)
    assert (0 < taken < 40, given, estimated) == (True, 60, 60)


async def test_timeout_in_the_engine_costs_the_input(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """The engine has read it, and may have written; it was free."""
    fake_vllm.play(Hang())
    running = await gateway(fake_vllm, backend={"timeout": "100ms"})
    assert (await (await running.client()).post(CHAT)).status == 504
    taken, given, estimated = told(running)
    assert (0 < taken < 40, given, estimated) == (True, 0, 0)
    assert running.metric('aiaas_tokens_estimated_total{model="m",type="input"}') == taken


def events_of(tokens: int, per_event: int) -> list[bytes]:
    """A chat's output as `--stream-interval` cuts it: the first token at once."""
    sizes = [1] + [per_event] * ((tokens - 1) // per_event)
    sizes += [tokens - sum(sizes)] if tokens > sum(sizes) else []
    return [token_event("x" * size) for size in sizes]


@pytest.mark.parametrize("cut", ["client leaves", "backend breaks off", "clean end"])
@pytest.mark.parametrize("per_event", [1, 8])
async def test_cut_stream_is_charged_in_tokens(
    fake_vllm: FakeVllm, gateway: StartGateway, per_event: int, cut: str
) -> None:
    """As whole streams taught, also after a reload and for an alias; 489 were generated, 61 charged."""
    running = await gateway(fake_vllm)
    for tokens in (100, 250, 60):
        fake_vllm.play(Send(stream(*events_of(tokens, per_event), usage_event(5, tokens), DONE)))
        assert (await (await running.client()).post(STREAM)).status == 200
        assert told(running) == (5, tokens, 0)
    running.gateway.replace_plan(running.gateway.active.plan)
    sent = STREAM_HEAD + b"".join(map(chunk, events_of(489, per_event)))
    end = {"client leaves": Hang(), "backend breaks off": Reset(), "clean end": Send(LAST_CHUNK)}[cut]
    fake_vllm.play(Send(sent), Wait(go := asyncio.Event()), end)
    client = await running.client()
    client.send(client.request(STREAM | {"model": "alias"}))
    await client.head()
    size = 0
    while size < sum(map(len, events_of(489, per_event))):
        size += len(await client.chunk())
    if cut == "client leaves":
        client.reset()
    else:
        go.set()
        await client.ended()
    await running.quiet()
    assert running.log_lines()[-1]["output_tokens"] == pytest.approx(489, rel=0.05 if per_event > 1 else 0)


@pytest.mark.parametrize(
    ("path", "events"), [(RESPONSES, RESPONSES_STREAM), (MESSAGES, MESSAGES_STREAM)], ids=["responses", "messages"]
)
async def test_only_events_with_output_count(
    fake_vllm: FakeVllm, gateway: StartGateway, path: str, events: list[bytes]
) -> None:
    """The frame of a response or a message holds no tokens: 7 were charged for 3."""
    frame, text = events[0], events[1]
    fake_vllm.play(Send(STREAM_HEAD + b"".join(map(chunk, [frame, text, text, text]))), Reset())
    running = await gateway(fake_vllm)
    await (await running.client()).post(STREAM | {"input": "x", "max_tokens": 50}, path=path)
    assert told(running)[1:] == (3, 3)


FIRST_TEXT = {
    "chat": ("/v1/chat/completions", [token_event("")], token_event("x"), DONE),
    "responses": (RESPONSES, RESPONSES_STREAM[:1], RESPONSES_STREAM[1], RESPONSES_STREAM[2]),
    "messages": (MESSAGES, MESSAGES_STREAM[:1], MESSAGES_STREAM[1], MESSAGES_STREAM[3]),
}


@pytest.mark.parametrize(("path", "before", "text", "end"), FIRST_TEXT.values(), ids=FIRST_TEXT)
async def test_first_token_is_the_first_text(
    fake_vllm: FakeVllm, gateway: StartGateway, path: str, before: list[bytes], text: bytes, end: bytes
) -> None:
    """What comes before it goes on at once, and is none; a stream without any has no first token."""
    fake_vllm.play(
        Send(STREAM_HEAD + b"".join(map(chunk, before))), Wait(go := asyncio.Event()),
        Send(chunk(text)), Send(chunk(end) + LAST_CHUNK),
    )  # fmt: skip
    running = await gateway(fake_vllm)
    client = await running.client()
    body = STREAM | {"input": "x", "max_tokens": 50}
    client.send(client.request(body, path=path))
    await client.head()
    assert await client.chunk() == b"".join(before)
    await asyncio.sleep(0.1)
    go.set()
    while await client.chunk():
        pass
    await running.quiet()
    assert running.log_lines()[-1]["ttft_seconds"] > 0.1
    assert running.metric('aiaas_time_to_first_token_seconds_count{model="m"}') == 1
    fake_vllm.play(Send(stream(*before, end)))
    assert (await client.post(body, path=path)).whole
    assert running.log_lines()[-1]["ttft_seconds"] is None
    assert running.metric('aiaas_time_to_first_token_seconds_count{model="m"}') == 1


async def test_usage_on_every_event_of_a_cut_stream_is_exact(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """The client asked for `continuous_usage_stats`: the last event says all."""

    def event(count: int) -> bytes:
        usage = {"prompt_tokens": 18, "total_tokens": 18 + count, "completion_tokens": count}
        data = json.dumps({"choices": [{"delta": {"content": "#"}}], "usage": usage}, separators=(",", ":"))
        return f"data: {data}\n\n".encode()

    fake_vllm.play(Send(STREAM_HEAD + b"".join(chunk(event(8 * number)) for number in range(1, 6))), Reset())
    running = await gateway(fake_vllm)
    await (await running.client()).post(STREAM | {"stream_options": {"include_usage": True}})
    assert told(running) == (18, 40, 0)
