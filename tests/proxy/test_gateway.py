"""aiaas.proxy.gateway: the order of checks, every error as the client sees it, and nothing leaked on any way out."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import openai
import pytest

from aiaas.keys.model import KeyLimits
from aiaas.limits.memory import MemoryStore
from aiaas.limits.model import AdmissionResult, Lease, Limits
from aiaas.plan.model import Route, RouteTarget
from aiaas.proxy.gateway import targets_of
from aiaas.proxy.telemetry.histogram import Tally
from aiaas.proxy.telemetry.metrics import GAP_BUCKETS
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.endpoint import EndpointState
from tests.fakes.vllm import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Close,
    FakeVllm,
    Hang,
    Send,
    Step,
    Wait,
    chunk,
    error_answer,
    json_answer,
    stream,
    token_event,
    usage_event,
)
from tests.proxy.conftest import CHAT, Got, Running, StartGateway, config_of, new_key, plan_of, slow_key
from tests.waiting import until

BODY = {"model": "m", "messages": []}
STREAM = BODY | {"stream": True}
USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}


def assert_error(got: Got, status: int, code: str, param: str | None = None) -> None:
    """The OpenAI shape with these words, and an id to find it by."""
    assert (got.status, got.json["error"]["code"]) == (status, code), (got.status, got.body)
    assert set(got.json["error"]) == {"message", "type", "param", "code"}
    assert got.json["error"]["param"] == param
    assert got.header("content-type") == "application/json"
    assert got.header("x-request-id")
    assert got.header("date")


# -- the order of checks -------------------------------------------------------------------------------------------


async def test_each_check_comes_before_the_next(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """A request with everything wrong with it is told of one fault after the other: path, method, key, size, ..."""
    limited = new_key("limited", limits=KeyLimits(requests_per_minute=1))
    running = await gateway(fake_vllm, server={"max_body_size": "1KiB"}, keys=(limited,))
    bad: dict[str, Any] = {
        "path": "/nowhere",
        "method": "PUT",
        "key": "sk-wrong",
        "headers": {"Content-Type": "text/x"},
    }
    body: Any = b"[" * 2000
    steps: list[tuple[dict[str, Any], Any, int, str, str | None]] = [
        ({}, None, 404, "not_found", None),
        ({"path": CHAT}, None, 405, "method_not_allowed", None),
        ({"method": "POST"}, None, 401, "invalid_api_key", None),
        ({"key": limited.text}, None, 413, "request_too_large", None),
        ({}, b"{{", 415, "unsupported_media_type", None),
        ({"headers": {}}, None, 400, "invalid_json", None),
        ({}, {"n": 99, "model": "unknown"}, 404, "model_not_found", "model"),
        ({}, {"n": 99, "model": "m"}, 400, "invalid_request", "n"),
    ]
    for mended, new_body, status, code, param in steps:
        bad |= mended
        body = body if new_body is None else new_body
        client = await running.client()
        assert_error(await client.post(body, **bad), status, code, param)
    client = await running.client()
    assert (await client.post(BODY, key=limited.text)).status == 200  # none of it was charged
    assert_error(await client.post(BODY, key=limited.text), 429, "rate_limit_exceeded")
    assert len(fake_vllm.posts) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v1", "/v1/", "//v1/chat/completions", "/v1/chat/completions/x/", "/V1/chat/completions",
        "/v1/chat%2Fcompletions", "/v1/chat/%63ompletions", "/v1/./chat/completions", "/v1/models/../chat/completions",
        "/v1/chat/completions%00", "/v1/chat/completions;x", "ftp://gateway/v1/chat/completions", "/metrics",
        "/invocations", "/v1/chat/completions#x", "/healthz", "/health//x", "/v1/modelsx", "/docs",
    ],
)  # fmt: skip
@pytest.mark.parametrize("with_key", [True, False], ids=["with a key", "without a key"])
async def test_only_the_listed_paths_exist(
    gateway: StartGateway, fake_vllm: FakeVllm, path: str, with_key: bool
) -> None:
    """Paths are compared as they stand, but for slashes at their end: nothing is decoded, collapsed or resolved."""
    running = await gateway(fake_vllm)
    client = await running.client()
    got = await client.post(BODY, path=path, **({} if with_key else {"headers": {"Authorization": "x"}}))
    assert_error(got, *((404, "not_found") if not path.startswith("/v1/models/") else (405, "method_not_allowed")))
    assert not fake_vllm.posts


async def test_a_slash_at_the_end_of_a_path_does_not_matter(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """vLLM redirects to the path without it. The log has the path that is served."""
    running = await gateway(fake_vllm)
    client = await running.client()
    assert (await client.post(BODY, path=CHAT + "/?x=1")).status == 200
    assert fake_vllm.posts[0].path == CHAT
    assert (await client.get("/v1/models/")).json["object"] == "list"
    assert (await client.get("/v1/models/m/")).json["id"] == "m"
    assert (await client.get("/health/", key=None)).status == (await client.get("/ready/", key=None)).status == 200
    assert_error(await client.post(BODY, path="/v1/models/"), 405, "method_not_allowed")
    assert [line["endpoint"] for line in running.log_lines()] == [CHAT]
    assert [line["endpoint"] for line in running.log_lines("request")] == ["/v1/models", "/v1/models/m/", "/v1/models"]


async def test_a_target_in_absolute_form_is_served_by_its_path(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """As RFC 9112 section 3.2.2 asks of every server; whatever host it names."""
    client = await (await gateway(fake_vllm)).client()
    assert (await client.get("http://elsewhere/v1/models")).status == 200
    assert (await client.post({"model": "m", "messages": []}, path=f"https://elsewhere:1{CHAT}?x=1")).status == 200
    assert fake_vllm.posts[0].path == CHAT
    assert (await client.get("http://elsewhere")).status == 404
    assert (await client.get("http://elsewhere/health")).status == 200


@pytest.mark.parametrize(("method", "target"), [("CONNECT", "x:80"), ("OPTIONS", "*")], ids=["a tunnel", "asterisk"])
async def test_target_other_than_a_path_is_a_404(gateway: StartGateway, method: str, target: str) -> None:
    """And no tunnel begins behind it."""
    client = await (await gateway("http://127.0.0.1:1")).client()
    client.send(client.request(None, path=target, method=method) + client.request(None, path="/health", method="GET"))
    got = await client.answer()
    assert (got.status, got.json["error"]["code"]) == (404, "not_found")
    if method == "CONNECT":
        assert got.header("connection") == "close"
        assert await client.ended() == b""
    else:
        assert (await client.answer()).status == 200


async def test_a_query_is_ignored(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The query neither changes the route nor goes upstream."""
    running = await gateway(fake_vllm)
    client = await running.client()
    assert (await client.post(BODY, path=CHAT + "?api-version=1&x=/../")).status == 200
    assert fake_vllm.posts[0].path == CHAT
    assert (await client.get("/health?x=1")).status == 200
    assert (await client.get("/v1/models?limit=1")).status == 200


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [
        (CHAT, "GET", "POST"),
        (CHAT, "HEAD", "POST"),
        (CHAT, "OPTIONS", "POST"),
        ("/v1/models", "POST", "GET, HEAD"),
        ("/v1/models/m", "DELETE", "GET, HEAD"),
        ("/health", "POST", "GET, HEAD"),
        ("/ready", "OPTIONS", "GET, HEAD"),
    ],
)
async def test_405_says_what_is_allowed(
    gateway: StartGateway, fake_vllm: FakeVllm, path: str, method: str, allow: str
) -> None:
    """With `Allow`, without asking for a key; the answer to a HEAD is without a body, which would swallow the next."""
    running = await gateway(fake_vllm)
    client = await running.client()
    got = await client.get(path, method=method, headers={"Authorization": "none"})
    assert (got.status, got.header("allow")) == (405, allow)
    assert (await client.get("/health")).body == b'{"status":"ok"}\n'


