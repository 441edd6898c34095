"""aiaas.proxy.client.connection: what a client may do to a connection before anything is a request. Raw bytes, both
loops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator

import pytest

from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.incoming import HttpRequest
from aiaas.proxy.client.open_side import OpenSide
from aiaas.proxy.client.refusal import ConnectionLimits
from tests.fakes.vllm import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    FakeVllm,
    Send,
    Sleep,
    Wait,
    chunk,
    json_answer,
    stream,
    token_event,
)
from tests.proxy.conftest import CHAT, Got, Raw, Running, StartGateway, chunked
from tests.proxy.loops import both_loops
from tests.waiting import closed, until

BODY = {"model": "m", "messages": []}


# Each test on both loops: they differ in how many bytes one read brings.
event_loop_policy = both_loops


@pytest.fixture
async def running(gateway: StartGateway, fake_vllm: FakeVllm) -> Running:
    """A gateway that takes small heads only."""
    return await gateway(fake_vllm, server={"max_header_size": "4KiB"})


@pytest.fixture
async def hasty(gateway: StartGateway, fake_vllm: FakeVllm) -> Running:
    """A gateway with short timeouts."""
    return await gateway(fake_vllm, server={"header_timeout": "200ms", "body_timeout": "200ms"})


def assert_error(got: Got, status: int, code: str) -> None:
    """An error in the OpenAI shape, and a connection that ends."""
    assert (got.status, got.json["error"]["code"]) == (status, code), got
    assert set(got.json["error"]) == {"message", "type", "param", "code"}
    assert got.json["error"]["type"] == ("server_error" if status in (500, 503) else "invalid_request_error")
    assert got.header("content-type") == "application/json"
    assert got.header("connection") == "close"
    assert got.header("date")


async def refused(running: Running, *pieces: bytes, pause: float = 0.0) -> Got:
    """Send pieces, read one answer, and see the connection end with nothing behind it."""
    client = await running.client()
    for piece in pieces:
        client.send(piece)
        await asyncio.sleep(pause)
    got = await client.answer()
    assert await client.ended() == b""
    return got


# -- slow and large heads ------------------------------------------------------------------------------------------


async def test_a_head_that_comes_byte_by_byte_gets_408(hasty: Running) -> None:
    """The timeout counts from the head's first byte, however many follow."""
    client = await hasty.client()
    started = asyncio.get_running_loop().time()

    async def drip() -> None:
        for byte in b"GET /health HTTP/1.1\r\nHost: x" + b"x" * 10_000:
            client.send(bytes([byte]))
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    got = await client.answer()
    took = asyncio.get_running_loop().time() - started
    dripping.cancel()
    assert_error(got, 408, "request_timeout")
    assert took > 0.19
    assert hasty.metric('aiaas_responses_total{code="408",reason="request_timeout"}') == 1


async def test_an_idle_connection_is_not_a_slow_head(hasty: Running) -> None:
    """Silence, or empty lines between requests, does not start the timeout."""
    client = await hasty.client()
    await asyncio.sleep(0.25)
    client.send(b"\r\n")
    await asyncio.sleep(0.25)
    assert (await client.get("/health")).status == 200
    client.send(b"\r\n\r\n")
    await asyncio.sleep(0.25)
    assert (await client.get("/health")).status == 200


async def test_half_a_head_behind_a_request_leaves_its_answer_whole(hasty: Running, fake_vllm: FakeVllm) -> None:
    """A client that began its next request gets the answer that it waits for, and only then the 408."""
    finish = asyncio.Event()
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Wait(finish), Send(chunk(DONE) + LAST_CHUNK))
    client = await hasty.client()
    client.send(client.request(BODY | {"stream": True}))
    await client.head()
    client.send(b"POST /v1/chat")
    await asyncio.sleep(0.5)
    assert await client.chunk() == token_event()
    finish.set()
    assert (await client.chunk(), await client.chunk()) == (DONE, b"")
    assert_error(await client.answer(), 408, "request_timeout")


BIG = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 1_000_000 + b"\r\n\r\n"


