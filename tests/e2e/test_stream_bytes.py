"""A stream through the gateway and one without it: the same bytes, whatever the client asks for."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

import pytest

from tests.e2e.processes import MODEL, Engine, Gateway

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 6, "temperature": 0, "seed": 1}
TEXT = {"prompt": "def main(", "max_tokens": 6, "temperature": 0, "seed": 1}
TWO = {"n": 2, "temperature": 1, "ignore_eos": True}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, HELLO),
    "completion": (COMPLETIONS, TEXT),
    "chat of one token": (CHAT, HELLO | {"max_tokens": 1}),
    "completion of one token": (COMPLETIONS, TEXT | {"max_tokens": 1}),
    "two answers": (CHAT, HELLO | TWO),
    "two texts": (COMPLETIONS, TEXT | TWO),
    "logprobs": (CHAT, HELLO | {"logprobs": True, "top_logprobs": 2}),
    "logprobs of a text": (COMPLETIONS, TEXT | {"logprobs": 2}),
    "echo": (COMPLETIONS, TEXT | {"echo": True}),
    "token ids": (CHAT, HELLO | {"return_token_ids": True}),
    "tools": (CHAT, HELLO | {"tools": [TOOL], "tool_choice": "none"}),
    "no tokens of a stop word": (CHAT, HELLO | {"stop": ["e"], "max_tokens": 30}),
}
OPTIONS: dict[str, Any] = {
    "absent": None,
    "usage": {"include_usage": True},
    "usage on every event": {"include_usage": True, "continuous_usage_stats": True},
    "no usage": {"include_usage": False},
    "usage on every event, without usage": {"include_usage": False, "continuous_usage_stats": True},
    "empty": {},
}
# Fields that differ from answer to answer, as does the order in which the events of two choices come.
_OWN = re.compile(rb'"(?:id|created)":(?:"[^"]*"|\d+)')
_INDEX = re.compile(rb'"index":(\d)')


def choice_of(event: bytes) -> bytes:
    """The index of an event's choice; an event without a choice comes last."""
    found = _INDEX.search(event)
    return found[1] if found else b"end"


def stream(url: str, key: str | None, path: str, body: dict[str, Any]) -> list[bytes]:
    """The events of a stream by choice, without the fields that differ."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url + path, json.dumps({"model": MODEL, "stream": True, **body}).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return sorted(_OWN.sub(b"", answer.read()).split(b"\n\n"), key=choice_of)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("path", "body"), CASES.values(), ids=CASES)
def test_gateway_changes_no_byte(
    engine: Engine, gateway: Gateway, path: str, body: dict[str, Any], options: dict[str, Any] | None
) -> None:
    """Also where it asked for usage that the client did not want."""
    stream(gateway.url, gateway.key, path, body | {"n": 1})  # of two choices the first to end needs an earlier stream
    asked = body if options is None else body | {"stream_options": options}
    for _ in range(5):  # a busy vLLM now and then puts two tokens into one event
        through, direct = stream(gateway.url, gateway.key, path, asked), stream(engine.url, engine.api_key, path, asked)
        if through == direct:
            break
    assert through == direct
    assert b"system_fingerprint" in b"".join(direct)
