"""aiaas.proxy.upstream.send_form: a form passes while it comes; its answer, ends and retries, over real sockets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from aiaas.openai.paths import TRANSCRIPTIONS, TRANSLATIONS
from aiaas.proxy.request.price import BYTES_A_SECOND, TOKENS_A_SECOND
from tests.fakes.vllm import DONE, STREAM_HEAD, FakeVllm, Hang, Send, Step, chunk, json_answer
from tests.proxy.conftest import Raw, Running, StartFake, StartGateway
from tests.proxy.forms import AUDIO, LARGE, SMALL, TYPE, error, file_first, form, model_first, post
from tests.waiting import until

BEGIN = model_first(LARGE)[:300]
LAST_CHUNK = b"0\r\n\r\n"


async def begin(running: Running, announced: int = 500 * 1024**2, body: bytes = BEGIN) -> Raw:
    """A client that has sent the beginning of a large form."""
    client = await running.client()
    client.send(
        client.request(body, path=TRANSCRIPTIONS, headers={"Content-Type": TYPE, "Content-Length": str(announced)})
    )
    return client


LARGE_SERVER = {"max_upload_size": "1GiB"}


async def test_form_goes_on_while_it_comes(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The first bytes of the file arrive while the client still has the others."""
    running = await gateway(fake_vllm, backend=AUDIO)
    body = model_first(LARGE)
    client = await begin(running, len(body))
    await until(lambda: fake_vllm.connections and fake_vllm.connections[0].buffer.endswith(BEGIN[-50:-40]) is not None)
    await until(lambda: BEGIN[:250] in fake_vllm.connections[0].buffer)
    assert fake_vllm.posts == []
    client.send(body[len(BEGIN) :])
    assert (await client.answer()).status == 200
    assert fake_vllm.posts[0].body == body