@pytest.mark.parametrize("size", [len(BIG), 65536, 1000], ids=["one piece", "64 KiB pieces", "small pieces"])
async def test_a_header_of_a_megabyte_gets_431(running: Running, size: int) -> None:
    """The client reads the answer although it still sends: the connection is closed without a reset."""
    got = await refused(running, *[BIG[at : at + size] for at in range(0, len(BIG), size)])
    assert_error(got, 431, "headers_too_large")
    assert got.json["error"]["message"] == "The request's headers are larger than 4096 bytes."


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n"
        + b"".join(b"X-%d: %b\r\n" % (n, b"v" * 100) for n in range(60))
        + b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: v\r\n" % n for n in range(200)) + b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"a" * 5000 + b": v\r\n\r\n",
    ],
    ids=["long path", "many bytes in many headers", "many small headers", "long name"],
)
@pytest.mark.parametrize("pieces", [1, 3], ids=["at once", "in three pieces"])
async def test_a_head_that_is_too_large_in_sum_gets_431(running: Running, head: bytes, pieces: int) -> None:
    """Whichever part of the head is large, and however it arrives."""
    size = -(-len(head) // pieces)
    got = await refused(running, *[head[at : at + size] for at in range(0, len(head), size)], pause=0.01)
    assert_error(got, 431, "headers_too_large")


async def test_a_head_just_below_the_bound_passes(running: Running) -> None:
    """The limit is on the whole head, to the byte."""
    start = b"GET /health HTTP/1.1\r\nHost: x\r\nX: "
    for size, status in ((4096, 200), (4097, 431)):
        client = await running.client()
        head = start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"
        client.send(head)
        assert (await client.answer()).status == status
        client = await running.client()
        client.send(head[:2000])
        await asyncio.sleep(0.02)
        client.send(head[2000:])
        assert (await client.answer()).status == status


# -- what is not HTTP ----------------------------------------------------------------------------------------------

MARK = b"MARKER-1234"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00" + MARK + b"\r\n\r\n",
        MARK + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + MARK + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + MARK + b"\x00\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost : " + MARK + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: " + MARK + b"\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n" + MARK,
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + MARK,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n" + MARK,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n" + MARK,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\n" + MARK,
        b"GET /health HTTP/1.1\r\nHost: x\r\n folded: " + MARK + b"\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: x\n\n" + MARK,
    ],
    ids=[
        "TLS", "no HTTP", "no colon", "NUL", "space before colon", "no host", "two lengths",
        "length and chunked", "chunked not last", "negative length", "list of lengths", "folded header", "bare LF",
    ],
)  # fmt: skip
async def test_bytes_that_are_not_http_get_a_json_400_without_them(running: Running, data: bytes) -> None:
    """The answer is HTTP/1.1; neither it nor the log quotes the client, and no traceback is logged."""
    got = await refused(running, data)
    assert_error(got, 400, "invalid_request")
    assert MARK not in got.head + got.body
    running.gateway.log.flush()
    logged = b"".join(running.lines)
    assert MARK not in logged
    assert b"Traceback" not in logged
    assert running.log_lines("request_refused")[-1]["status"] == 400


@pytest.mark.parametrize("pieces", [1, 2])
async def test_rubbish_behind_a_request_is_refused_after_its_answer(running: Running, pieces: int) -> None:
    """Also where one read brought the request and the rubbish."""
    client = await running.client()
    data = [client.request(BODY), b"\x00rubbish\r\n\r\n"]
    for piece in data if pieces == 2 else [b"".join(data)]:
        client.send(piece)
    assert (await client.answer()).status == 200
    assert_error(await client.answer(), 400, "invalid_request")
    assert await client.ended() == b""


