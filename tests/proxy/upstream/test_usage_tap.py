"""aiaas.proxy.upstream.usage_tap: a request's charge, from the usage in its answer, through the gateway."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from aiaas.proxy.telemetry.record import Record
from aiaas.proxy.upstream.usage_tap import StreamTap, split_events
from tests.fakes.vllm import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    FakeVllm,
    Hang,
    Reset,
    Send,
    SendSlowly,
    Step,
    Wait,
    answer,
    chunk,
    json_answer,
    stream,
    token_event,
    usage_event,
)
from tests.proxy.conftest import Running, StartGateway
from tests.proxy.end_table import ENDS, MESSAGES, MESSAGES_STREAM, RESPONSES, RESPONSES_STREAM, Ending, text_event

CHAT: dict[str, Any] = {"model": "m", "messages": []}
STREAM = CHAT | {"stream": True}
USAGE = {"prompt_tokens": 911, "completion_tokens": 200, "total_tokens": 1111}
LOGPROBS = [{str(token): {"logprob": -1.5, "rank": 1, "decoded_token": '"}'} for token in range(20)}] * 2000


@pytest.mark.parametrize("end", ENDS, ids=lambda end: f"{end.path}: {end.ends_with}")
def test_ends_are_known_event_by_event(end: Ending) -> None:
    """However the events fall into reads: each on its own is the other case."""
    tap = StreamTap(Record("id", end.path, 0.0, "c"), end.choices, {}, strip_usage=False)
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
    "not JSON": answer(200, b"\x00\x01", content_type="application/octet-stream"),
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
    """Tokens that cannot be found were not zero; they are estimated."""
    fake_vllm.play(Send(response), Reset())
    running = await gateway(fake_vllm)
    await (await running.client()).post(CHAT | {"max_tokens": 30, "n": 2})
    await running.quiet()
    taken, given, estimated = told(running)
    assert (0 < taken < 40, given, estimated) == (True, 60, 60)


async def test_timeout_in_the_engine_costs_the_input(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """The engine has read the input, and may have written; such a request was once free."""
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
    """As whole streams taught, also after a reload and for an alias; 489 were generated, 61 were once charged."""
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
    """The frame of a response or a message is without tokens: 7 were charged for 3."""
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
    """An event before it goes on at once and does not count; a stream without any has no first token."""
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


SIGNED = b',"system_fingerprint":"vllm-0.32.0-b2074354"}\n\n'
CHAT_PATH, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def chunk_of(index: int, text: str, reason: str | None = None, **more: Any) -> bytes:
    """One event of a chat as vLLM writes it."""
    choice = {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": reason, "token_ids": None}
    return b"data: " + json.dumps({"choices": [choice]} | more, separators=(",", ":")).encode() + b"\n\n"


def signed(event: bytes) -> bytes:
    """The event with vLLM's fingerprint, which has the last place in it."""
    return event.removesuffix(b"}\n\n") + SIGNED


