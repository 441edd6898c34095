"""aiaas.proxy.client.cors: the headers that a browser gets, over real sockets where the answer counts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from aiaas.config.load import load_text
from aiaas.proxy.client.cors import EXPOSED, Cors, preflight_lines
from tests.fakes.vllm import DONE, FakeVllm, Send, Wait, json_answer, stream, token_event
from tests.proxy.conftest import CHAT, Got, Running, StartGateway

ORIGIN = "https://chat.example.com"
BODY: dict[str, Any] = {"model": "m", "messages": []}
ASKING = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}


@pytest.fixture
async def running(gateway: StartGateway, fake_vllm: FakeVllm) -> Running:
    """A gateway that one page may call."""
    return await gateway(fake_vllm, server={"cors": {"allow_origins": [ORIGIN]}})


def allowed(got: Got) -> str | None:
    """The origin that may read the answer; every CORS header must agree with it, or be absent."""
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
    """405, and no permission for another origin; caches learn that answers differ."""
    got = await (await running.client()).get(CHAT, method="OPTIONS", headers=headers)
    assert (got.status, got.header("access-control-allow-methods"), got.header("vary")) == (405, None, "origin")
    assert allowed(got) == (ORIGIN if headers.get("Origin") == ORIGIN else None)


async def test_every_answer_names_the_allowed_origin(running: Running, fake_vllm: FakeVllm) -> None:
    """vLLM's own answers, streams, the model list, and errors of either side; vLLM's own CORS headers are dropped."""
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


SENT = f"Host: gateway\r\nOrigin: {ORIGIN}\r\n".encode()
GET = b"GET /v1/models HTTP/1.1\r\n"
REFUSED = {
    "larger than the bound": (431, GET + SENT + b"X: " + b"x" * 40_000 + b"\r\n\r\n"),
    "too many headers": (431, GET + SENT + b"X: y\r\n" * 200 + b"\r\n"),
    "no HTTP": (400, b"nonsense\r\n" + SENT + b"\r\n"),
    "no header": (400, GET + SENT + b"nonsense\r\n\r\n"),
    "no host": (400, GET + SENT.replace(b"gateway", b"a b") + b"\r\n"),
    "another version": (505, b"GET / HTTP/2.0\r\n" + SENT + b"\r\n"),
    "another coding": (501, b"POST / HTTP/1.1\r\n" + SENT + b"Transfer-Encoding: gzip, chunked\r\n\r\n"),
    "too slow": (408, GET + SENT + b"X: "),
    "OPTIONS, not a preflight": (400, b"OPTIONS / HTTP/1.1\r\n" + SENT + b"Content-Length: x\r\n\r\n"),
}


@pytest.mark.parametrize("size", [10**6, 100], ids=["one read", "many reads"])
@pytest.mark.parametrize(("status", "head"), REFUSED.values(), ids=REFUSED)
async def test_refused_head_names_the_origin(
    gateway: StartGateway, fake_vllm: FakeVllm, status: int, head: bytes, size: int
) -> None:
    """As soon as its Origin was read; otherwise a page shows "network error"."""
    cors = {"cors": {"allow_origins": [ORIGIN]}, "header_timeout": "300ms"}
    running = await gateway(fake_vllm, server=cors)
    client = await running.client()
    for at in range(0, len(head), size):
        client.send(head[at : at + size])
        await asyncio.sleep(0)
    got = await client.answer()
    assert (got.status, allowed(got), got.header("vary")) == (status, ORIGIN, "origin")
    assert got.header("x-request-id")


@pytest.mark.parametrize(
    ("origins", "sent", "named"),
    [
        ([ORIGIN], b"Origin: https://evil.example\r\n", None),
        ([ORIGIN], b"", None),
        (["*"], b"", "*"),
        (["*"], b"Origin: https://evil.example\r\n", "*"),
    ],
    ids=["another", "none", "none, and any may", "another, and any may"],
)
async def test_refused_head_of_another_origin(
    gateway: StartGateway, fake_vllm: FakeVllm, origins: list[str], sent: bytes, named: str | None
) -> None:
    """The origin is not guessed; a changed config holds at once."""
    running = await gateway(fake_vllm, server={"cors": {"allow_origins": origins}})
    client = await running.client()
    client.send(b"nonsense\r\n" + sent + b"\r\n")
    assert allowed(await client.answer()) == named
    plan = running.gateway.active.plan
    running.gateway.replace_plan(replace(plan, server=replace(plan.server, cors_allow_origins=None)))
    client = await running.client()
    client.send(b"nonsense\r\n" + sent + b"\r\n")
    got = await client.answer()
    assert (allowed(got), got.header("vary")) == (None, None)


async def test_request_too_far_ahead_names_the_origin(running: Running, fake_vllm: FakeVllm) -> None:
    """The refusal names its own origin, and follows the answers to the requests before it."""
    client = await running.client()
    fake_vllm.play(Wait(go := asyncio.Event()), Send(json_answer({})))
    client.send(client.request(BODY) * 2 + client.request(BODY, headers={"Origin": ORIGIN}))
    await asyncio.sleep(0.05)
    go.set()
    got = [await client.answer() for _ in range(3)]
    assert [(answer.status, allowed(answer)) for answer in got] == [(200, None), (200, None), (400, ORIGIN)]


UNREAD: dict[str, tuple[int, dict[str, str], bytes]] = {
    "too large": (413, {"Content-Length": "99999999"}, b""),
    "no JSON": (415, {"Content-Type": "text/plain"}, b"{}"),
    "compressed": (415, {"Content-Encoding": "gzip"}, b"{}"),
    "another expectation": (417, {"Expect": "x", "Content-Length": "3"}, b"{}"),
    "broken chunks": (400, {"Transfer-Encoding": "chunked", "Content-Length": ""}, b"x\r\n"),
    "too slow": (408, {"Content-Length": "9"}, b"{}"),
}


@pytest.mark.parametrize(("status", "headers", "body"), UNREAD.values(), ids=UNREAD)
async def test_refused_body_names_the_origin(
    gateway: StartGateway, fake_vllm: FakeVllm, status: int, headers: dict[str, str], body: bytes
) -> None:
    """Whatever was read of it."""
    cors = {"cors": {"allow_origins": [ORIGIN]}, "body_timeout": "200ms"}
    client = await (await gateway(fake_vllm, server=cors)).client()
    request = client.request(body, headers={"Origin": ORIGIN} | headers)
    client.send(request.replace(b"Content-Length: \r\n", b""))
    got = await client.answer()
    assert (got.status, allowed(got)) == (status, ORIGIN)


async def test_gateway_that_drains_names_the_origin(running: Running) -> None:
    """The gateway refuses before it looks at the key."""
    running.gateway.refusing = running.gateway.draining = True
    client = await running.client()
    got = await client.post(BODY, headers={"Origin": ORIGIN})
    assert (got.status, allowed(got)) == (503, ORIGIN)
    client = await running.client()
    got = await client.get("/ready", headers={"Origin": ORIGIN})
    assert (got.status, allowed(got)) == (503, ORIGIN)


async def test_page_reads_every_gateway_header(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """A page can read from a refusal by a limit how long to wait and how much is left."""
    limits = {"requests_per_minute": 1, "tokens_per_minute": 1000}
    running = await gateway(fake_vllm, server={"cors": {"allow_origins": ["*"]}}, rate_limit=limits)
    client = await running.client()
    got = [await client.post(BODY, headers={"Origin": ORIGIN}) for _ in range(2)]
    assert [answer.status for answer in got] == [200, 429]
    exposed = (got[1].header("access-control-expose-headers") or "").split(", ")
    names = [name.lower() for name, _ in got[1].headers]
    ours = {name for name in names if name.startswith(("x-", "retry-"))}
    assert ours <= set(exposed)
    assert {"x-request-id", "retry-after", "x-ratelimit-remaining-requests"} <= ours


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("vary: *\r\n", "*, origin"),
        ("vary: Accept-Encoding, Cookie\r\nvary: Origin\r\nvary: ,\r\n", "accept-encoding, cookie, origin"),
        ("vary: Accept-Encoding\r\n", "accept-encoding, origin"),
        ("vary: Origin\r\n", "origin"),
        ("vary: origin, accept\r\nvary: Accept\r\n", "accept, origin"),
        ("", "origin"),
    ],
    ids=["any", "three lines", "another word", "the same word", "two lines", "nothing"],
)
@pytest.mark.parametrize("kind", ["answer", "stream", "error"])
async def test_vary_is_there_once(running: Running, fake_vllm: FakeVllm, kind: str, said: str, told: str) -> None:
    """Vary has the backend's names and ours."""
    vary = said.encode()
    whole = {
        "answer": json_answer({"id": 1}),
        "stream": stream(token_event(), DONE),
        "error": json_answer({"error": {}}, status=422),
    }[kind]
    fake_vllm.play(Send(whole.replace(b"vary: Origin\r\n", vary)))
    got = await (await running.client()).post(BODY, headers={"Origin": ORIGIN})
    [value] = [value for name, value in got.headers if name == "vary"]
    assert sorted(value.split(", ")) == told.split(", ")