VERSIONS = {
    b"HTTP/1.1": 200, b"HTTP/1.0": 200,
    # RFC 9110 section 15.6.6: another major version. A line without a version is HTTP/0.9, and so not HTTP/1.1 either.
    b"HTTP/0.9": 505, b"HTTP/2.0": 505, b"HTTP/3.0": 505, b"HTTP/9.9": 505, b"HTTP/0.8": 505, b"": 505,
    # Section 2.5 reads it as HTTP/1.1. The parser does not, and nobody sends it.
    b"HTTP/1.2": 505, b"HTTP/1.9": 505,
    # RFC 9112 section 2.3: `HTTP/` in capitals, a digit, a dot, a digit.
    b"http/1.1": 400, b"Http/1.1": 400, b"HTTP/1.10": 400, b"HTTP/10.1": 400, b"HTTP/11": 400, b"HTTP/1": 400,
    b"HTTP/": 400, b"HTTP/x.y": 400, b"HTTP/1.x": 400, b"HTTP/1,1": 400, b"HTTP /1.1": 400, b"HTTP/ 1.1": 400,
    b"HTTP/1.1 ": 400, b"HTTP/1.1 x": 400, b"HTTP/-1.1": 400, b"HTTPS/1.1": 400, b"1.1": 400, b"x": 400,
    # Another protocol.
    b"RTSP/1.0": 400, b"RTSP/1.1": 400, b"ICE/1.0": 400, b"SIP/2.0": 400, b"\x00": 400, b"\xff": 400,
}  # fmt: skip


@pytest.mark.parametrize(
    ("version", "status"), VERSIONS.items(), ids=[repr(version)[2:-1] or "none" for version in VERSIONS]
)
@pytest.mark.parametrize("path", ["/health", CHAT, f"http://x{CHAT}"])
async def test_a_version_other_than_1_0_and_1_1_is_refused(
    running: Running, fake_vllm: FakeVllm, version: bytes, status: int, path: str
) -> None:
    """The error has the OpenAI shape, and the connection ends."""
    if status == 200:
        client = await running.client()
        assert (await client.get("/health", version=version.decode().removeprefix("HTTP/"))).status == 200
        return
    line = (b"GET " if path == "/health" else b"POST ") + path.encode() + (b" " + version if version else b"") + b"\r\n"
    body = json.dumps(BODY).encode()
    head = f"Host: x\r\nAuthorization: Bearer {running.key}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    got = await refused(running, line + head + body)
    assert_error(got, status, "invalid_request")
    assert not fake_vllm.posts


async def test_the_preface_of_http_2_gets_505(running: Running) -> None:
    """A client with prior knowledge of HTTP/2 sends the preface at once."""
    assert_error(await refused(running, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)), 505, "invalid_request")


HOSTS = ["x, y", "a@x", "x/y", "x y", "x:abc", "http://x", "b\u00fccher", "", ":80", "[::1", "x:65536", "x\x01y", "%zz"]


@pytest.mark.parametrize("host", HOSTS, ids=[repr(host) for host in HOSTS])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_an_invalid_host_is_a_400(running: Running, fake_vllm: FakeVllm, host: str, version: str) -> None:
    """RFC 9112 section 3.2, also where the one before it on the connection was valid."""
    client = await running.client()
    assert (await client.post(BODY, headers={"Host": "gateway"})).status == 200
    client.send(client.request(BODY, version=version, headers={"Host": host}))
    assert_error(await client.answer(), 400, "invalid_request")
    assert await client.ended() == b""
    assert len(fake_vllm.posts) == 1


@pytest.mark.parametrize(
    "lines", ["", "Host: x\r\nHost: x\r\n", "Host: x\r\nhost: y\r\n"], ids=["no", "equal", "other"]
)
async def test_no_host_and_two_hosts_are_a_400(running: Running, lines: str) -> None:
    """RFC 9112 section 3.2: exactly one Host is required."""
    assert_error(await refused(running, f"GET /health HTTP/1.1\r\n{lines}\r\n".encode()), 400, "invalid_request")


@pytest.mark.parametrize("host", ["gateway", "my_gateway.", "x:", "x:8080", "[::1]:8080", "%41.example"])
async def test_a_valid_host_is_served_whatever_it_is(running: Running, host: str) -> None:
    """The Plan alone says where a request goes."""
    client = await running.client()
    assert (await client.post(BODY, headers={"Host": host})).status == 200
    assert (await client.post(BODY, headers={"Host": host})).status == 200