FIRST, TOKEN, OTHER = chunk_of(0, "a"), chunk_of(0, "b"), chunk_of(1, "c")
END, OTHER_END = chunk_of(0, "d", "length"), chunk_of(1, "e", "stop")
USED = signed(usage_event())
HAS_ONE = chunk_of(0, "d", "stop", system_fingerprint="fp_theirs")
EVERY = chunk_of(0, "d", "stop", usage=USAGE)
BEAM = b'data: {"choices":[{"index":0,"text":"x","finish_reason":"length"}],"usage":{"prompt_tokens":1}}\n\n'
# Path, choices, what vLLM sends where it is asked for usage, and what it sends where it is not.
UNASKED: dict[str, tuple[str, int, list[bytes], list[bytes]]] = {
    "a chat": (CHAT_PATH, 1, [FIRST, TOKEN, END, USED, DONE], [FIRST, TOKEN, signed(END), DONE]),
    "a completion": (
        COMPLETIONS, 1, [text_event(), text_event("stop"), USED, DONE], [text_event(), signed(text_event("stop")), DONE]
    ),
    "an only event": (COMPLETIONS, 1, [text_event("length"), USED, DONE], [signed(text_event("length")), DONE]),
    "two choices that end together": (
        CHAT_PATH, 2, [FIRST, OTHER, END, OTHER_END, USED, DONE], [FIRST, OTHER, signed(END), signed(OTHER_END), DONE]
    ),
    "two choices that end apart": (
        CHAT_PATH, 2, [FIRST, OTHER, END, OTHER, OTHER, OTHER_END, USED, DONE],
        [FIRST, OTHER, END, OTHER, OTHER, signed(OTHER_END), DONE],
    ),
    "no fingerprint": (CHAT_PATH, 1, [FIRST, END, usage_event(), DONE], [FIRST, END, DONE]),
    "a fingerprint that is null": (
        CHAT_PATH, 1, [FIRST, END, USED.replace(b'"vllm-0.32.0-b2074354"', b"null"), DONE], [FIRST, END, DONE]
    ),
    "a fingerprint on every event": (CHAT_PATH, 1, [HAS_ONE, USED, DONE], [HAS_ONE, DONE]),
    "no usage, whatever is asked": (CHAT_PATH, 1, [FIRST, END, DONE], [FIRST, END, DONE]),
    "usage on every event, whatever is asked": (
        CHAT_PATH, 1, [FIRST, EVERY, USED, DONE], [FIRST, EVERY, USED, DONE]
    ),
    "a whole answer as one event": (COMPLETIONS, 1, [BEAM, DONE], [BEAM, DONE]),
    "other line ends": (
        CHAT_PATH, 1, [event.replace(b"\n", b"\r\n") for event in (FIRST, END, USED, DONE)],
        [event.replace(b"\n", b"\r\n") for event in (FIRST, signed(END), DONE)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", [10**9, 1, 0], ids=["one read", "byte by byte", "event by event"])
@pytest.mark.parametrize(("path", "choices", "sent", "wanted"), UNASKED.values(), ids=UNASKED)
async def test_stream_without_usage_is_as_vllm_writes_it(
    fake_vllm: FakeVllm, gateway: StartGateway, path: str, choices: int, sent: list[bytes], wanted: list[bytes],
    size: int,
) -> None:  # fmt: skip
    """Although we asked for usage, which moves the fingerprint into an event that the client does not get."""
    steps: list[Step] = [SendSlowly(stream(*sent), size=size)] if size else [Send(STREAM_HEAD)]
    if not size:
        steps += [SendSlowly(chunk(event), size=10**9, pause=0.001) for event in sent] + [Send(LAST_CHUNK)]
    fake_vllm.play(*steps)
    running = await gateway(fake_vllm)
    got = await (await running.client()).post(STREAM | {"n": choices, "prompt": "x"}, path=path)
    assert (got.body, got.whole) == (b"".join(wanted), True)
    if len(sent) > len(wanted):
        assert told(running) == (18, 5, 0)


async def test_choice_that_ends_early_has_the_fingerprint_too(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """That of the server's last stream, until it may be another server; the last choice has its own stream's."""
    apart = [FIRST, OTHER, END, OTHER, OTHER_END]
    running = await gateway(fake_vllm)
    client = await running.client()
    for _ in range(3):
        fake_vllm.play(Send(stream(*apart, USED, DONE)))
    fake_vllm.play(Send(stream(*apart, USED.replace(b"b2074354", b"new"), DONE)))
    got = [(await client.post(STREAM | {"n": 2})).body.split(b"\n\n") for _ in range(2)]
    running.endpoints()[0].pool.drop_idle()
    got += [(await client.post(STREAM | {"n": 2})).body.split(b"\n\n") for _ in range(2)]
    assert [events[2] + b"\n\n" for events in got] == [END, signed(END), END, signed(END)]
    last = [events[4] + b"\n\n" for events in got]
    assert last == [signed(OTHER_END)] * 3 + [signed(OTHER_END).replace(b"b2074354", b"new")]


@pytest.mark.parametrize("end", [Reset(), Send(LAST_CHUNK)], ids=["reset", "clean end"])
async def test_end_that_waits_for_usage_is_not_lost(fake_vllm: FakeVllm, gateway: StartGateway, end: Step) -> None:
    """Without a following event, it goes to the client as it is."""
    fake_vllm.play(Send(STREAM_HEAD + chunk(FIRST)), SendSlowly(chunk(END), size=10**9, pause=0.01), end)
    got = await (await (await gateway(fake_vllm)).client()).post(STREAM)
    assert got.body.startswith(FIRST + END)
    assert (got.body == FIRST + END) == isinstance(end, Send)


async def test_tokens_do_not_overtake_a_choice_that_ended(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """The event waits for the next one, and no longer."""
    fake_vllm.play(
        Send(STREAM_HEAD + chunk(FIRST + OTHER)), Wait(ended := asyncio.Event()), Send(chunk(END)),
        Wait(go := asyncio.Event()), Send(chunk(OTHER)), Hang(),
    )  # fmt: skip
    client = await (await gateway(fake_vllm)).client()
    client.send(client.request(STREAM | {"n": 2}))
    await client.head()
    assert await client.chunk() == FIRST + OTHER
    ended.set()
    await asyncio.sleep(0.05)
    go.set()
    assert await client.chunk() == END + OTHER