async def test_vary_of_the_backend_is_there_once_without_cors(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """A backend without Vary gives an answer without it."""
    client = await (await gateway(fake_vllm)).client()
    plain = json_answer({}).replace(b"vary: Origin\r\n", b"")
    fake_vllm.play(Send(plain))
    fake_vllm.play(Send(plain.replace(b"\r\n\r\n", b"\r\nvary: Accept\r\nVary: Cookie\r\n\r\n")))
    got = [await client.post(BODY, headers={"Origin": ORIGIN}) for _ in range(2)]
    assert [answer.header("vary") for answer in got] == [None, "accept, cookie"]


async def test_another_origin_gets_its_answer_and_no_permission(running: Running) -> None:
    """The browser keeps the answer from the page; without a key the page gets no answer anyway."""
    got = await (await running.client()).post(BODY, headers={"Origin": "https://evil.example"})
    assert (got.status, allowed(got)) == (200, None)
    assert ("vary", "origin") in got.headers


async def test_without_the_field_nothing_is_said(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Not even the backend's own CORS headers."""
    client = await (await gateway(fake_vllm)).client()
    fake_vllm.play(Send(json_answer({"id": 1}, headers="access-control-allow-origin: *\r\n")))
    assert allowed(await client.post(BODY, headers={"Origin": ORIGIN})) is None
    assert (await client.get(CHAT, method="OPTIONS", headers=ASKING)).status == 405


async def test_parser_error_in_a_preflight_grants_nothing(running: Running) -> None:
    """Invalid header names are not repeated."""
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


def test_every_gateway_header_is_exposed_once() -> None:
    """A page sees the headers that the SDKs read."""
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
