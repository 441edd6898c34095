"""The charge of a cut stream, against vLLM's own `vllm:generation_tokens_total`, and facts that only real streams show.

For one token an event and for eight (`--stream-interval 8`), on all paths that stream. vLLM goes on until it learns of
the abort, so its counter is somewhat ahead of what was streamed: ABORT_TOKENS at the most on a quiet machine.
"""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.processes import ALIAS, MODEL, Engine, Gateway, eventually, running_gateway

pytestmark = pytest.mark.vllm

PROMPT = [{"role": "user", "content": "Say hello, in a few words of several languages."}]
CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
)  # fmt: skip
LONG = 1500
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": PROMPT, "max_tokens": LONG, "ignore_eos": True},
    COMPLETIONS: {"prompt": "def main(", "max_tokens": LONG, "ignore_eos": True},
    # This tiny model may write many tokens without text, for which these two paths have no events.
    RESPONSES: {"input": "Say hello.", "max_output_tokens": LONG, "ignore_eos": True, "temperature": 0},
    MESSAGES: {"messages": PROMPT, "max_tokens": LONG, "temperature": 0},
}
CUT_AFTER = 500  # tokens, about


@pytest.fixture(scope="module", params=["1", "8"], ids=["one token an event", "eight tokens an event"])
def interval(request: pytest.FixtureRequest) -> int:
    """Tokens in an event."""
    return int(request.param)


@pytest.fixture(scope="module")
def vllm(interval: int, request: pytest.FixtureRequest) -> Engine:
    """A real vLLM that writes `interval` tokens into an event."""
    return Engine("vllm", request.getfixturevalue("vllm_url" if interval == 1 else "vllm_interval_url"))


@pytest.fixture(scope="module")
def books(vllm: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway in front of it."""
    backend = {"url": vllm.url, "endpoints": [CHAT, COMPLETIONS, RESPONSES, MESSAGES, "/v1/models"]}
    with running_gateway(tmp_path_factory.mktemp("gateway"), backend) as running:
        yield running


def generated(engine: Engine) -> float:
    """LLM tokens that vLLM has generated, once it is idle."""
    eventually(lambda: engine.metric("vllm:num_requests_running") == 0, 30)
    return engine.metric("vllm:generation_tokens_total")


def stream(gateway: Gateway, path: str, body: dict[str, Any], *, leave_after: int | None = None) -> bytes:
    """Read a stream to its end, or leave after `most` `data:` lines; return the bytes read."""
    parts = urlsplit(gateway.url)
    encoded = json.dumps({"model": ALIAS, "stream": True, **body}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {gateway.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(encoded)}\r\n\r\n"
    )
    got = b""
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as client:
        client.sendall(head.encode() + encoded)
        while not got.endswith(b"0\r\n\r\n") and (leave_after is None or got.count(b"data:") < leave_after):
            part = client.recv(65536)
            if not part:
                break
            got += part
    return got


def last_line(gateway: Gateway, before: int) -> dict[str, Any]:
    """The log's line of the request after `before` others."""
    eventually(lambda: len(gateway.requests()) > before, 10)
    return gateway.requests()[-1]


@pytest.mark.parametrize("path", BODIES)
def test_cut_stream_is_charged_what_vllm_generated(vllm: Engine, books: Gateway, interval: int, path: str) -> None:
    """Within a tenth, after two whole streams have taught how many tokens an event holds."""
    short = {name: 120 if name.startswith("max") else value for name, value in BODIES[path].items()}
    for _ in range(2):
        assert b'{"error"' not in stream(books, path, short)
    for _ in range(3):  # the machine may be busy just when the client leaves
        before, logged = generated(vllm), len(books.requests())
        stream(books, path, BODIES[path], leave_after=CUT_AFTER // interval)
        line = last_line(books, logged)
        computed = generated(vllm) - before
        if line["ended_by"] == "client" and line["output_tokens"] == pytest.approx(computed, rel=0.1):
            break
    assert (line["ended_by"], line["error_code"]) == ("client", "client_left")
    assert line["output_tokens"] == pytest.approx(computed, rel=0.1)
    assert computed > 300


def test_first_token_means_first_token(books: Gateway) -> None:
    """The frame of a response or a message is without text: its first event is not the first token's."""
    for path in BODIES:
        logged = len(books.requests())
        stream(books, path, BODIES[path] | {"max_tokens": 5, "max_output_tokens": 5})
        line = last_line(books, logged)
        assert 0 < line["ttft_seconds"] <= line["duration_seconds"]


def test_usage_before_prompt_logprobs_is_found(vllm: Engine, books: Gateway, interval: int) -> None:
    """vLLM writes the logprobs behind `usage`, here more than a megabyte of them."""
    if interval != 1:
        pytest.skip("no stream")
    body = {"model": MODEL, "max_tokens": 20, "ignore_eos": True, "prompt_logprobs": 20}
    body["messages"] = [{"role": "user", "content": "a b c d e f g h " * 100}]
    estimated = books.metric("aiaas_tokens_estimated_total", type="input")
    before, logged = generated(vllm), len(books.requests())
    headers = {"Authorization": f"Bearer {books.key}", "Content-Type": "application/json"}
    asked = urllib.request.Request(books.url + CHAT, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        size = len(answer.read())
    line = last_line(books, logged)
    assert size > 1024 * 1024
    assert line["output_tokens"] == generated(vllm) - before == 20
    assert line["input_tokens"] > 500
    assert books.metric("aiaas_tokens_estimated_total", type="input") == estimated
