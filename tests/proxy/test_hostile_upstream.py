"""Whatever a broken or hostile backend writes: nothing hangs, nothing crosses over, nothing stays behind."""

from __future__ import annotations

import asyncio
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.vllm import Close, FakeVllm, Flood, Hang, Reset, Send, Step, chunk, json_answer
from tests.proxy.conftest import Got, Raw, Running, StartGateway
from tests.proxy.markers import HERE, Marked, Marks, assert_ours, assert_unharmed, body_with, strangers

# Seconds within which every exchange ends: the silence that is allowed, once more for a retry, and its backoff.
BOUND = 3.0

TEXT = HERE.decode()
EVENT = b'data: {"choices":[{"delta":{"content":"' + HERE + b'"}}]}\n\n'
WHOLE_JSON = json_answer({"text": TEXT})

_STATUS_LINES = st.sampled_from(
    [b"HTTP/1.1 200 OK"] * 8
    + [
        b"HTTP/1.0 200 OK", b"HTTP/1.1 200", b"HTTP/1.1  200 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 20 OK",
        b"HTTP/1.1 -20 OK", b"HTTP/2 200", b"HTTP/0.9 200 OK", b"HTTP/1.1 000 Zero", b"HTTP/1.1 999 Nines",
        b"HTTP/1.1 200 \xff\x00", b"HTTP/1.1 101 Switching Protocols", b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 205 Reset",
        b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 301 Moved", b"HTTP/1.1 401 No", b"HTTP/1.1 429 Busy",
        b"HTTP/1.1 500 Oops", b"HTTP/1.1 503 Busy", b"ICY 200 OK", b"", b"\x16\x03\x01", b"GET / HTTP/1.1",
        b"HTTP/1.1 199 Odd", b"HTTP/1.1 103 Early Hints",
    ]
)  # fmt: skip
_HEADERS = st.lists(
    st.sampled_from(
        [
            b"content-type: text/event-stream", b"content-type: text/event-stream", b"content-type: application/json",
            b"Content-Encoding: gzip", b"connection: close", b"connection: keep-alive, upgrade",
            b"upgrade: websocket",
            b"content-length: 5", b"content-length: 0", b"content-length: -1", b"content-length: +5",
            b"content-length: 5, 5", b"content-length: 0x5", b"content-length: 99999999999999999999",
            b"content-length:",
            b"content-length: 9223372036854775807", b"transfer-encoding: chunked", b"transfer-encoding: identity",
            b"transfer-encoding: gzip, chunked", b"transfer-encoding: chunked, chunked", b"transfer-encoding:",
            b"transfer-encoding : chunked", b"Transfer-Encoding: \x0bchunked", b" folded: line", b"no colon",
            b": no name",
            b"x-nul: a\x00b", b"x-cr: a\rb", b"x-latin: \xe9\xff", b"set-cookie: a=b", b"location: http://10.0.0.1/",
            b"x-request-id: theirs", b"x-" + b"l" * 5000 + b": long name", b"x-long: " + b"v" * 7_000,
            b"trailer: x-t", b"retry-after: 0",
        ]
    ),
    max_size=4,
)  # fmt: skip
_CHUNKS = st.lists(
    st.sampled_from(
        [
            chunk(EVENT), chunk(EVENT), chunk(EVENT), chunk(b"data: half"), chunk(b"\n"), chunk(b"\r\n\r\n"),
            chunk(b": c\n\n"),
            chunk(b'data: {"error":{"message":"dead","code":500}}\n\n'), chunk(b"data: [DONE]\n\n"),
            chunk(b"\x00" * 20),
            chunk("data: é€😀\n\n".encode()), b"5;a=b;c=\"d\\\"\r\"\r\nhello\r\n", b"5 \r\nhello\r\n", b"5\nhello\n",
            b"-1\r\nhello\r\n", b"0x5\r\nhello\r\n", b"zz\r\n", b"\r\n", b"5\r\nhell", b"3\r\nhello\r\n",
            b"5\r\nhello", b"+5\r\nhello\r\n",
            b"ffffffffffffffff\r\nx", b"10000000000000000\r\nx", b"7fffffffffffffff\r\nx",
            b"00000000000000000005\r\nhello\r\n",
            b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nx-trailer: " + HERE + b"\r\n\r\n",
            b"0\r\ncontent-length: 5\r\n\r\n", b"0\r\nno colon\r\n\r\n",
            chunk(b'data: {"choices":[],"usage":{"prompt_tokens":-1,"completion_tokens":1e99}}\n\n'),
            chunk(b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'),
        ]
    ),
    max_size=8,
)  # fmt: skip
_BEHIND = st.sampled_from([b""] * 4 + [WHOLE_JSON, b"rubbish", b"\r\n", b"\x00", b"HTTP/1.1 200 OK\r\n"])
_BEFORE = st.sampled_from(
    [b""] * 8 + [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 E\r\nx: y\r\n\r\n" * 50, b"\r\n\r\n"]
)
_ENDS: st.SearchStrategy[tuple[Step, ...]] = st.sampled_from([(), (), (Close(),), (Reset(),), (Hang(),)])


@st.composite
def answers(draw: st.DrawFn) -> tuple[Step, ...]:
    """A backend's bytes for one request: right in part, spoiled in part, cut anywhere."""
    lines = [draw(_STATUS_LINES), *draw(_HEADERS)]
    if draw(st.booleans()):
        lines.append(b"transfer-encoding: chunked")
        payload = b"".join(draw(_CHUNKS))
    else:
        payload = draw(st.sampled_from([EVENT * 2, b'{"text":"' + HERE + b'"}', b"hello", b"", EVENT + b"data: half"]))
        if draw(st.booleans()):
            lines.append(b"content-length: %d" % (len(payload) + draw(st.sampled_from([0, 0, 0, 1, -1]))))
    newline = draw(st.sampled_from([b"\r\n"] * 6 + [b"\n"]))
    data = draw(_BEFORE) + newline.join(lines) + newline * 2 + payload + draw(_BEHIND)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        at = draw(st.integers(0, len(data)))
        wide = draw(st.integers(0, 3))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + wide :]
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=6))
    return (Marked(data, tuple(cuts)), *draw(_ENDS))


