"""aiaas.proxy.upstream.relay and tap: which ends of a stream are whole, and the client's answer where one is cut."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.fakes.vllm import LAST_CHUNK, STREAM_HEAD, FakeVllm, Send, chunk
from tests.proxy.conftest import Running, StartGateway
from tests.proxy.end_table import CHAT, COMPLETIONS, ENDS, MESSAGES, RESPONSES, Ending

CUT = [end for end in ENDS if not end.whole]
EACH = pytest.mark.parametrize("end", ENDS, ids=lambda end: f"{end.path}: {end.ends_with}")


def body_of(end: Ending) -> dict[str, Any]:
    """A request to which the events could be the answer, whose client sees all of them."""
    body: dict[str, Any] = {"model": "m", "messages": [], "input": "x", "prompt": "x", "max_tokens": 5, "stream": True}
    if end.path in (CHAT, COMPLETIONS):
        body |= {"n": end.choices, "stream_options": {"include_usage": True}}
    return body


def play(fake: FakeVllm, end: Ending) -> None:
    """Answer the next request with these events and a clean end."""
    fake.play(Send(STREAM_HEAD + b"".join(map(chunk, end.events)) + LAST_CHUNK))


@EACH
async def test_clean_end_whole_or_not(fake_vllm: FakeVllm, gateway: StartGateway, end: Ending) -> None:
    """A stream that is not whole ends with an error event in the form of its path, and counts as an error."""
    play(fake_vllm, end)
    running = await gateway(fake_vllm)
    got = await (await running.client()).post(body_of(end), path=end.path)
    assert (got.status, got.whole) == (200, True)
    line = running.log_lines()[-1]
    assert (line["error_code"], line["ended_by"]) == (None if end.whole else "upstream_error", "upstream")
    outcome = "success" if end.whole else "error"
    assert running.metric(f'inference_requests_total{{endpoint="{end.path}",model="m",status="{outcome}"}}') == 1
    sent = b"".join(end.events)
    if end.whole:
        assert got.body == sent
        return
    sent = sent[: sent.rfind(b"\n\n") + 2]
    assert got.body.startswith(sent)
    error = got.body.removeprefix(sent)
    if end.path in (RESPONSES, MESSAGES):
        assert error.startswith(b'event: error\ndata: {"type":"error","error":{"message":"')
    else:
        assert error.startswith(b'data: {"error":{"message":"')
    assert (error.count(b'"upstream_error"') >= 1, error.endswith(b"\n\n")) == (True, True)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
async def test_stream_without_any_event_is_a_502(fake_vllm: FakeVllm, gateway: StartGateway, path: str) -> None:
    """Nothing was sent yet, so the status can say it."""
    end = Ending(path, "nothing", (), whole=False)
    play(fake_vllm, end)
    running = await gateway(fake_vllm)
    got = await (await running.client()).post(body_of(end), path=path)
    assert (got.status, got.json["error"]["code"]) == (502, "upstream_error")
    assert running.endpoints()[0].failures == 0


async def read_all(running: Running, end: Ending) -> list[Any]:
    """The result in a program that uses the official SDK."""
    url = f"http://127.0.0.1:{running.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=running.key, max_retries=0) as sdk:
        ask: Any = {
            CHAT: lambda: sdk.chat.completions.create(model="m", messages=[], stream=True, n=end.choices),
            COMPLETIONS: lambda: sdk.completions.create(model="m", prompt="x", stream=True),
            RESPONSES: lambda: sdk.responses.create(model="m", input="x", stream=True),
        }[end.path]
        async with asyncio.timeout(10):
            return [event async for event in await ask()]


SDK_ENDS = [end for end in ENDS if end.path != MESSAGES and "error event" not in end.ends_with]


@pytest.mark.parametrize("end", SDK_ENDS, ids=lambda end: f"{end.path}: {end.ends_with}")
async def test_official_sdk_raises_on_a_cut_stream(fake_vllm: FakeVllm, gateway: StartGateway, end: Ending) -> None:
    """And on none that is whole."""
    play(fake_vllm, end)
    running = await gateway(fake_vllm)
    if end.whole:
        await read_all(running, end)
        return
    with pytest.raises(openai.APIError) as raised:
        await read_all(running, end)
    assert raised.value.code == "upstream_error"