async def test_slow_engine_stops_the_client(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Of a form of 500 MiB no more is taken than the buffers in between hold; then it goes on."""
    running = await gateway(fake_vllm, backend=AUDIO, server=LARGE_SERVER)
    client = await begin(running)
    await until(lambda: fake_vllm.connections and fake_vllm.connections[0].buffer)
    transport = fake_vllm.connections[0].transport
    assert transport is not None
    transport.pause_reading()
    sent = 0
    block = b"\x00" * 65536
    try:
        while sent < 200 * 1024**2:
            client.send(block)
            async with asyncio.timeout(0.5):
                await client.writer.drain()
            sent += len(block)
    except TimeoutError:
        pass
    assert sent < 30 * 1024**2  # mostly the kernel's buffers on loopback, up to 6 MiB for each of four
    transport.resume_reading()
    async with asyncio.timeout(2):
        await client.writer.drain()


async def test_client_that_leaves_ends_the_form_at_the_engine(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """In the middle of the upload; it costs a request and no tokens."""
    running = await gateway(fake_vllm, backend=AUDIO, server=LARGE_SERVER)
    client = await begin(running)
    await until(lambda: fake_vllm.connections and fake_vllm.connections[0].buffer)
    client.reset()
    async with asyncio.timeout(1):
        await fake_vllm.connections[0].gone.wait()
    await running.quiet()
    line = running.log_lines()[-1]
    assert (line["status"], line["ended_by"], line["input_tokens"]) == (499, "client", 0)


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["held", "passed on"])
async def test_client_that_leaves_ends_the_transcription(
    gateway: StartGateway, fake_vllm: FakeVllm, content: bytes
) -> None:
    """After the form has gone, before the answer."""
    running = await gateway(fake_vllm, backend=AUDIO)
    fake_vllm.play(Hang())
    body = model_first(content)
    client = await begin(running, len(body), body)
    await until(lambda: fake_vllm.posts)
    client.reset()
    async with asyncio.timeout(1):
        await fake_vllm.posts[0].gone.wait()
    await running.quiet()
    assert running.log_lines()[-1]["input_tokens"] == -(-len(body) * TOKENS_A_SECOND // BYTES_A_SECOND)


@pytest.mark.parametrize(
    ("server", "says"),
    [({"body_timeout": "100ms"}, "stopped"), ({"body_total_timeout": "100ms"}, "did not arrive within")],
    ids=["silence", "in all"],
)
@pytest.mark.parametrize("body", [BEGIN, file_first(LARGE)[: 2 * 1024**2]], ids=["sent", "sent without a model"])
async def test_client_that_stops_sending_is_refused(
    gateway: StartGateway, fake_vllm: FakeVllm, server: dict[str, str], says: str, body: bytes
) -> None:
    """By the bounds of other bodies; the engine's connection ends."""
    running = await gateway(fake_vllm, backend={**AUDIO, "timeout": "50ms"}, server={**LARGE_SERVER, **server})
    client = await begin(running, body=body)
    got = await client.answer()
    assert error(got)[:2] == (408, "request_timeout")
    assert says in got.json["error"]["message"]
    assert got.header("connection") == "close"
    async with asyncio.timeout(1):
        await fake_vllm.connections[0].gone.wait()


async def test_client_that_trickles_is_refused(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """By the least rate, however often it sends a byte."""
    server = {**LARGE_SERVER, "body_timeout": "100ms", "min_body_rate": "1MiB"}
    running = await gateway(fake_vllm, backend=AUDIO, server=server)
    client = await begin(running)

    async def trickle() -> None:
        while True:
            client.send(b"\x00")
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    got = await client.answer()
    trickling.cancel()
    assert error(got)[:2] == (408, "request_timeout")


@pytest.mark.parametrize("status", [400, 200], ids=["an error", "a success"])
@pytest.mark.parametrize("more", [b"", LARGE], ids=["at its beginning", "later"])
async def test_answer_before_the_forms_end_ends_the_upload(
    gateway: StartGateway, fake_vllm: FakeVllm, status: int, more: bytes
) -> None:
    """As a proxy in between gives it. The client gets it, and neither connection is used again."""
    running = await gateway(fake_vllm, backend=AUDIO, server=LARGE_SERVER)
    client = await begin(running)
    client.send(more)
    await until(lambda: fake_vllm.connections and len(fake_vllm.connections[0].buffer) > len(more))
    fake_vllm.connections[0].write(json_answer({"early": True}, status=status))
    got = await client.answer()
    assert (got.status, got.json) == (status, {"early": True})
    assert got.header("connection") == "close"
    async with asyncio.timeout(1):
        await fake_vllm.connections[0].gone.wait()


async def test_form_that_has_gone_on_holds_no_memory(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The held beginning is forgotten with the first read behind it; at the end, nothing is read for the key."""
    running = await gateway(fake_vllm, backend=AUDIO)
    fake_vllm.play(Hang())
    body = file_first(LARGE)
    client = await begin(running, len(body), body[: 2 * 1024**2])
    await until(lambda: fake_vllm.connections and running.gateway.bodies.held == 0)
    [share] = running.gateway.bodies._shares.values()
    assert share.reading == 1
    client.send(body[2 * 1024**2 :])
    await until(lambda: fake_vllm.posts)
    assert share.reading == 0


async def test_form_that_comes_slowly_holds_up_nobody(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Its sound does not count for `max_pending_prefill`."""
    running = await gateway(fake_vllm, backend={**AUDIO, "max_inflight": 4}, server=LARGE_SERVER)
    await begin(running, body=model_first(LARGE, "m", STREAM)[:2000])
    await until(lambda: fake_vllm.connections)
    got = await post(await running.client(), model_first(SMALL))
    assert got.status == 200
    assert got.header("x-aiaas-queue-position") is None


async def test_engine_that_takes_nothing_times_out(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """It is silent for `timeout`, while the client could send."""
    running = await gateway(fake_vllm, backend={**AUDIO, "timeout": "300ms"}, server=LARGE_SERVER)
    client = await begin(running)
    await until(lambda: fake_vllm.connections and fake_vllm.connections[0].buffer)
    transport = fake_vllm.connections[0].transport
    assert transport is not None
    transport.pause_reading()
    client.send(b"\x00" * 64 * 1024**2)
    got = await client.answer()
    assert error(got)[:2] == (504, "upstream_timeout")


async def test_engine_that_dies_in_the_upload_is_a_502(gateway: StartGateway, fake_vllms: StartFake) -> None:
    """The form is not held, so it is not sent to the other endpoint."""
    one, two = await fake_vllms(), await fake_vllms()
    running = await gateway(one, two, backend=AUDIO, server=LARGE_SERVER)
    client = await begin(running)
    client.send(LARGE)
    await until(lambda: one.connections or two.connections)
    fake = one if one.connections else two
    await until(lambda: len(fake.connections[0].buffer) > 2 * 1024**2)
    fake.connections[0].reset()
    got = await client.answer()
    assert error(got)[:2] == (502, "upstream_error")
    assert len(one.connections) + len(two.connections) == 1


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["held", "large"])
async def test_endpoint_that_refuses_connections_is_passed_over(
    gateway: StartGateway, fake_vllms: StartFake, content: bytes
) -> None:
    """Nothing has been sent to it, whatever the form's size."""
    down, up = await fake_vllms(), await fake_vllms()
    await down.down()
    running = await gateway(down, up, backend={**AUDIO, "balance": "round_robin"})
    for _ in range(2):
        assert (await post(await running.client(), model_first(content))).status == 200
    assert [received.body for received in up.posts] == [model_first(content)] * 2
    assert running.metric('aiaas_retries_total{reason="connect"}') == 1


async def test_busy_engine_is_asked_again_while_the_form_is_held(gateway: StartGateway, fake_vllms: StartFake) -> None:
    """The whole form a second time, at the other endpoint."""
    one, two = await fake_vllms(), await fake_vllms()
    for fake in (one, two):
        fake.play(Send(json_answer({"error": {"message": "busy"}}, status=503)))
    running = await gateway(one, two, backend={**AUDIO, "max_retries": 2})
    assert (await post(await running.client(), model_first(SMALL, "alias"))).status == 200
    bodies = [received.body for received in (*one.posts, *two.posts)]
    assert bodies == [model_first(SMALL)] * 3


async def test_busy_engine_is_not_asked_again_with_a_spent_form(gateway: StartGateway, fake_vllms: StartFake) -> None:
    """Its answer goes to the client, which may try again."""
    one, two = await fake_vllms(), await fake_vllms()
    for fake in (one, two):
        fake.default = (Send(json_answer({"error": {"message": "busy"}}, status=503)),)
    running = await gateway(one, two, backend=AUDIO)
    got = await post(await running.client(), model_first(LARGE))
    assert got.status == 503
    assert got.header("x-should-retry") is None
    assert len(one.posts) + len(two.posts) == 1
    await running.quiet()
    assert running.log_lines()[-1]["retries"] == 0


async def test_drain_deadline_ends_an_upload(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """With a 503, and the engine's connection."""
    running = await gateway(fake_vllm, backend=AUDIO, server=LARGE_SERVER)
    client = await begin(running)
    await until(lambda: fake_vllm.connections and fake_vllm.connections[0].buffer)
    running.gateway.refuse()
    running.gateway.end_requests()
    assert error(await client.answer())[:2] == (503, "draining")
    async with asyncio.timeout(1):
        await fake_vllm.connections[0].gone.wait()


# -- answers -------------------------------------------------------------------------------------------------------


def event(text: str, **choice: Any) -> bytes:
    """A stream's event as vLLM 0.32 writes it: without the fields that are not set."""
    told: dict[str, Any] = {"id": "trsc-1", "object": "transcription.chunk", "created": 1, "model": "m"}
    told["choices"] = [{"delta": {"content": text}, **choice}]
    return f"data: {json.dumps(told, separators=(',', ':'))}\n\n".encode()


FINISH: dict[str, Any] = {"finish_reason": "stop", "stop_reason": None}
EVENTS = (event("a"), event(" b"), event("", **FINISH), event(" c"), event(" d"), event("", **FINISH))
USAGE = (
    b'data: {"id":"trsc-1","object":"transcription.chunk","created":1,"choices":[],"model":"m",'
    b'"usage":{"prompt_tokens":310,"total_tokens":317,"completion_tokens":7}}\n\n'
)


def streamed(*events: bytes) -> tuple[Step, ...]:
    """A stream, each event a chunk."""
    return (Send(STREAM_HEAD), *(Send(chunk(each)) for each in events), Send(LAST_CHUNK))


STREAM = ("stream", b"true")
OPTION = ("stream_include_usage", b"true")


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["held", "passed on"])
@pytest.mark.parametrize("late", [False, True], ids=["before the file", "behind the file"])
async def test_usage_of_a_stream_is_asked_for_and_taken_out(
    gateway: StartGateway, fake_vllm: FakeVllm, content: bytes, late: bool
) -> None:
    """The client gets what it would have got without the gateway, and pays what vLLM counted."""
    running = await gateway(fake_vllm, backend={**AUDIO, "max_inflight": 4})
    fake_vllm.play(*streamed(*EVENTS, USAGE, DONE))
    parts = [("file", content, "a.wav"), STREAM] if late else [STREAM, ("file", content, "a.wav")]
    parts = [*parts, ("model", b"m")] if late else [("model", b"m"), *parts]
    got = await post(await running.client(), form(*parts))
    assert got.body == b"".join((*EVENTS, DONE))
    assert fake_vllm.posts[0].body == form(*parts, OPTION)
    await running.quiet()
    line = running.log_lines()[-1]
    assert (line["input_tokens"], line["output_tokens"]) == (310, 7)


async def test_usage_that_the_client_asked_for_stays(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Nothing is added to its form, and nothing taken out of its stream."""
    running = await gateway(fake_vllm, backend=AUDIO)
    fake_vllm.play(*streamed(*EVENTS, USAGE, DONE))
    body = model_first(LARGE, "m", STREAM, OPTION)
    got = await post(await running.client(), body)
    assert got.body == b"".join((*EVENTS, USAGE, DONE))
    assert fake_vllm.posts[0].body == body
    await running.quiet()
    assert running.log_lines()[-1]["output_tokens"] == 7


async def test_stream_behind_a_file_with_a_length_is_left_alone(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Nothing can be added to a form whose length has gone out; the price is estimated."""
    running = await gateway(fake_vllm, backend=AUDIO)
    fake_vllm.play(*streamed(*EVENTS, DONE))
    body = form(("model", b"m"), ("file", LARGE, "a.wav"), STREAM)
    got = await post(await running.client(), body)
    assert got.body == b"".join((*EVENTS, DONE))
    assert fake_vllm.posts[0].body == body
    assert fake_vllm.posts[0].headers["content-length"] == str(len(body))
    await running.quiet()
    assert running.log_lines()[-1]["output_tokens"] == len(EVENTS)


async def test_stream_that_ends_within_the_sound_is_broken(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Each half minute has a finish_reason; only `[DONE]` ends them all."""
    running = await gateway(fake_vllm, backend=AUDIO)
    fake_vllm.play(*streamed(*EVENTS[:4]))
    got = await post(await running.client(), model_first(SMALL, "m", STREAM))
    assert got.body.startswith(b"".join(EVENTS[:4]))
    assert b'"code":"upstream_error"' in got.body.replace(b": ", b":")
    await running.quiet()
    assert running.log_lines()[-1]["error_code"] == "upstream_error"


@pytest.mark.parametrize(
    ("told", "tokens"),
    [
        ({"text": "hello", "usage": {"type": "duration", "seconds": 3}}, 300),
        ({"duration": 2.5, "language": "en", "text": "hello", "segments": [{"duration": 9}] * 9000}, 250),
        (
            {"text": "hello", "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 5, "total_tokens": 19}},
            14,
        ),
        ({"text": "hello"}, None),
        ("1\n00:00 --> 00:01\nhello", None),
    ],
    ids=["seconds", "in detail", "tokens", "nothing", "subtitles"],
)
async def test_transcription_costs_its_sound_and_its_text(
    gateway: StartGateway, fake_vllm: FakeVllm, told: object, tokens: int | None
) -> None:
    """A second is 100 tokens, as vLLM counts for Whisper; without its seconds, from the form's bytes."""
    running = await gateway(fake_vllm, backend=AUDIO)
    fake_vllm.play(Send(json_answer(told)))
    body = model_first(LARGE)
    got = await post(await running.client(), body, path=TRANSLATIONS)
    assert got.json == told
    await running.quiet()
    line = running.log_lines()[-1]
    expected = -(-len(body) * TOKENS_A_SECOND // BYTES_A_SECOND) if tokens is None else tokens
    assert line["input_tokens"] == expected
    assert line["output_tokens"] == (5 if tokens == 14 else -(-len(got.body) // 4))
    assert (line["model"], line["request_bytes"], line["endpoint"]) == ("m", len(body), TRANSLATIONS)


async def test_engines_refusal_costs_no_tokens(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """It goes through unchanged: vLLM 0.32 does not write subtitles."""
    running = await gateway(fake_vllm, backend=AUDIO)
    told = {"error": {"message": "Currently only support response_format: ...", "code": 400}}
    fake_vllm.play(Send(json_answer(told, status=400)))
    got = await post(await running.client(), model_first(LARGE, "m", ("response_format", b"srt")))
    assert (got.status, got.json) == (400, told)
    await running.quiet()
    assert not running.log_lines()[-1]["input_tokens"]
