"""aiaas.proxy.cors: what a browser is told, over real sockets where the answer counts."""

from __future__ import annotations

from typing import Any

import pytest

from aiaas.config.load import load_text
from aiaas.proxy.cors import EXPOSED, Cors, preflight_lines
from tests.fakes.vllm import DONE, FakeVllm, Send, json_answer, stream, token_event
from tests.proxy.conftest import CHAT, Got, Running, StartGateway

ORIGIN = "https://chat.example.com"
BODY: dict[str, Any] = {"model": "m", "messages": []}
ASKING = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}


@pytest.fixture
async def running(gateway: StartGateway, fake_vllm: FakeVllm) -> Running:
    """A gateway that one page may call."""
    return await gateway(fake_vllm, server={"cors": {"allow_origins": [ORIGIN]}})


def allowed(got: Got) -> str | None:
    """The origin that may read the answer; all that CORS says stands on it, or nothing."""
    origin = got.header("access-control-allow-origin")
    assert (got.header("access-control-expose-headers") is None) == (origin is None)
    return origin


async def test_a_preflight_is_answered_without_a_key(running: Running) -> None:
    """With the path's methods, and every header that the page wants to send."""
    client = await running.client()
    asked = {"Access-Control-Request-Headers": "authorization,content-type,x-stainless-os", "Authorization": ""}
    got = await client.get(CHAT, method="OPTIONS", headers=ASKING | asked)
    assert (got.status, got.body, got.header("content-length")) == (204, b"", None)
    assert allowed(got) == ORIGIN
    assert got.header("vary") == "origin"
    assert got.header("access-control-allow-methods") == "POST"
    assert got.header("access-control-allow-headers") == "authorization,content-type,x-stainless-os"
    got = await client.get("/v1/models", method="OPTIONS", headers=ASKING)
    assert (got.status, got.header("access-control-allow-methods")) == (204, "GET, HEAD")
    got = await client.get("/nothing", method="OPTIONS", headers=ASKING)
    assert (got.status, got.header("access-control-allow-methods")) == (204, "GET, HEAD, POST")
    assert [line["status"] for line in running.log_lines("request")] == [204, 204, 204]
    got = await client.get("/health", method="OPTIONS", headers=ASKING)
    assert (got.status, got.header("access-control-allow-methods")) == (204, "GET, HEAD")


@pytest.mark.parametrize(
    "headers",
    [
        ASKING | {"Origin": "https://evil.example"},
        ASKING | {"Origin": "https://chat.example.com.evil.example"},
        ASKING | {"Origin": "null"},
        {"Access-Control-Request-Method": "POST"},
        {"Origin": ORIGIN},
    ],
    ids=["another origin", "one that begins alike", "null", "no origin", "no preflight"],
)
async def test_other_options_requests_are_what_they_are_without_cors(running: Running, headers: dict[str, str]) -> None:
    """405, and no word of permission for another origin; caches are told that answers differ."""
    got = await (await running.client()).get(CHAT, method="OPTIONS", headers=headers)
    assert (got.status, got.header("access-control-allow-methods"), got.header("vary")) == (405, None, "origin")
    assert allowed(got) == (ORIGIN if headers.get("Origin") == ORIGIN else None)