# -- health --------------------------------------------------------------------------------------------------------


async def test_health_and_ready_need_no_key_and_tell_nothing(gateway: StartGateway) -> None:
    """Also while no backend is up: one dead vLLM must not take every gateway out of rotation."""
    running = await gateway("http://127.0.0.1:9")
    client = await running.client()
    for path in ("/health", "/ready"):
        got = await client.get(path, headers={"Authorization": ""})
        assert (got.status, got.body) == (200, b'{"status":"ok"}\n')
        head = await client.get(path, method="HEAD", headers={"Authorization": ""})
        assert (head.status, head.header("content-length")) == (200, "16")
    assert not running.log_lines()


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Bearer ", "missing_api_key"),
        ("Basic abc", "missing_api_key"),
        ("sk-abc", "missing_api_key"),
        ("Bearer sk-wrong", "invalid_api_key"),
        ("Bearer \xff\xfe", "invalid_api_key"),
        ("Bearer " + "x" * 5000, "invalid_api_key"),
    ],
)
async def test_a_request_without_a_valid_key_gets_401(
    gateway: StartGateway, fake_vllm: FakeVllm, header: str, code: str
) -> None:
    """With `WWW-Authenticate: Bearer`, on every path that needs one, and without the key in the answer or the log."""
    running = await gateway(fake_vllm)
    client = await running.client()
    for path, method in ((CHAT, "POST"), ("/v1/models", "GET"), ("/v1/models/m", "GET")):
        client.send(client.request(BODY, path=path, method=method, headers={"Authorization": header}))
        got = await client.answer()
        assert_error(got, 401, code)
        assert (got.header("www-authenticate") or "").startswith("Bearer")
        assert got.header("x-should-retry") == "false"
        assert b"sk-wrong" not in got.body
    running.gateway.log.flush()
    assert b"sk-wrong" not in b"".join(running.lines)
    assert not fake_vllm.posts


async def test_key_in_x_api_key_is_taken_where_anthropic_sdks_ask(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """For messages and the list of models; other paths ignore that header."""
    running = await gateway(fake_vllm)
    client = await running.client()
    body = BODY | {"max_tokens": 5}
    none = {"Authorization": "Basic x"}
    assert (await client.post(BODY, headers={"Authorization": f"bearer  {running.key}"})).status == 200
    assert (await client.post(body, path="/v1/messages", headers=none | {"x-api-key": running.key})).status == 200
    assert_error(await client.post(BODY, headers=none | {"x-api-key": running.key}), 401, "missing_api_key")
    for path in ("/v1/models", "/v1/models/m"):
        assert (await client.get(path, headers={"Authorization": "", "x-api-key": running.key})).status == 200
        assert_error(await client.get(path, headers={"x-api-key": "sk-other"}), 400, "invalid_request")
        assert (await client.get(path, headers={"x-api-key": running.key})).status == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "kind"),
    [
        ("GET", "/v1/models", {"x-api-key": "sk-wrong", "Authorization": ""}, "authentication_error"),
        ("GET", "/v1/models", {"anthropic-version": "2023-06-01", "Authorization": ""}, "authentication_error"),
        ("GET", "/v1/models", {"x-api-key": "sk-wrong"}, "invalid_request_error"),
        ("GET", "/v1/models/none", {"anthropic-version": "2023-06-01"}, "not_found_error"),
        ("POST", "/v1/models", {"anthropic-version": "2023-06-01"}, "invalid_request_error"),
        ("POST", "/v1/messages/batches", {"x-api-key": "sk-wrong"}, "not_found_error"),
        ("POST", "/v1/messages", {}, "invalid_request_error"),
    ],
    ids=["wrong key", "no key", "two keys", "no such model", "method", "no such path", "a path of Anthropic's"],
)
async def test_error_for_an_anthropic_sdk_has_its_form(
    gateway: StartGateway, fake_vllm: FakeVllm, method: str, path: str, headers: dict[str, str], kind: str
) -> None:
    """Known by its headers where the path says nothing; on OpenAI's own paths they change nothing."""
    client = await (await gateway(fake_vllm)).client()
    got = await client.get(path, method=method, headers=headers)
    assert (got.json["type"], got.json["error"]["type"]) == ("error", kind)
    openai = await client.get(path, method=method, headers={"Authorization": ""})
    assert ("type" in openai.json) == (path == "/v1/messages")
    chat = await client.post({}, headers={"anthropic-version": "2023-06-01"})
    assert set(chat.json) == {"error"}