@pytest.mark.parametrize(
    "target", ["http://a@x/health", "http://x,y/health", "http://x:65536/health", "http://[::1/health"]
)
async def test_an_invalid_host_in_the_target_is_a_400(running: Running, target: str) -> None:
    """A proxy's form of a request."""
    assert_error(await refused(running, f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()), 400, "invalid_request")


# -- the end of a connection ---------------------------------------------------------------------------------------

ENDING = {
    "close": ("1.1", {"Connection": "close"}),
    "close among others": ("1.1", {"Connection": "x, Close"}),
    "HTTP/1.0": ("1.0", {}),
    "upgrade": ("1.1", {"Connection": "upgrade", "Upgrade": "websocket"}),
    "another upgrade": ("1.1", {"Connection": "upgrade", "Upgrade": "h2c"}),
}


@pytest.mark.parametrize("ending", list(ENDING))
@pytest.mark.parametrize("behind", ["rubbish", "a request", "a megabyte"])
@pytest.mark.parametrize("cut", ["at once", "behind the request", "in the body"])
async def test_bytes_behind_the_last_request_leave_its_answer_whole(
    running: Running, fake_vllm: FakeVllm, ending: str, behind: str, cut: str
) -> None:
    """RFC 9112 section 9.6: the request is answered, then the connection ends; nothing behind it is run."""
    version, headers = ENDING[ending]
    fake_vllm.play(Send(stream(token_event(), DONE)))
    client = await running.client()
    request = client.request(BODY | {"stream": True}, version=version, headers=headers)
    more = {"rubbish": b"\x00\xff", "a request": client.request(BODY), "a megabyte": b"x" * 1_000_000}[behind]
    at = {"at once": len(request + more), "behind the request": len(request), "in the body": len(request) - 5}[cut]
    client.send((request + more)[:at])
    if cut != "at once":
        await asyncio.sleep(0.01)
        client.send((request + more)[at:])
    got = await client.answer()
    assert (got.status, got.whole, got.header("connection")) == (200, True, "close")
    assert await client.ended() == b""
    await running.quiet()
    assert len(fake_vllm.posts) == 1
    assert not running.log_lines("request_refused")


async def test_client_that_sends_past_its_last_request_gets_the_answer(running: Running, fake_vllm: FakeVllm) -> None:
    """Although it begins to read late: the connection ends without a reset, which would take the answer away."""
    fake_vllm.play(Send(json_answer({"id": 1})))
    loop = asyncio.get_running_loop()
    client = await running.client()
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", running.port))
        await loop.sock_sendall(sock, client.request(BODY, headers={"Connection": "close"}) + b"more")
        await until(lambda: any(connection._lingering is not None for connection in running.open_side.connections))
        for _ in range(3):
            await loop.sock_sendall(sock, b"and more")
            await asyncio.sleep(0.01)
        got = b""
        while data := await loop.sock_recv(sock, 65536):
            got += data
    assert got.startswith(b"HTTP/1.1 200 ")
    assert got.endswith(b'{"id":1}')


