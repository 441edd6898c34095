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
}
# They differ from answer to answer.
_OWN = re.compile(rb'"(?:id|created)":(?:"[^"]*"|\d+)')


def stream(url: str, key: str | None, path: str, body: dict[str, Any]) -> bytes:
    """The body of a stream, without what is its own."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url + path, json.dumps({"model": MODEL, "stream": True, **body}).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return _OWN.sub(b"", answer.read())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("path", "body"), CASES.values(), ids=CASES)
def test_gateway_changes_no_byte(
    engine: Engine, gateway: Gateway, path: str, body: dict[str, Any], options: dict[str, Any] | None
) -> None:
    """Also where it asked for the usage that the client did not want."""
    asked = body if options is None else body | {"stream_options": options}
    through, direct = (
        stream(gateway.url, gateway.key, path, asked),
        stream(engine.url, engine.api_key, path, asked),
    )
    assert through == direct
    assert b"system_fingerprint" in direct
