"""aiaas.proxy.client.path_prefix: requests below a prefix, as bytes and through a gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiaas.openai.paths import CHAT, GENERATE
from aiaas.proxy.client.path_prefix import NO_PREFIX, PrefixedPaths
from tests.fakes.vllm import FakeVllm, Send, json_answer
from tests.proxy.conftest import Got, Running, StartGateway

BODY = {"model": "m", "messages": []}
PREFIXED = {"path_prefix": "/llm"}


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/llm/v1/models?x=/llm/", "/v1/models?x=/llm/"),
        ("/llm/", "/"),
        ("/llm", "/"),
        ("/llm?x=1", "/?x=1"),
        ("http://host/llm/v1/models", "http://host/v1/models"),
        ("http://llm", "http://llm"),
        ("/v1/models", "/v1/models"),
        ("/llmodels", "/llmodels"),
        ("/LLM/v1/models", "/LLM/v1/models"),
        ("//llm/v1/models", "//llm/v1/models"),
        ("/%6Clm/v1/models", "/%6Clm/v1/models"),
        ("/v1/llm/x", "/v1/llm/x"),
        ("/llm/llm/v1/models", "/llm/v1/models"),
        ("*", "*"),
        ("host:443", "host:443"),
    ],
)
def test_a_prefix_is_taken_off_once(target: str, path: str) -> None:
    """Byte by byte, and only where a segment ends."""
    assert PrefixedPaths("/llm").strip(target) == path


def test_first_lines_are_of_both_spellings() -> None:
    """Without a prefix there is one line for each path."""
    both = PrefixedPaths("/llm").lines
    assert both[b"POST /llm/v1/chat/completions HTTP/1.1"] == both[b"POST /v1/chat/completions HTTP/1.1"] == CHAT
    assert (len(both), len(NO_PREFIX.lines)) == (2 * len(GENERATE), len(GENERATE))


async def ask(running: Running, method: str, path: str, **headers: str) -> Got:
    """An answer; a further header, or another method than POST, is read by the parser."""
    client = await running.client()
    body = json.dumps(BODY).encode() if method == "POST" else b""
    lines = {"Host": "h", "Authorization": f"Bearer {running.key}", "Content-Type": "application/json", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in (lines | {"Content-Length": str(len(body))}).items())
    client.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    return await client.answer()


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/json; charset=utf-8"}], ids=["plain", "parsed"])
@pytest.mark.parametrize("prefix", ["/llm", ""], ids=["prefixed", "without"])
async def test_requests_below_the_prefix_are_served(
    gateway: StartGateway, fake_vllm: FakeVllm, prefix: str, headers: dict[str, str]
) -> None:
    """As those without it are; vLLM and the log see the path of the API."""
    fake_vllm.play(Send(json_answer({"fine": True})))
    running = await gateway(fake_vllm, server=PREFIXED)
    got = await ask(running, "POST", f"{prefix}{CHAT}", **headers)
    assert (got.status, got.json) == (200, {"fine": True})
    [post] = fake_vllm.posts
    assert post.path == CHAT
    [line] = running.log_lines()
    assert line["endpoint"] == CHAT
    assert b"/llm" not in running.metrics.expose()


@pytest.mark.parametrize(
    ("path", "status"),
    [("/llm/v1/models", 200), ("/llm/v1/models/m", 200), ("/v1/models", 200), ("/llm/health", 200), ("/health", 200)],
)
async def test_other_paths_have_the_prefix_too(
    gateway: StartGateway, fake_vllm: FakeVllm, path: str, status: int
) -> None:
    """A probe inside the cluster need not know of it."""
    assert (await ask(await gateway(fake_vllm, server=PREFIXED), "GET", path)).status == status


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/llm/chat/completions", "/llm/v1/chat/completions"),
        ("/chat/completions", "/llm/v1/chat/completions"),
        ("/llm/v1/v1/messages", "/llm/v1/messages"),
    ],
)
async def test_a_wrong_base_url_is_explained_with_the_prefix(
    gateway: StartGateway, fake_vllm: FakeVllm, path: str, meant: str
) -> None:
    """A client has to write it."""
    got = await ask(await gateway(fake_vllm, server=PREFIXED), "POST", path)
    assert got.status == 404
    assert f"Did you mean {meant}? Check the client's base URL." in got.body.decode()


async def test_without_a_prefix_no_other_path_is_served(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The gateway never forwards by a part of a path."""
    running: Any = await gateway(fake_vllm)
    assert (await ask(running, "POST", f"/llm{CHAT}")).status == 404
    assert fake_vllm.posts == []