@pytest.mark.parametrize(
    ("path", "lines", "status", "code"),
    [
        (CHAT, ["Authorization: Bearer {key}", "authorization: Bearer {key}"], 400, "invalid_request"),
        (CHAT, ["Authorization: Bearer {key}", "Authorization: Bearer sk-other"], 400, "invalid_request"),
        (CHAT, ["Authorization: Bearer {key}", "Authorization: Basic x"], 400, "invalid_request"),
        (CHAT, ["Authorization: Bearer {key}, Bearer {key}"], 401, "invalid_api_key"),
        (CHAT, ["Authorization: Bearer {key}, {key}"], 401, "invalid_api_key"),
        (CHAT, ["Authorization: Bearer {key}", "x-api-key: sk-other", "x-api-key: {key}"], 200, None),
        (CHAT, ["Authorization: Bearer {key}", "Content-Type: text/plain"], 400, "invalid_request"),
        (CHAT, ["Authorization: Bearer {key}", "Content-Length: 3"], 400, "invalid_request"),
        ("/v1/messages", ["x-api-key: {key}", "x-api-key: {key}"], 400, "invalid_request"),
        ("/v1/messages", ["x-api-key: {key}", "X-API-Key: sk-other"], 400, "invalid_request"),
        ("/v1/messages", ["x-api-key: {key}", "x-api-key:"], 400, "invalid_request"),
        ("/v1/messages", ["x-api-key: {key}, {key}"], 401, "invalid_api_key"),
        ("/v1/messages", ["Authorization: Bearer {key}", "x-api-key: {key}"], 200, None),
        ("/v1/messages", ["Authorization: Bearer {key}", "x-api-key:"], 200, None),
        ("/v1/messages", ["Authorization: Basic x", "x-api-key: {key}"], 200, None),
        ("/v1/messages", ["Authorization: Bearer {key}", "x-api-key: sk-other"], 400, "invalid_request"),
        ("/v1/messages", ["Authorization: Bearer sk-other", "x-api-key: {key}"], 400, "invalid_request"),
        ("/v1/messages", ["Authorization: Bearer {key}", "x-api-key: x", "x-api-key: {key}"], 400, "invalid_request"),
        ("/v1/messages", ["Authorization: Bearer {key}", "Authorization: Bearer {key}"], 400, "invalid_request"),
    ],
)
async def test_two_keys_or_two_of_a_header_are_refused(
    gateway: StartGateway, fake_vllm: FakeVllm, path: str, lines: list[str], status: int, code: str | None
) -> None:
    """A proxy in front may have checked the other one; equal keys in two headers are one."""
    running = await gateway(fake_vllm)
    client = await running.client()
    request = client.request(BODY | {"max_tokens": 5}, path=path)
    own = f"Authorization: Bearer {running.key}\r\n".encode()
    headers = "".join(f"{line}\r\n" for line in lines).replace("{key}", running.key).encode()
    client.send(request.replace(own, headers))
    got = await client.answer()
    if code is None:
        assert got.status == status, got
    else:
        assert_error(got, status, code)
        assert not fake_vllm.posts