async def test_bytes_that_come_with_the_answers_end_leave_it_whole(
    running: Running, fake_vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the moment between the last read and the close: closing with bytes unread would be a reset."""
    fake_vllm.play(Send(stream(token_event(), DONE)))
    handle = running.gateway.handle
    with socket.socket() as sock:

        async def handle_and_send(request: HttpRequest, connection: ClientConnection) -> bool:
            keep_alive = await handle(request, connection)
            sock.send(b"\r\nmore")
            return keep_alive

        monkeypatch.setattr(running.open_side, "handle", handle_and_send)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", running.port))
        request = (await running.client()).request(BODY | {"stream": True}, version="1.0")
        await loop.sock_sendall(sock, request)
        got = b""
        async with asyncio.timeout(10):
            while data := await loop.sock_recv(sock, 65536):
                got += data
    assert got.endswith(DONE)


async def test_a_broken_body_before_a_close_is_still_a_400(running: Running) -> None:
    """Only what follows a whole request is thrown away."""
    assert_error(
        await refused(running, chunked(running, b"zz\r\n", headers="Connection: close\r\n")), 400, "invalid_request"
    )


async def transfer_coding(running: Running, lines: str, version: str = "1.1", method: str = "POST") -> Got:
    """The answer to a request with a whole chunked body and the given header lines."""
    head = f"{method} {CHAT} HTTP/{version}\r\nHost: x\r\nAuthorization: Bearer {running.key}\r\n{lines}\r\n\r\n"
    return await refused(running, head.encode() + b"2\r\n{}\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: xchunked, chunked", 501),
        ("Transfer-Encoding: ,chunked", 501),
        ("Transfer-Encoding: identity", 400),
        ("Transfer-Encoding: gzip", 400),
        ("Transfer-Encoding: chunked, chunked", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked;q=1", 400),
    ],
    ids=[
        "gzip, then chunked", "unknown, then chunked", "an empty one", "identity", "gzip",
        "chunked twice in one header", "chunked in two headers", "gzip and chunked in two headers",
        "chunked with a parameter",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_transfer_coding_other_than_chunked_is_refused(
    running: Running, fake_vllm: FakeVllm, lines: str, status: int, method: str
) -> None:
    """As RFC 9112 section 6.1 says, and what follows on the connection is not taken for a request."""
    assert_error(await transfer_coding(running, lines, method=method), status, "invalid_request")
    assert not fake_vllm.posts


async def test_http_1_0_has_no_transfer_coding(running: Running, fake_vllm: FakeVllm) -> None:
    """A client that writes one frames the message otherwise than we do (RFC 9112 section 6.1)."""
    assert_error(await transfer_coding(running, "Transfer-Encoding: chunked", "1.0"), 400, "invalid_request")
    assert not fake_vllm.posts


async def test_bad_coding_in_a_second_request_is_answered_second(running: Running) -> None:
    """The answer to the second request follows the first one's."""
    client = await running.client()
    bad = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    client.send(client.request(BODY) + bad)
    assert (await client.answer()).status == 200
    assert_error(await client.answer(), 501, "invalid_request")


async def test_refused_head_logs_the_answers_id_and_the_client(running: Running) -> None:
    """So that a refused client can be helped."""
    got = await refused(running, b"rubbish\r\n\r\n")
    (line,) = running.log_lines("request_refused")
    assert line["request_id"] == got.header("x-request-id") != ""
    assert (line["client_address"], line["status"]) == ("127.0.0.1", 400)
    assert line["reason"] == got.json["error"]["message"]


# -- bodies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [b"zz\r\n", b"-5\r\nhello\r\n", b"3\r\nhello\r\n", b"ffffffffffffffffff\r\n"],
    ids=["not hex", "negative", "longer than said", "more than 64 bits"],
)  # fmt: skip
@pytest.mark.parametrize("together", [True, False], ids=["with the head", "after a good chunk"])
async def test_a_broken_chunk_is_a_400_at_once(running: Running, bad: bytes, together: bool) -> None:
    """The request's reader does not wait for a body that can never end."""
    if together:
        got = await refused(running, chunked(running, bad))
    else:
        got = await refused(running, chunked(running, b"1\r\n{\r\n"), bad, pause=0.05)
    assert_error(got, 400, "invalid_request")
    assert not running.gateway.in_flight


async def test_chunk_extensions_and_trailers_are_ignored(running: Running, fake_vllm: FakeVllm) -> None:
    """The body is what the chunks hold; a trailer does not become a header."""
    client = await running.client()
    body = json.dumps(BODY).encode()
    trailer = b"0\r\nAuthorization: Bearer other\r\nX-Evil: 1\r\n\r\n"
    client.send(chunked(running, b"%x;name=value\r\n%b\r\n" % (len(body), body), trailer))
    assert (await client.answer()).status == 200
    assert fake_vllm.posts[0].body == body
    assert "x-evil" not in fake_vllm.posts[0].headers
    assert (await client.post(BODY)).status == 200


