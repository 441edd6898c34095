"""Answers of a real vLLM that are cut at every event, and replayed: the same answer as without the cut.

The second answer has three tokens in an event where the path's requests can ask for that.
"""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from aiaas.openai.paths import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from aiaas.openai.replay import Replayed, is_deterministic
from aiaas.openai.sse import EventSplitter
from tests.e2e.processes import MODEL
from tests.openai.replayed_streams import heard
from tests.openai.typed_streams import typed_heard

pytestmark = pytest.mark.vllm

PROMPT = [{"role": "user", "content": "Say hello, in a few words of several languages."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 30}, "size": {"type": "integer"}},
    "required": ["name", "size"],
}
USAGE = {"include_usage": True}
EVERY_USAGE = USAGE | {"continuous_usage_stats": True}
SEED = {"seed": 7, "temperature": 1.0}
TOOL = {"name": "store", "description": "Store it.", "parameters": SCHEMA}
CHAT_TOOL = {"tools": [{"type": "function", "function": TOOL}]}
JSON_SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}}
CHAT_BODY = {"messages": PROMPT, "max_tokens": 60, "stream_options": USAGE}
TEXT_BODY = {"prompt": "def main(", "max_tokens": 40, "stream_options": USAGE}
RESPONSE_BODY = {"input": "Say hello.", "max_output_tokens": 60}
MESSAGE_BODY = {"messages": PROMPT, "max_tokens": 30, "temperature": 0}
MESSAGE_TOOL = {"tools": [{"name": "store", "description": "Store it.", "input_schema": SCHEMA}]}

CASES = [
    pytest.param(CHAT, CHAT_BODY | {"temperature": 0}, id="greedy chat"),
    pytest.param(CHAT, CHAT_BODY | SEED | {"stop": ["self", "the", "\n\n"]}, id="chat with stop strings"),
    pytest.param(CHAT, CHAT_BODY | SEED | {"n": 3, "stream_options": EVERY_USAGE}, id="three choices"),
    pytest.param(
        CHAT,
        CHAT_BODY | SEED | {"n": 2, "logprobs": True, "top_logprobs": 2, "return_token_ids": True},
        id="chat with its tokens",
    ),
    pytest.param(CHAT, CHAT_BODY | SEED | JSON_SCHEMA, id="JSON schema"),
    pytest.param(CHAT, CHAT_BODY | SEED | CHAT_TOOL | {"tool_choice": "required"}, id="required call"),
    pytest.param(
        CHAT,
        CHAT_BODY | SEED | CHAT_TOOL | {"tool_choice": {"type": "function", "function": {"name": "store"}}},
        id="named call",
    ),
    pytest.param(COMPLETIONS, TEXT_BODY | SEED, id="completion"),
    pytest.param(
        COMPLETIONS, TEXT_BODY | SEED | {"echo": True, "logprobs": 2, "stop": ["self"]}, id="completion with its prompt"
    ),
    pytest.param(
        COMPLETIONS, TEXT_BODY | SEED | {"n": 2, "logprobs": 1, "stop": ["self", "if"]}, id="completion with its tokens"
    ),
    pytest.param(
        COMPLETIONS,
        TEXT_BODY | SEED | {"prompt": ["a", "b"], "return_token_ids": True, "stream_options": EVERY_USAGE},
        id="two prompts",
    ),
    pytest.param(RESPONSES, RESPONSE_BODY | SEED, id="response"),
    pytest.param(RESPONSES, RESPONSE_BODY | {"temperature": 0}, id="greedy response"),
    pytest.param(
        RESPONSES,
        RESPONSE_BODY | SEED | {"tools": [{"type": "function", **TOOL}], "tool_choice": "required"},
        id="response with a call",
    ),
    pytest.param(MESSAGES, MESSAGE_BODY, id="message"),
    pytest.param(MESSAGES, MESSAGE_BODY | MESSAGE_TOOL | {"tool_choice": {"type": "any"}}, id="message with a call"),
]


def events_of(url: str, path: str, body: bytes) -> list[bytes]:
    """The events of an answer."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    assert answer.status == 200, read
    return EventSplitter().feed(read)


@pytest.mark.parametrize(("path", "fields"), CASES)
def test_answer_cut_at_each_event_is_the_whole_one(vllm_calls_url: str, path: str, fields: dict[str, Any]) -> None:
    """Each text and token once, in one order, under one id, wherever the first stream ends."""
    body = {"model": MODEL, "stream": True, **fields}
    assert is_deterministic(json.dumps(body).encode(), path)
    wider = {"stream_interval": 3} if path in (CHAT, COMPLETIONS) else {}
    first = events_of(vllm_calls_url, path, json.dumps(body).encode())
    second = events_of(vllm_calls_url, path, json.dumps(body | wider).encode())
    read = heard if path in (CHAT, COMPLETIONS) else typed_heard
    assert len(first) > 5
    for one, other in ((first, second), (second, first)):
        expected = read(b"".join(other))
        for cut in range(len(one) + 1):
            relayed = b"".join(one[:cut])
            replayed = Replayed(path, relayed)
            assert read(b"".join([relayed, *(replayed.event(each) for each in other)])) == expected, cut