async def test_without_authentication_limits_hold_for_each_address(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Behind a trusted proxy this is the client's own address."""
    running = await gateway(
        fake_vllm,
        auth={"enabled": False},
        rate_limit={"requests_per_minute": 1},
        server={"trusted_proxies": ["127.0.0.0/8"]},
    )
    client = await running.client()
    for address, status in (("192.0.2.1", 200), ("192.0.2.1", 429), ("::ffff:192.0.2.1", 429), ("192.0.2.2", 200)):
        got = await client.post(BODY, headers={"Authorization": "", "X-Forwarded-For": address})
        assert got.status == status, address
    assert [line["client_address"] for line in running.log_lines()] == ["192.0.2.1"] * 3 + ["192.0.2.2"]


# -- bodies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b'{"model": "m"} x', "invalid_json", None),
        (b"[]", "invalid_request", None),
        (b'"m"', "invalid_request", None),
        (b'{"model": "m", "messages": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "invalid_request", None),
        (b'{"model": "m", "model": "m"}', "invalid_request", "model"),
        (b'{"model": "m", "mod\\u0065l": "alias"}', "invalid_request", "model"),
        (b'{"messages": []}', "invalid_request", "model"),
        (b'{"model": null}', "invalid_request", "model"),
        (b'{"model": ["m"]}', "invalid_request", "model"),
        (b'{"model": "m", "n": "2.5"}', "invalid_request", "n"),
        (b'{"model": "m", "n": 9}', "invalid_request", "n"),
        (b'{"model": "m", "n": "9"}', "invalid_request", "n"),
        (b'{"model": "m", "stream": 2}', "invalid_request", "stream"),
        (b'{"model": "\xff"}', "invalid_json", None),
        (b'\xff\xfe{"model": "m"}', "invalid_json", None),
        (
            b'{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"http://10.0.0.1/"}}]}]}',
            "invalid_request",
            "messages[0].content[0].image_url",
        ),
    ],
    ids=[
        "empty", "half", "rubbish behind", "list", "text", "nested 10,000 deep", "model twice", "model twice, escaped",
        "no model", "null model", "model list", "n as text", "n too large", "n as text, too large", "stream as number",
        "not UTF-8", "not UTF-16", "media URL",
    ],
)  # fmt: skip
async def test_a_bad_body_is_a_400_that_names_the_field(
    gateway: StartGateway, fake_vllm: FakeVllm, body: bytes, code: str, param: str | None
) -> None:
    """Nothing reaches the backend, nothing is charged, and the connection lives on."""
    running = await gateway(fake_vllm, rate_limit={"requests_per_minute": 1})
    client = await running.client()
    got = await client.post(body)
    assert_error(got, 400, code, param)
    assert got.header("x-ratelimit-remaining-requests") == "1"
    assert (await client.post(BODY)).status == 200
    assert len(fake_vllm.posts) == 1


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ({"Content-Type": ""}, 415, "unsupported_media_type"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
        ({"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
        ({"Content-Encoding": "identity, br"}, 415, "unsupported_media_type"),
        ({"Expect": "200-ok"}, 417, "invalid_request"),
        ({"Content-Length": "2000"}, 413, "request_too_large"),
    ],
)
async def test_a_body_that_is_refused_unread_ends_the_connection(
    gateway: StartGateway, fake_vllm: FakeVllm, headers: dict[str, str], status: int, code: str
) -> None:
    """The bytes that follow it on the connection would otherwise be taken for a request."""
    running = await gateway(fake_vllm, server={"max_body_size": "1KiB"})
    client = await running.client()
    head, _, _ = client.request(BODY, headers={"Content-Length": "500"} | headers).partition(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n" + client.request(BODY))
    got = await client.answer()
    assert_error(got, status, code)
    assert got.header("connection") == "close"
    async with asyncio.timeout(1):  # our side is closed at once, while the client may still be sending
        assert await client.ended() == b""
    assert not fake_vllm.posts
    assert not running.gateway.in_flight


@pytest.mark.parametrize("end", [None, b"", b"0\r\n\r\n"], ids=["by its length", "chunks", "all chunks at once"])
async def test_a_body_beyond_the_bound_gets_413(gateway: StartGateway, fake_vllm: FakeVllm, end: bytes | None) -> None:
    """At the first byte beyond it, without waiting for the rest; a body that just fits passes."""
    running = await gateway(fake_vllm, server={"max_body_size": "1KiB"})
    client = await running.client()
    fits = json.dumps(BODY | {"x": ""}).encode()
    fits = fits.replace(b'""', b'"' + b"x" * (1024 - len(fits)) + b'"')
    assert (await client.post(fits)).status == 200
    if end is None:
        got = await client.post(fits + b" ")
    else:
        head = client.request(None, headers={"Content-Type": "application/json", "Transfer-Encoding": "chunked"})
        client.send(head + chunk(fits) + chunk(b" ") + end)
        got = await client.answer()
    assert_error(got, 413, "request_too_large")
    assert got.json["error"]["message"] == "The request's body is larger than 1024 bytes."


async def test_a_compressed_body_is_never_inflated(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Nor is one that is compressed without a header: it is not JSON."""
    import gzip

    running = await gateway(fake_vllm)
    client = await running.client()
    bomb = gzip.compress(b" " * 5_000_000 + json.dumps(BODY).encode())
    assert_error(await client.post(bomb), 400, "invalid_json")
    assert running.log_lines()[-1]["request_bytes"] == len(bomb)


async def test_100_continue_comes_only_for_a_request_that_is_wanted(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """After key, size and media type; a client that waits for it does not send for nothing."""
    running = await gateway(fake_vllm)
    body = json.dumps(BODY).encode()
    wanted = {"Expect": "100-continue", "Content-Type": "application/json", "Content-Length": str(len(body))}
    client = await running.client()
    client.send(client.request(None, headers=wanted))
    assert (await client.head()).head == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(body)
    assert (await client.answer()).status == 200
    for wrong in ({"Authorization": "Bearer no"}, {"Content-Length": "99999999"}, {"Content-Type": "text/html"}):
        client = await running.client()
        client.send(client.request(None, headers=wanted | wrong))
        assert (await client.head()).status in (401, 413, 415)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"alias","stream":true,"\xd1":1}',
        b'{"model":"alias","\xff\xfe":{"\\u006d":1}}',
        b'{"model":"alias","mod\\u0065":1,"\xff":1}',
        b'{"model":"alias","messages":[{"content":[{"type":"image_url","image_url":{"url":"data:,"},"\xff":1}]}]}',
    ],
    ids=["spliced field by field", "escaped elsewhere", "escaped key beside it", "beside an image"],
)
async def test_key_with_invalid_utf_8_is_never_a_500(gateway: StartGateway, fake_vllm: FakeVllm, body: bytes) -> None:
    """A request that does not need the field skips it unread; one that then reads it must get 400 and not break."""
    running = await gateway(fake_vllm)
    client = await running.client()
    assert (await client.post(body)).status in (200, 400)


async def test_however_deep_a_body_is_nested_it_is_read_or_refused(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """How deep msgspec goes depends on Python's stack, so a body that was read once may be too deep the next time."""
    running = await gateway(fake_vllm)
    client = await running.client()
    seen = set()
    for depth in range(sys.getrecursionlimit() - 100, sys.getrecursionlimit() + 5):
        nested = b"[" * depth + b"]" * depth
        for path, body in (
            (CHAT, b'{"model":"alias","stream":true,"messages":%b}' % nested),
            ("/v1/completions", b'{"model":"alias","max_tokens":1,"prompt":%b,"\\u006d":1}' % nested),
        ):
            got = await client.post(body, path=path)
            seen.add(got.status)
            assert got.status in (200, 400), (depth, path, got)
    assert seen == {200, 400}


# -- HTTP itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_http_1_0_gets_a_length_and_a_close(gateway: StartGateway, fake_vllm: FakeVllm, keep_alive: bool) -> None:
    """Never chunks, which it does not know; a stream ends with the connection."""
    running = await gateway(fake_vllm)
    fake_vllm.play(Send(json_answer({"id": 1})))
    fake_vllm.play(Send(stream(token_event(), DONE)))
    for body, wanted in ((BODY, b'{"id":1}'), (STREAM, token_event() + DONE)):
        client = await running.client()
        extra = {"Connection": "keep-alive"} if keep_alive else {}
        client.send(client.request(body, version="1.0", headers=extra))
        got = await client.answer()
        assert (got.status, got.body, got.header("connection")) == (200, wanted, "close")
        assert got.header("transfer-encoding") is None
        assert await client.ended() == b""


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "anything"])
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/health", "/nowhere"])
async def test_an_offered_upgrade_is_never_taken(
    gateway: StartGateway, fake_vllm: FakeVllm, protocol: str, path: str
) -> None:
    """The request is answered as plain HTTP and the connection ends: bytes behind it are not read as a request."""
    running = await gateway(fake_vllm)
    client = await running.client()
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": protocol, "HTTP2-Settings": "AAMAAABkAAQA"}
    first = client.request(BODY, path=path, method="POST" if path == CHAT else "GET", headers=headers)
    client.send(first + client.request(BODY))
    got = await client.answer()
    assert (got.status, got.header("connection")) == (404 if path == "/nowhere" else 200, "close")
    assert got.header("upgrade") is None
    assert await client.ended() == b""
    assert len(fake_vllm.posts) == (path == CHAT)
    assert all("upgrade" not in post.headers for post in fake_vllm.posts)


async def test_invalid_utf_8_in_a_path_is_refused(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Raw ones are no HTTP, escaped ones no model; both can be logged."""
    running = await gateway(fake_vllm)
    for path, status in (("/\xff\xfe", 400), ("/v1/models/%ff%fe", 404), ("/%ff", 404)):
        client = await running.client()
        assert (await client.get(path)).status == status
    assert [line["endpoint"] for line in running.log_lines("request")] == ["/v1/models/%ff%fe", "/%ff"]


# -- models --------------------------------------------------------------------------------------------------------


async def test_models_are_those_of_the_plan_that_the_key_may_use(gateway: StartGateway) -> None:
    """Aliases included; `root` is the model behind an alias and never vLLM's path; no backend is asked."""
    scoped = new_key("scoped", models=("org/big",))
    running = await gateway(
        "http://127.0.0.1:9", backend={"models": ["org/big", "small"]}, keys=(scoped,), rate_limit={"burst": 1}
    )
    client = await running.client()
    listed = (await client.get("/v1/models")).json
    assert listed["object"] == "list"
    assert [(entry["id"], entry["root"], entry["object"]) for entry in listed["data"]] == [
        ("org/big", "org/big", "model"),
        ("small", "org/big", "model"),
    ]
    assert [entry["id"] for entry in (await client.get("/v1/models", key=scoped.text)).json["data"]] == ["org/big"]
    for path in ("/v1/models/org/big", "/v1/models/org%2Fbig", "/v1/models/org%2fbig?x", "/v1/models/org/big/"):
        assert (await client.get(path)).json["id"] == "org/big"
    for path, key in (
        ("/v1/models/small", scoped.text),
        ("/v1/models/none", running.key),
        ("/v1/models/none/", running.key),
    ):
        assert_error(await client.get(path, key=key), 404, "model_not_found", "model")
    assert (await client.get("/v1/models", method="HEAD")).header("content-length") != "0"


async def test_models_are_not_served_where_no_backend_names_the_path(
    gateway: StartGateway, fake_vllm: FakeVllm
) -> None:
    """The allow-list holds for this path too."""
    running = await gateway(fake_vllm, backend={"endpoints": [CHAT]})
    client = await running.client()
    assert_error(await client.get("/v1/models"), 404, "not_offered")


async def test_a_model_that_the_key_may_not_use_looks_unknown(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The same message as for a model that does not exist."""
    scoped = new_key("scoped", models=("alias",))
    running = await gateway(fake_vllm, keys=(scoped,))
    client = await running.client()
    denied = await client.post(BODY, key=scoped.text)
    unknown = await client.post(BODY | {"model": "x"}, key=scoped.text)
    assert_error(denied, 404, "model_not_found", "model")
    assert denied.body.replace(b"`m`", b"`x`") == unknown.body
    assert (await client.post(BODY | {"model": "alias"}, key=scoped.text)).status == 200
    assert (
        running.metric('inference_requests_total{endpoint="/v1/chat/completions",model="unknown",status="error"}') == 2
    )


# -- limits on every answer ----------------------------------------------------------------------------------------


async def test_every_answer_to_a_known_key_says_how_its_limits_stand(
    gateway: StartGateway, fake_vllm: FakeVllm
) -> None:
    """On success, on refusals of ours before and after the limits, and on vLLM's errors; refusals charge nothing."""
    running = await gateway(
        fake_vllm, backend={"max_retries": 0}, rate_limit={"requests_per_minute": 6, "tokens_per_minute": 1000}
    )
    client = await running.client()

    async def left(body: Any, status: int) -> tuple[str | None, str | None]:
        got = await client.post(body)
        assert got.status == status
        assert got.header("x-ratelimit-limit-requests") == "6"
        assert got.header("x-ratelimit-limit-tokens") == "1000"
        assert got.header("x-ratelimit-reset-requests")
        return got.header("x-ratelimit-remaining-requests"), got.header("x-ratelimit-remaining-tokens")

    fake_vllm.play(Send(json_answer(USAGE)))
    assert await left(b"{", 400) == ("6", "1000")
    assert await left(BODY | {"max_tokens": 5000}, 400) == ("6", "1000")
    assert await left(BODY, 200) == ("5", "992")
    assert (await left(b"{", 400))[0] == "5"
    fake_vllm.play(Send(error_answer(400, "no", "BadRequestError")))
    assert (await left(BODY, 400))[0] == "4"
    await fake_vllm.down()
    for connection in fake_vllm.connections:
        connection.end()
    await asyncio.sleep(0.05)
    assert (await left(BODY, 503))[0] == "3"
    assert (await left(b"{", 400))[0] == "4"  # no backend saw it, so it was given back


async def test_429_says_when_to_come_back(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """In whole seconds and in milliseconds; the connection lives on."""
    running = await gateway(fake_vllm, rate_limit={"requests_per_minute": 1})
    client = await running.client()
    assert (await client.post(BODY)).status == 200
    got = await client.post(BODY)
    assert_error(got, 429, "rate_limit_exceeded")
    assert got.json["error"]["type"] == "rate_limit_error"
    assert 58 <= int(got.header("retry-after") or "") <= 60
    assert 58_000 <= int(got.header("retry-after-ms") or "") <= 60_000
    assert got.header("x-ratelimit-remaining-requests") == "0"
    assert got.header("connection") is None
    assert running.metric('aiaas_refused_total{limit="requests"}') == 1


async def test_reservation_above_the_bucket_is_a_400_naming_the_field(
    gateway: StartGateway, fake_vllm: FakeVllm
) -> None:
    """Waiting would not help."""
    running = await gateway(fake_vllm, rate_limit={"tokens_per_minute": 100})
    client = await running.client()
    assert_error(await client.post(BODY | {"max_tokens": 500}), 400, "invalid_request", "max_tokens")
    assert_error(
        await client.post(BODY | {"max_completion_tokens": 500}), 400, "invalid_request", "max_completion_tokens"
    )


# -- the SDK -------------------------------------------------------------------------------------------------------


async def test_the_official_sdk_raises_its_own_exceptions(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Each error as the class that its users catch."""
    poor = new_key("poor", limits=KeyLimits(requests_per_minute=1))
    running = await gateway(fake_vllm, keys=(poor,), backend={"timeout": "200ms", "max_retries": 0})
    base = f"http://127.0.0.1:{running.port}/v1"

    async def fails(kind: type[openai.APIError], key: str = running.key, model: str = "m", **more: Any) -> Any:
        async with openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0, timeout=more.pop("wait", 5)) as sdk:
            with pytest.raises(kind) as caught:
                await sdk.chat.completions.create(model=model, messages=[], **more)
        return caught.value

    assert (await fails(openai.AuthenticationError, key="sk-wrong")).code == "invalid_api_key"
    assert (await fails(openai.NotFoundError, model="none")).code == "model_not_found"
    assert (await fails(openai.BadRequestError, n=99)).param == "n"
    fake_vllm.play(Send(json_answer({})))
    client = await running.client()
    await client.post(BODY, key=poor.text)
    assert (await fails(openai.RateLimitError, key=poor.text)).code == "rate_limit_exceeded"
    fake_vllm.play(Hang())
    assert (await fails(openai.InternalServerError)).code == "upstream_timeout"
    fake_vllm.play(Hang())
    await fails(openai.APITimeoutError, wait=0.05)


# -- what goes upstream --------------------------------------------------------------------------------------------


async def test_only_the_listed_headers_go_upstream(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Never the client's key, its cookies, or another unlisted header."""
    running = await gateway(fake_vllm, backend={"forward_headers": ["X-Tenant"]})
    client = await running.client()
    headers = {
        "Accept": "text/event-stream", "traceparent": "00-1-2-01", "tracestate": "a=b", "Cookie": "secret=1",
        "x-api-key": "sk-other", "X-Forwarded-For": "1.2.3.4", "User-Agent": "ua", "Accept-Encoding": "gzip",
        "X-Request-Id": "forged", "X-Tenant": "blue", "TE": "trailers", "OpenAI-Organization": "org", "X-Other": "1",
        "Content-Type": "application/json; charset=utf-8",
    }  # fmt: skip
    assert (await client.post(BODY, headers=headers)).status == 200
    (post,) = fake_vllm.posts
    sent = dict(post.headers)
    assert sent.pop("x-request-id") != "forged"
    assert sent == {
        "host": f"127.0.0.1:{fake_vllm.port}",
        "accept-encoding": "identity",
        "content-type": "application/json; charset=utf-8",
        "accept": "text/event-stream",
        "traceparent": "00-1-2-01",
        "tracestate": "a=b",
        "x-tenant": "blue",
        "content-length": str(len(post.body)),
    }


async def test_the_body_goes_as_it_came_but_for_what_must_change(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Odd spacing, odd escapes and unknown fields survive; an alias and the usage option are spliced in."""
    running = await gateway(fake_vllm)
    client = await running.client()
    odd = b'{ "temperature" : 1.0e0,\n"model":"m", "messages":[{"content":"\\u00e9\xc3\xa9"}],"x":{"model":"alias"} }'
    await client.post(odd)
    await client.post(odd.replace(b'"model":"m"', b'"model":"alias"'))
    assert [post.body for post in fake_vllm.posts] == [odd, odd]
    fake_vllm.play(Send(stream(token_event(), usage_event(), DONE)))
    got = await client.post(b'{"model":"m","stream":true}')
    assert fake_vllm.posts[-1].body == b'{"stream_options":{"include_usage":true},"model":"m","stream":true}'
    assert got.body == token_event() + DONE


async def test_a_request_id_is_believed_from_a_trusted_proxy_only(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """And only where it is sane; it is returned, sent upstream and logged."""
    for trusted, offered, kept in (
        (["127.0.0.1/32"], "abc-123", True),
        (["127.0.0.1/32"], "a b", False),
        (["127.0.0.1/32"], "x" * 200, False),
        ([], "abc-123", False),
    ):
        running = await gateway(fake_vllm, server={"trusted_proxies": trusted})
        client = await running.client()
        got = await client.post(BODY, headers={"X-Request-Id": offered})
        used = got.header("x-request-id")
        assert (used == offered) == kept
        assert fake_vllm.posts[-1].headers["x-request-id"] == used == running.log_lines()[-1]["request_id"]


async def test_two_request_ids_are_not_believed(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """One of them may be the client's own, to which its proxy added another."""
    running = await gateway(fake_vllm, server={"trusted_proxies": ["127.0.0.1/32"]})
    client = await running.client()
    got = await client.post(BODY, headers={"X-Request-Id": "one", "x-request-id": "two"})
    assert got.status == 200
    assert got.header("x-request-id") not in ("one", "two", None)


# -- a client that leaves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "half_close", "reset"])
@pytest.mark.parametrize("phase", ["upload", "waiting", "streaming", "answering"])
async def test_a_client_that_leaves_takes_its_request_with_it(
    gateway: StartGateway, fake_vllm: FakeVllm, phase: str, how: str
) -> None:
    """In every phase: the backend learns of it, slot and gauge are released, and the log says 499 (or that sent)."""
    running = await gateway(fake_vllm, rate_limit={"max_concurrent": 1, "tokens_per_minute": 1000})
    client = await running.client()
    if phase == "upload":
        client.send(client.request(b'{"model":', headers={"Content-Length": "50"}))
        await until(lambda: running.gateway.in_flight)
    elif phase == "waiting":
        fake_vllm.play(Hang())
        client.send(client.request(BODY))
        await until(lambda: fake_vllm.posts)
    elif phase == "streaming":
        fake_vllm.play(Send(STREAM_HEAD + chunk(token_event()) * 3), Hang())
        client.send(client.request(STREAM))
        await client.head()
        for _ in range(1):
            await client.chunk()
    else:
        fake_vllm.play(Send(json_answer({"x": "y" * 100})[:-50]), Hang())
        client.send(client.request(BODY))
        await client.head()
    getattr(client, how)()
    await running.quiet()
    (line,) = running.log_lines()
    spent = phase in ("streaming", "answering")
    assert (line["status"], line["error_code"], line["ended_by"]) == (200 if spent else 499, "client_left", "client")
    assert running.metric("aiaas_requests_in_flight") == 0
    wanted = {"upload": "admission", "waiting": "waiting", "streaming": "streaming", "answering": "streaming"}[phase]
    assert running.metric(f'aiaas_aborts_total{{phase="{wanted}"}}') == 1
    if phase != "upload":
        await asyncio.wait_for(fake_vllm.posts[0].gone.wait(), 4)
    if phase == "upload":
        assert line["input_tokens"] is None
    else:
        # A whole answer had been generated before its first byte came: leaving in the middle saves nothing.
        assert (
            line["output_tokens"]
            == {"waiting": 0, "streaming": 3, "answering": (line["response_bytes"] + 3) // 4}[phase]
        )
        assert 5 < line["input_tokens"] < 30
    fake_vllm.play(Send(json_answer(USAGE)))
    other = await running.client()
    assert (await other.post(BODY)).status == 200  # the one slot is free again


async def test_client_that_leaves_during_hashing_leaves_nothing_behind(
    gateway: StartGateway, fake_vllm: FakeVllm
) -> None:
    """The hashing goes on for others that wait for the same key; the request is over at once."""
    slow = slow_key("slowly", rounds=300_000)
    running = await gateway(fake_vllm, keys=(slow,))
    client = await running.client()
    client.send(client.request(BODY, key=slow.text))
    await until(lambda: running.gateway.in_flight)
    client.reset()
    await running.quiet()
    (line,) = running.log_lines()
    assert (line["status"], line["user"], line["ended_by"]) == (499, None, "client")
    assert not fake_vllm.posts


# -- faults of ours ------------------------------------------------------------------------------------------------


class FaultyStore(MemoryStore):
    """A store that raises."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    async def admit(
        self, key: str, limits: Limits, tokens: int, now: float, wall: float, user: str = ""
    ) -> AdmissionResult:
        if self.where == "admit":
            raise ZeroDivisionError("a fault \udcff")
        return await super().admit(key, limits, tokens, now, wall, user)

    def settle(self, lease: Lease, used_tokens: int, now: float, wall: float, *, ran: bool = True) -> None:
        if self.where == "settle":
            raise ZeroDivisionError("a fault")
        super().settle(lease, used_tokens, now, wall, ran=ran)


async def faulty(gateway: StartGateway, fake: FakeVllm, where: str) -> Running:
    """A gateway whose store fails."""
    running = await gateway(fake)
    running.gateway.store = FaultyStore(where)
    running.gateway.replace_plan(plan_of({**_CONFIG, "backends": {"vllm": {**_BACKEND, "url": fake.url}}}))
    return running


_BACKEND = {"models": ["m"], "health": {"interval": "1s"}}
_CONFIG: dict[str, Any] = {"rate_limit": {"requests_per_minute": 5}}


async def test_internal_error_is_a_500_with_one_log_line(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """In JSON, with the id that stands in the log beside the traceback; the connection ends and the counters hold."""
    running = await faulty(gateway, fake_vllm, "admit")
    client = await running.client()
    got = await client.post(BODY)
    assert (got.status, got.json["error"]["code"], got.header("connection")) == (500, "internal_error", "close")
    assert await client.ended() == b""
    (line,) = running.log_lines("internal_error")
    assert "ZeroDivisionError" in line["traceback"]
    assert (got.header("x-request-id") or "?") in line["traceback"]
    (request,) = running.log_lines()
    assert (request["status"], request["error_code"]) == (500, "internal_error")
    assert running.gateway.in_flight == 0
    assert running.metric('aiaas_responses_total{code="500",reason="internal_error"}') == 1
    running.lines.clear()


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole answer", "stream"])
async def test_a_fault_after_the_answer_writes_no_second_one(
    gateway: StartGateway, fake_vllm: FakeVllm, body: dict[str, Any]
) -> None:
    """A 500 behind a whole answer would be taken for the answer to the client's next request."""
    running = await faulty(gateway, fake_vllm, "settle")
    fake_vllm.play(Send(stream(token_event(), DONE)) if "stream" in body else Send(json_answer(USAGE)))
    client = await running.client()
    got = await client.post(body)
    assert (got.status, got.whole) == (200, True)
    assert await client.ended() == b""
    assert len(running.log_lines("internal_error")) == 1
    assert running.gateway.in_flight == 0
    running.lines.clear()


class FaultyTally(Tally):
    """A histogram that raises at the second event of a stream, inside of the read callback."""

    def __init__(self) -> None:
        super().__init__(GAP_BUCKETS)
        self.low = math.inf  # no value is in the bucket of the last one

    def find(self, value: float) -> None:
        if hasattr(self, "low"):
            raise ZeroDivisionError("a fault")
        super().find(value)


def fault_in_the_relay(running: Running) -> None:
    running.metrics.timings.gaps._series["m",] = FaultyTally()


def fault_in_the_handler(running: Running) -> None:
    """When the answer breaks off, and its endpoint goes down."""

    def fail(_endpoint: EndpointState, _up: bool, _reason: str) -> None:
        raise ZeroDivisionError("a fault")

    running.backend().listener = fail


EVENT = chunk(token_event())


@pytest.mark.parametrize(
    ("fault", "body", "begin", "go_on_with"),
    [
        (fault_in_the_relay, STREAM, STREAM_HEAD + EVENT, (Send(EVENT), Hang())),
        (fault_in_the_handler, STREAM, STREAM_HEAD + EVENT, (Close(),)),
        (fault_in_the_handler, BODY, json_answer({"x": "y" * 100})[:-50], (Close(),)),
    ],
    ids=["relay", "handler", "handler, no stream"],
)
async def test_a_fault_in_the_middle_of_an_answer_fails_it(
    gateway: StartGateway,
    fake_vllm: FakeVllm,
    fault: Callable[[Running], None],
    body: dict[str, Any],
    begin: bytes,
    go_on_with: tuple[Step, ...],
) -> None:
    """It breaks off, which the client sees; log, metrics and /requests have a fault of ours, and not of the backend."""
    go_on = asyncio.Event()
    running = await gateway(fake_vllm, backend={"health": {"unhealthy_after": 1}})
    fault(running)
    fake_vllm.play(Send(begin), Wait(go_on), *go_on_with)
    client = await running.client()
    client.send(client.request(body))
    head = await client.head()
    assert head.status == 200
    go_on.set()
    rest = await client.ended()
    if fault is fault_in_the_relay:
        assert b'"code":"internal_error"' in rest
    elif body is BODY:
        assert len(rest) < int(head.header("content-length") or 0)
    await running.quiet()
    (line,) = running.log_lines()
    assert (line["status"], line["error_code"], line["ended_by"]) == (200, "internal_error", "gateway")
    for sample in (
        'aiaas_responses_total{code="200",reason="internal_error"}',
        'aiaas_answers_broken_total{by="gateway"}',
        'aiaas_availability_requests_total{result="bad"}',
    ):
        assert running.metric(sample) == 1
    assert [record.error_code for record in running.gateway.recent.ended] == ["internal_error"]
    assert running.gateway.in_flight == 0
    assert running.endpoints()[0].up is (fault is fault_in_the_relay)
    running.lines.clear()


# -- a changed Plan ------------------------------------------------------------------------------------------------


async def test_a_request_ends_under_the_plan_that_it_began_with(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Also where the new Plan no longer has its model or its backend."""
    go_on = asyncio.Event()
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Wait(go_on), Send(chunk(DONE) + LAST_CHUNK))
    running = await gateway(fake_vllm)
    client = await running.client()
    client.send(client.request(STREAM))
    await client.head()
    (old,) = running.endpoints()
    running.gateway.replace_plan(plan_of({"backends": {"other": {"url": "http://127.0.0.1:9", "models": ["new"]}}}))
    go_on.set()
    assert [await client.chunk() for _ in range(3)] == [token_event(), DONE, b""]
    assert_error(await client.post(BODY), 404, "model_not_found", "model")
    old.set_up(False, "nobody's business any more")
    assert not running.log_lines("endpoint_down")
    assert fake_vllm.url not in running.metrics.expose().decode()


async def test_health_of_an_address_survives_a_changed_plan(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """A backend that is down stays down, and a running engine stays up, when only a timeout changes."""
    running = await gateway(fake_vllm)
    running.endpoints()[0].set_up(False, "test")
    changed = {**_CONFIG, "backends": {"vllm": {**_BACKEND, "url": fake_vllm.url, "timeout": "7s"}}}
    running.gateway.replace_plan(plan_of(changed))
    assert not running.endpoints()[0].up
    engine = {"backends": {"vllm": {"engine": {"kind": "simulator", "port": 18000}, "models": ["m"]}}}
    running.gateway.replace_plan(plan_of(engine))
    running.endpoints()[0].set_up(True, "test")
    engine["backends"]["vllm"]["timeout"] = "9s"
    running.gateway.replace_plan(plan_of(engine))
    assert running.endpoints()[0].up


# -- the drain deadline --------------------------------------------------------------------------------------------


async def test_the_drain_deadline_ends_every_phase_with_an_answer(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """A stream ends with an error event, a waiting request gets 503, and so does one still being read."""
    running = await gateway(fake_vllm)
    streaming, waiting, uploading = [await running.client() for _ in range(3)]
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Hang())
    streaming.send(streaming.request(STREAM))
    await streaming.head()
    await streaming.chunk()
    fake_vllm.play(Hang())
    waiting.send(waiting.request(BODY))
    uploading.send(uploading.request(b"{", headers={"Content-Length": "50"}))
    await until(lambda: running.gateway.in_flight == 3 and len(fake_vllm.posts) == 2)
    running.gateway.draining = running.gateway.refusing = True
    running.gateway.end_requests()
    event = await streaming.chunk()
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "draining"
    assert await streaming.chunk() == b""
    for client in (waiting, uploading):
        got = await client.answer()
        assert_error(got, 503, "draining")
        assert (got.header("connection"), got.header("retry-after")) == ("close", "1")
    await running.quiet()
    lines = sorted((line["status"], line["error_code"], line["ended_by"]) for line in running.log_lines())
    assert lines == [(200, "draining", "gateway"), (503, "draining", "gateway"), (503, "draining", "gateway")]
    for post in fake_vllm.posts:
        await asyncio.wait_for(post.gone.wait(), 4)


async def test_draining_ends_connections_after_answers_then_refuses(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """`/ready` says no, `/health` goes on."""
    running = await gateway(fake_vllm)
    running.gateway.draining = True
    client = await running.client()
    got = await client.post(BODY)
    assert (got.status, got.header("connection")) == (200, "close")
    assert (await (await running.client()).get("/ready")).status == 503
    assert (await (await running.client()).get("/health")).status == 200
    running.gateway.refusing = True
    got = await (await running.client()).post(BODY)
    assert_error(got, 503, "draining")
    assert got.header("retry-after") == "1"


async def test_each_target_comes_with_the_state_of_its_backend() -> None:
    """In the order of preference."""
    plan = plan_of(config_of(["http://127.0.0.1:1"], {}, {}))
    (backend,) = plan.backends
    state = BackendState(backend, lambda _endpoint, _up, _reason: None)
    targets = (RouteTarget(backend, "m", None), RouteTarget(backend, "m", b'"m"'))
    route = Route("m", targets, None, None, "reject")
    assert list(targets_of(route, {"vllm": state})) == [(targets[0], state), (targets[1], state)]
    state.close()