async def test_a_body_that_stops_gets_408(hasty: Running) -> None:
    """After body_timeout of silence, and without a leak."""
    client = await hasty.client()
    client.send(client.request(b'{"model":', headers={"Content-Length": "100"}))
    got = await client.answer()
    assert_error(got, 408, "request_timeout")
    assert got.header("x-request-id") is not None
    await hasty.quiet()
    assert hasty.metric("aiaas_requests_in_flight") == 0


async def test_a_slow_body_that_goes_on_is_read(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The bound is on silence, not on the whole."""
    running = await gateway(fake_vllm, server={"body_timeout": "1s"})
    client = await running.client()
    body = json.dumps(BODY | {"user": "x" * 8000}).encode()
    client.send(client.request(None, headers={"Content-Type": "application/json", "Content-Length": str(len(body))}))
    for at in range(0, len(body), 1000):
        await asyncio.sleep(0.2)
        client.send(body[at : at + 1000])
    assert (await client.answer()).status == 200


# -- pipelining ----------------------------------------------------------------------------------------------------


async def test_two_pipelined_requests_are_answered_in_order(running: Running, fake_vllm: FakeVllm) -> None:
    """Also where the first answer takes longer."""
    fake_vllm.play(Sleep(0.05), Send(json_answer({"id": 1})))
    fake_vllm.play(Send(json_answer({"id": 2})))
    client = await running.client()
    client.send(client.request(BODY) + client.request(BODY))
    assert [(await client.answer()).json["id"] for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("together", [True, False], ids=["at once", "one by one"])
@pytest.mark.parametrize("number", [3, 4, 500])
async def test_a_third_pipelined_request_is_refused_in_its_turn(
    running: Running, fake_vllm: FakeVllm, together: bool, number: int
) -> None:
    """The refusal follows the answers to the two before it; then the connection ends, however many requests follow."""
    fake_vllm.play(Wait(go := asyncio.Event()), Send(json_answer({"id": 1})))
    fake_vllm.play(Send(json_answer({"id": 2})))
    client = await running.client()
    requests = [client.request(BODY)] * number
    for data in [b"".join(requests)] if together else requests:
        client.send(data)
        if not together and number < 10:
            await asyncio.sleep(0.005)
    await until(lambda: any(len(connection._queue) == 2 for connection in running.open_side.connections))
    go.set()
    assert [(await client.answer()).json["id"] for _ in range(2)] == [1, 2]
    assert_error(await client.answer(), 400, "invalid_request")
    assert await client.ended() == b""
    assert len(fake_vllm.posts) == 2
    assert len(running.log_lines("request_refused")) == 1


@pytest.mark.parametrize("number", [2, 3, 500])
@pytest.mark.parametrize("together", [True, False], ids=["at once", "while the first is answered"])
async def test_a_pipelining_client_that_leaves_is_noticed(
    running: Running, fake_vllm: FakeVllm, together: bool, number: int
) -> None:
    """Reading goes on, so the work for its first request ends with the connection."""
    fake_vllm.play(Wait(asyncio.Event()))
    client = await running.client()
    client.send(client.request(BODY) * (number if together else 1))
    while not fake_vllm.posts:
        await asyncio.sleep(0.005)
    if not together:
        client.send(client.request(BODY) * (number - 1))
        await asyncio.sleep(0.02)
    client.close()
    await running.quiet()
    await asyncio.wait_for(fake_vllm.posts[0].gone.wait(), 5)
    assert len(fake_vllm.posts) == 1


async def test_bytes_behind_a_refused_pipeline_are_not_kept(running: Running, fake_vllm: FakeVllm) -> None:
    """Further requests are not even parsed: the queue has the waiting request, and the refusal."""
    fake_vllm.play(Wait(finish := asyncio.Event()), Send(json_answer({"id": 1})))
    client = await running.client()
    for _ in range(50):
        client.send(client.request(BODY) * 100)
        await asyncio.sleep(0)
    await until(lambda: bool(fake_vllm.posts) and bool(running.open_side.connections))
    (connection,) = running.open_side.connections
    await until(lambda: len(connection._queue) == 2)
    await client.writer.drain()
    assert connection.transport is not None
    assert connection.transport.is_reading()
    assert len(connection._queue) == 2
    finish.set()
    assert (await client.answer()).json["id"] == 1


@pytest.mark.parametrize(
    ("second", "status"),
    [(b"GET /health HTTP/1.1", 200), (b"GET /health RTSP/1.0", 400), (b"GET /health HTTP/2.0", 505)],
    ids=["HTTP", "another protocol", "another version"],
)
@pytest.mark.parametrize("cut", [True, False], ids=["behind the rest of a body", "behind a request"])
async def test_a_head_in_the_middle_of_a_read_is_checked_as_any_other(
    running: Running, second: bytes, status: int, cut: bool
) -> None:
    """A body before it, larger than any head, does not count."""
    client = await running.client()
    first = client.request(BODY | {"user": "x" * 50_000})
    data = first + second + b"\r\nHost: x\r\n\r\n"
    at = len(first) - 40_000 if cut else 0
    client.send(data[:at])
    await asyncio.sleep(0.02)
    client.send(data[at:])
    assert (await client.answer()).status == 200
    assert (await client.answer()).status == status


async def test_requests_one_after_the_other_do_not_count_as_pipeline(running: Running) -> None:
    """A keep-alive connection serves any number of requests in turn."""
    client = await running.client()
    for _ in range(20):
        assert (await client.post(BODY)).status == 200
        assert (await client.get("/health")).status == 200


# -- leaving -------------------------------------------------------------------------------------------------------


async def test_connection_refused_while_it_sends_ends_by_itself(running: Running) -> None:
    """The client is still allowed to read the refusal of a body that it goes on sending."""
    client = await running.client()
    client.send(client.request(b"x" * 5_000_000, headers={"Content-Type": "text/plain"}))
    got = await client.answer()
    assert_error(got, 415, "unsupported_media_type")
    assert await client.ended() == b""


async def test_listener_hears_of_a_slow_reader_and_of_its_recovery(running: Running, fake_vllm: FakeVllm) -> None:
    """The stream comes whole, and what waits in memory stays bounded meanwhile."""
    event = token_event("x" * 1000)
    fake_vllm.play(Send(stream(*[event] * 5000, DONE)))
    client = await running.client(receive_buffer=4096)
    client.send(client.request(BODY | {"stream": True}))
    await client.head()
    await asyncio.sleep(0.2)
    (connection,) = running.open_side.connections
    assert connection.transport is not None
    assert connection.transport.get_write_buffer_size() < 1_000_000
    body = b""
    while data := await client.chunk():
        body += data
    assert body == event * 5000 + DONE


# -- clients that stop reading -------------------------------------------------------------------------------------


@pytest.fixture
async def impatient(running: Running) -> AsyncIterator[tuple[int, OpenSide]]:
    """The running gateway on a second port, where a client that takes no byte of an ended answer has 300 ms."""
    made = running.gateway
    limits = ConnectionLimits(10.0, 4096, closing_silence=0.3)
    open_side = OpenSide(made.handle, limits, made.incidents)
    server = await asyncio.get_running_loop().create_server(open_side, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], open_side
    await closed(server)
    await open_side.shutdown(0.1)


async def until_gone(open_side: OpenSide, seconds: float = 3.0) -> None:
    """Wait until it has no connection left."""
    async with asyncio.timeout(seconds):
        while open_side.connections:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["keep-alive", "close", "force_close", "linger"])
async def test_client_that_reads_nothing_of_an_ended_answer_is_dropped(
    running: Running, impatient: tuple[int, OpenSide], fake_vllm: FakeVllm, how: str
) -> None:
    """Also behind a close, which would wait for the client forever and keep the socket."""
    port, open_side = impatient
    fake_vllm.play(Send(json_answer({"id": "x" * 40_000})))
    client = await Raw.connect(port, running.key, receive_buffer=2048)
    client.send(client.request(None, path="/health", method="GET"))
    await client.reader.readuntil(b"\r\n\r\n")
    (connection,) = open_side.connections
    transport = connection.transport
    assert isinstance(connection, ClientConnection)
    assert transport is not None
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    client.send(client.request(BODY, headers={"Connection": "close"} if how == "close" else {}))
    async with asyncio.timeout(3):
        while not transport.get_write_buffer_size():
            await asyncio.sleep(0.005)
    await running.quiet()
    if how == "force_close":
        connection.force_close()
    elif how == "linger":
        connection.linger()
    assert open_side.connections
    await until_gone(open_side, 1.5)
    assert "did not read" in running.log_lines("connection_dropped")[-1]["reason"]
    client.reset()


async def test_slow_reader_of_an_ended_answer_keeps_its_connection(
    running: Running, impatient: tuple[int, OpenSide], fake_vllm: FakeVllm
) -> None:
    """The limit is on silence: the client gets all, and the next answer too."""
    port, open_side = impatient
    body = {"id": "x" * 100_000}
    client = await Raw.connect(port, running.key, receive_buffer=2048)
    assert (await client.get("/health")).status == 200
    (connection,) = open_side.connections
    transport = connection.transport
    assert transport is not None
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    fake_vllm.play(Send(json_answer(body)))
    client.send(client.request(BODY))
    head = await client.head()
    left = int(head.header("content-length") or 0)
    started = asyncio.get_running_loop().time()
    while left:
        left -= len(await client.reader.read(min(left, 4096)))
        await asyncio.sleep(0.03)
    assert asyncio.get_running_loop().time() - started > 0.6
    assert (await client.get("/health")).status == 200
    await asyncio.sleep(0.4)
    assert (await client.get("/health")).status == 200
    client.reset()


# -- whatever else -------------------------------------------------------------------------------------------------

SCRAPS = [
    b"\r\n", b"\x00", b":", b" ", b"\xff", b"Content-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1",
    b"0\r\n\r\n", b"A" * 5000, b"%00", b"/../", b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n",
]  # fmt: skip


def mangled(choose: random.Random, requests: list[bytes]) -> bytes:
    """One to three requests with up to three scraps put in, bytes taken out, or bytes changed."""
    data = bytearray(b"".join(choose.choices(requests, k=choose.choice((1, 1, 2, 3)))))
    for _ in range(choose.randrange(4)):
        at = choose.randrange(len(data))
        end = at + choose.randrange(20)
        data[at : choose.choice((at, end))] = choose.choice((b"", choose.randbytes(1), choose.choice(SCRAPS)))
    return bytes(data)


async def test_mangled_requests_leave_nothing_behind(hasty: Running, fake_vllm: FakeVllm) -> None:
    """Cut into pieces at random, with clients that read, leave and reset: no internal error, no request left over."""
    choose = random.Random(1)
    first = await hasty.client()
    requests = [
        first.request(BODY),
        first.request(BODY, version="1.0"),
        first.request({"model": "alias", "stream": True, "n": 1, "stream_options": {}, "messages": []}),
        first.request(None, path="/v1/models", method="GET"),
        first.request(None, path="/health", method="HEAD"),
        first.request(BODY, headers={"Upgrade": "websocket", "Connection": "Upgrade"}),
        chunked(hasty, b"5\r\nhello\r\n0\r\n\r\n"),
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    ]

    async def visit() -> None:
        client = await hasty.client()
        data = mangled(choose, requests)
        with contextlib.suppress(OSError, RuntimeError):  # uvloop: "the handler is closed"
            while data:
                size = choose.choice((1, 7, 50, 500, 5000))
                client.send(data[:size])
                data = data[size:]
                await asyncio.sleep(choose.choice((0, 0, 0.001)))
            if choose.random() < 0.5:
                client.half_close()
                await client.ended()
        client.reset()

    for _ in range(10):
        await asyncio.gather(*[visit() for _ in range(30)])
    await hasty.quiet()
    assert hasty.metric("aiaas_requests_in_flight") == 0
    assert not hasty.log_lines("internal_error")
    assert not hasty.log_lines("library")
    assert len(hasty.log_lines("request_refused")) > 50
    assert len(hasty.log_lines()) > 50
