"""Answers that call a tool, as the official SDKs read them: streamed and whole, on each path."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI

from aiaas.httpclient.answer import PlainAnswer
from aiaas.httpclient.client import HttpClient
from aiaas.httpclient.target import parse_target
from aiaas.openai.sse import EventSplitter, event_data
from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import SimulatorHandle, running_simulator

PROMPT = 'aiaas-simulator: call weather {"city": "Graz", "days": [1, 2]}'
ARGUMENTS = {"city": "Graz", "days": [1, 2]}
PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


@pytest.fixture
async def server() -> AsyncIterator[SimulatorHandle]:
    async with running_simulator(SimulatorOptions(models=("m",), ttft=0, itl=0, auto_tool_choice=True)) as running:
        yield running


@pytest.fixture
async def sdk(server: SimulatorHandle) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=5, max_retries=0) as client:
        yield client


CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": PROMPT}],
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}],
}
RESPONSES: dict[str, Any] = {
    "model": "m",
    "input": PROMPT,
    "tools": [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}],
}


async def test_chat_calls_the_tool(sdk: AsyncOpenAI) -> None:
    """The whole answer has `tool_calls`, and the finish reason of that name."""
    [choice] = (await sdk.chat.completions.create(**CHAT)).choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", ARGUMENTS)


async def test_streamed_chat_calls_the_tool(sdk: AsyncOpenAI) -> None:
    """The SDK puts the call together from its pieces."""
    async with sdk.chat.completions.stream(**CHAT) as stream:
        [choice] = (await stream.get_final_completion()).choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", ARGUMENTS)


async def test_responses_call_the_tool(sdk: AsyncOpenAI) -> None:
    """The output is an item of type `function_call`."""
    [item] = (await sdk.responses.create(**RESPONSES)).output
    assert item.type == "function_call"
    assert (item.name, json.loads(item.arguments), item.status) == ("weather", ARGUMENTS, "completed")


async def test_streamed_responses_call_the_tool(sdk: AsyncOpenAI) -> None:
    """The item is announced, its arguments come in pieces, and the end repeats them."""
    kinds, deltas, item = [], "", None
    async for event in await sdk.responses.create(**RESPONSES, stream=True):
        kinds.append(event.type)
        if event.type == "response.function_call_arguments.delta":
            deltas += event.delta
        if event.type == "response.output_item.done":
            item = event.item
    assert json.loads(deltas) == ARGUMENTS
    assert item is not None
    assert item.type == "function_call"
    assert item.arguments == deltas
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-3:] == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_messages_call_the_tool(server: SimulatorHandle, stream: bool) -> None:
    """Anthropic's shape: a block of type `tool_use`, and the stop reason of that name."""
    tools = [{"name": "weather", "input_schema": PARAMETERS}]
    fields = {"model": "m", "max_tokens": 5, "messages": CHAT["messages"], "tools": tools, "stream": stream}
    body = json.dumps(fields).encode()
    client = HttpClient(parse_target(server.url))
    head = client.target.head("POST", "/v1/messages", None)
    answer = PlainAnswer()
    await client.send(
        head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body, answer, 5
    )
    client.close()
    if not stream:
        message = json.loads(answer.content)
        [block] = message["content"]
        assert (block["type"], block["name"], block["input"]) == ("tool_use", "weather", ARGUMENTS)
        assert message["stop_reason"] == "tool_use"
        return
    events = [json.loads(event_data(event) or b"{}") for event in EventSplitter().feed(answer.content)]
    assert events[1]["content_block"] == {
        **events[1]["content_block"],
        "type": "tool_use",
        "name": "weather",
        "input": {},
    }
    pieces = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert json.loads("".join(pieces)) == ARGUMENTS
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