async def test_every_answer_names_the_allowed_origin(running: Running, fake_vllm: FakeVllm) -> None:
    """vLLM's own, streams, the model list, and errors of either side; what vLLM says of CORS is not passed on."""
    client = await running.client()
    of_vllm = "access-control-allow-origin: *\r\naccess-control-allow-credentials: true\r\n"
    fake_vllm.play(Send(json_answer({"id": 1}, headers=of_vllm)))
    fake_vllm.play(Send(stream(token_event(), DONE)))
    fake_vllm.play(Send(json_answer({"error": {}}, status=422)))
    origin = {"Origin": ORIGIN}
    got = [await client.post(BODY | more, headers=origin) for more in ({}, {"stream": True}, {}, {"model": "x"})]
    got.append(await client.get("/v1/models", headers=origin))
    got.append(await client.post(BODY, headers=origin | {"Authorization": "Bearer x"}))
    assert [answer.status for answer in got] == [200, 200, 422, 404, 200, 401]
    assert [allowed(answer) for answer in got] == [ORIGIN] * 6
    assert [answer.header("access-control-allow-credentials") for answer in got] == [None] * 6
    assert "x-request-id" in (got[0].header("access-control-expose-headers") or "")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/health", 200), ("GET", "/ready", 200), ("POST", "/health", 405), ("GET", "/nothing", 404)],
)
async def test_answers_outside_of_the_api_name_the_origin_too(
    running: Running, method: str, path: str, status: int
) -> None:
    """A page that cannot read a 404 shows "network error" instead."""
    got = await (await running.client()).get(path, method=method, headers={"Origin": ORIGIN})
    assert (got.status, allowed(got)) == (status, ORIGIN)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("vary: Accept-Encoding\r\n", "accept-encoding, origin"),
        ("vary: Origin\r\n", "origin"),
        ("vary: origin, accept\r\nvary: Accept\r\n", "accept, origin"),
        ("", "origin"),
    ],
    ids=["another word", "the same word", "two lines", "nothing"],
)
async def test_vary_is_there_once(running: Running, fake_vllm: FakeVllm, said: str, told: str) -> None:
    """With the words of the backend and ours."""
    fake_vllm.play(Send(json_answer({"id": 1}, headers=said)))
    got = await (await running.client()).post(BODY, headers={"Origin": ORIGIN})
    [value] = [value for name, value in got.headers if name == "vary"]
    assert sorted(value.split(", ")) == told.split(", ")


async def test_another_origin_gets_its_answer_and_no_permission(running: Running) -> None:
    """It is the browser that keeps the answer from the page; no key means no answer anyway."""
    got = await (await running.client()).post(BODY, headers={"Origin": "https://evil.example"})
    assert (got.status, allowed(got)) == (200, None)
    assert ("vary", "origin") in got.headers


async def test_without_the_field_nothing_is_said(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Not even where the backend would."""
    client = await (await gateway(fake_vllm)).client()
    fake_vllm.play(Send(json_answer({"id": 1}, headers="access-control-allow-origin: *\r\n")))
    assert allowed(await client.post(BODY, headers={"Origin": ORIGIN})) is None
    assert (await client.get(CHAT, method="OPTIONS", headers=ASKING)).status == 405


async def test_a_parser_error_in_a_preflight_is_no_permission(running: Running) -> None:
    """Header names that are none are not repeated."""
    asked = {"Access-Control-Request-Headers": "a\x7fb: (c)"}
    got = await (await running.client()).get(CHAT, method="OPTIONS", headers=ASKING | asked)
    assert got.header("access-control-allow-headers") is None


def test_any_origin_is_one_answer_for_all() -> None:
    """So a cache may keep it."""
    cors = Cors(("*",))
    assert cors.lines("https://x") == cors.lines(None)
    assert cors.lines("https://x").startswith(b"access-control-allow-origin: *\r\n")
    assert b"vary" not in cors.lines("https://x")
    assert cors.is_preflight("OPTIONS", {"origin": "https://x", "access-control-request-method": "GET"})


def test_every_header_of_ours_is_exposed_once() -> None:
    """A page sees what the SDKs look at."""
    assert len(set(EXPOSED)) == len(EXPOSED)
    assert preflight_lines(("POST",), "").count(b"\r\n") == 2


def test_origins_are_compared_as_browsers_write_them() -> None:
    """In lower case, without the scheme's own port."""
    text = """
server: {cors: {allow_origins: ["HTTPS://Chat.Example.com:443", "http://localhost:3000", "http://[::1]:80"]}}
backends: {vllm: {url: "http://vllm:8000", models: [m]}}
"""
    config = load_text(text, file="f", env={}).config
    assert config is not None
    assert config.server.cors is not None
    assert config.server.cors.allow_origins == (ORIGIN, "http://localhost:3000", "http://[::1]")