async def exchange(running: Running, marks: Marks, streams: list[bool]) -> None:
    """One client: a request after the other, over one connection while that is kept."""
    client: Raw | None = None
    for stream in streams:
        mark = marks.next()
        if client is None:
            client = await Raw.connect(running.port, running.key)
        client.send(client.request(body_with(mark, stream=stream)))
        try:
            async with asyncio.timeout(BOUND):
                got = await client.answer()
        except asyncio.IncompleteReadError:
            got = None
        if got is not None:
            assert_good(got, mark)
        if got is None or not got.whole or got.header("connection") == "close":
            client.close()
            client = None
    if client is not None:
        client.reset()


def assert_good(got: Got, mark: str) -> None:
    """No other request's mark, and a head that is ours or clean."""
    assert not strangers(got.head + got.body, [mark]), got
    assert got.status >= 200
    assert got.header("x-request-id") not in (None, "theirs")
    assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]", got.head), got.head
    assert got.header("set-cookie") is got.header("location") is None
    if got.status in (502, 504):
        assert_ours(got)
    elif got.status == 200 and got.whole and b'"error": ' in got.body and got.header("transfer-encoding"):
        assert got.body.endswith(b"\n\n")


@pytest.fixture
async def running(gateway: StartGateway, fake_vllm: FakeVllm) -> Running:
    """A gateway with short timeouts that never takes the backend down."""
    fake_vllm.default = (Marked(WHOLE_JSON),)
    return await gateway(
        fake_vllm,
        backend={"timeout": "60ms", "max_retries": 1, "health": {"unhealthy_after": 10**6}},
        server={"heartbeat": "25ms"},
    )


@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(scripts=st.lists(answers(), min_size=1, max_size=8), streams=st.lists(st.booleans(), min_size=1, max_size=3))
async def test_any_answer_ends_and_stays_with_its_client(
    running: Running, fake_vllm: FakeVllm, scripts: list[tuple[Step, ...]], streams: list[bool]
) -> None:
    """Three clients at once over the same pool, before a backend that says anything at all."""
    marks = Marks()
    fake_vllm.scripts.clear()
    fake_vllm.scripts.extend(scripts)
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(exchange(running, marks, streams))
    fake_vllm.scripts.clear()
    await assert_unharmed(running, marks)


_CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(EVENT)
ENDLESS = {
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x-a: b\r\n"),
    "a header": (b"HTTP/1.1 200 OK\r\nx: ", b"v"),
    "a header's name": (b"HTTP/1.1 200 OK\r\n", b"v"),
    "a status line": (b"HTTP/1.1 200 ", b"O"),
    "1xx answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "empty lines": (b"", b"\r\n"),
    "a 199's body": (b"HTTP/1.1 199 Odd\r\ncontent-length: 1000000000\r\n\r\n", b"b"),
    "trailers": (_CHUNKED + b"0\r\n", b"x: y\r\n"),
    "a trailer": (_CHUNKED + b"0\r\nx: ", b"t"),
    "a chunk's extension": (_CHUNKED + b"5;", b"e"),
    "noughts of a chunk's size": (_CHUNKED, b"0"),
}


@pytest.mark.parametrize(("before", "again"), ENDLESS.values(), ids=ENDLESS)
async def test_endless_head_is_ended(gateway: StartGateway, fake_vllm: FakeVllm, before: bytes, again: bytes) -> None:
    """After 64 KiB and the bytes on their way, long before the timeout."""
    running = await gateway(fake_vllm, backend={"timeout": "60s", "max_retries": 0})
    fake_vllm.play(Send(before), Flood(again * (8192 // len(again)), 10_000))
    client = await running.client()
    got = await client.post(body_with("mark-00000001", stream=True))
    assert got.status == (200 if before.startswith(_CHUNKED) else 502)
    assert b'"upstream_error"' in got.body
    await running.quiet()
    assert fake_vllm.connections[-1].flooded < 40_000_000
