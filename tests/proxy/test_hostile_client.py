"""Whatever a broken or hostile client sends: nothing hangs, nothing crosses over, only real requests are run."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.vllm import FakeVllm, chunk, json_answer
from tests.proxy.conftest import CHAT, Got, Raw, Running, StartGateway
from tests.proxy.markers import HERE, Marked, Marks, assert_ours, assert_unharmed, body_with, strangers

# Seconds of silence after which a client expects no more bytes; longer than the gateway's own timeouts.
SILENCE = 0.15
# Stands for the key and the client's mark in what hypothesis makes.
KEY, MARK, JSON = b"{key}", b"{mark}", b"{json}"


@pytest.fixture
async def running(gateway: StartGateway, fake_vllm: FakeVllm) -> Running:
    """A gateway with short timeouts."""
    fake_vllm.default = (Marked(json_answer({"text": HERE.decode()})),)
    server = {"header_timeout": "80ms", "body_timeout": "80ms", "max_header_size": "4KiB", "max_body_size": "2KB"}
    return await gateway(fake_vllm, server=server)


# -- what hostile clients send -------------------------------------------------------------------------------------

_GOOD_HEAD = b"Host: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
_START = st.builds(
    lambda method, target, version: b" ".join(part for part in (method, target, version) if part),
    st.sampled_from([b"POST"] * 8
        + [b"GET", b"HEAD", b"OPTIONS", b"CONNECT", b"post", b"P\x00ST", b"\xff", b"M" * 300]),
    st.sampled_from(
        [CHAT.encode()] * 10
        + [
            b"/health", b"/v1/models", b"*", b"http://evil" + CHAT.encode(), b"//evil/x", b"/\xff\xfe", b"/%00%0d%0a",
            b"/v1/../v1/models", CHAT.encode() + b"?" + b"q" * 3000, b"/" + b"t" * 5000, b"", b"/a b", b"x:1",
            b"/\x01",
            "/é😀".encode(), b"http://[::1", b"/#f", CHAT.encode() + b"\t",
        ]
    ),
    st.sampled_from([b"HTTP/1.1"] * 10 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"", b"HTTP/1.1 x", b"http/1.1"]),
)  # fmt: skip
_ODD_HEADERS = st.lists(
    st.sampled_from(
        [
            b"Expect: 100-continue", b"Expect: 100-Continue", b"expect: 100-continue, x", b"Expect: 200-ok",
            b"Expect:",
            b"Expect: 100-continue\r\nExpect: 100-continue", b"Connection: close", b"Connection: keep-alive, x",
            b"Connection: upgrade\r\nUpgrade: websocket",
            b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA",
            b" folded", b"X: a\r\n\tfolded", b"X: a\x00b", b"X: a\rb", b"X: a\nY: b", b"X : a", b"X\xff: a", b": a",
            b"no colon", b"X: \xe9\xff", b"X: " + b"v" * 5000, b"Host: other", b"Authorization: Bearer other",
            b"Content-Type: text/plain", b"Content-Encoding: gzip", b"Content-Type: application/json; charset=utf-16",
            b"Content-Length: 3", b"Content-Length: 999999999999999999999", b"Content-Length: -1", b"Content-Length:",
            b"Content-Length: 1e1", b"Content-Length: \xb2", b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked, chunked", b"TE: trailers",
            b"X-Forwarded-For: 10.0.0.1", b"X-Request-Id: \x7f", b"traceparent: \xff\xfe", b"accept: a\tb",
            b"Sec-WebSocket-Key1: x", b"X: y\r\n" * 150 + b"Z: z",
        ]
    ),
    max_size=3,
)  # fmt: skip
_PARTS = st.lists(
    st.sampled_from(
        [
            chunk(JSON), b"{size};a=b\r\n{json}\r\n", b"{size};a=\"x\r\n\"\r\n{json}\r\n",
            b"{size} \r\n{json}\r\n", b"{size}\n{json}\n",
            b"zz\r\n", b"-1\r\n", b"+1\r\na\r\n", b"0x1\r\na\r\n", b"ffffffffffffffff\r\na",
            b"fffffffffffffffff\r\na",
            b"3\r\nhello\r\n", b"5\r\nhel", b"5\r\nhello", b"1;" + b"e" * 5000 + b"\r\na\r\n",
            b"\r\n", chunk(b" " * 3000),
        ]
    ),
    max_size=4,
)  # fmt: skip
_LAST = st.sampled_from(
    [b"0\r\n\r\n"] * 6
    + [
        b"", b"0\r\nX-T: 1\r\n\r\n", b"0\r\nno colon\r\n\r\n", b"0\r\nContent-Length: 5\r\n\r\n", b"0\r\n",
        b"0\r\nX: " + b"t" * 5000 + b"\r\n\r\n",
        b"0;x\r\n\r\n", b"00\r\n\r\n", b"0\r\nHost: a\r\nAuthorization: Bearer b\r\n\r\n",
    ]
)  # fmt: skip


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    """One request, right in part."""
    if draw(st.integers(0, 3)) == 0:
        return b"POST " + CHAT.encode() + b" HTTP/1.1\r\n" + _GOOD_HEAD + b"Content-Length: {length}\r\n\r\n{json}"
    lines = b"".join(line + b"\r\n" for line in draw(_ODD_HEADERS))
    framing = draw(st.sampled_from(["length", "chunked", "none", "short", "long"]))
    payload = JSON
    if framing == "chunked":
        lines += b"Transfer-Encoding: chunked\r\n"
        payload = b"".join(draw(_PARTS)) + draw(_LAST)
        payload = payload.replace(chunk(JSON), b"{size}\r\n{json}\r\n")
    elif framing != "none":
        lines += b"Content-Length: " + {"length": b"{length}", "short": b"7", "long": b"9999"}[framing] + b"\r\n"
    newline = draw(st.sampled_from([b"\r\n"] * 9 + [b"\n"]))
    head = draw(_START) + b"\r\n" + draw(st.sampled_from([_GOOD_HEAD] * 6 + [b"Host: x\r\n", b""])) + lines + b"\r\n"
    return head.replace(b"\r\n", newline) + payload


@dataclass(frozen=True)
class Hostile:
    """The script of one client: the bytes, cut into pieces with a pause after each of `slow`, and how it ends."""

    requests: tuple[bytes, ...]
    cuts: tuple[float, ...]
    pause: float
    end: str

    def bytes_for(self, key: str, mark: str) -> bytes:
        """The key and the mark filled in."""
        body = json.dumps(body_with(mark, stream=False)).encode()
        data = b"".join(self.requests)
        for name, value in ((b"{key}", key.encode()), (b"{json}", body), (b"{length}", b"%d" % len(body))):
            data = data.replace(name, value)
        return data.replace(b"{size}", b"%x" % len(body))


_HOSTILE = st.builds(
    Hostile,
    requests=st.lists(_requests(), min_size=1, max_size=3).map(tuple),
    cuts=st.lists(st.floats(0, 1), max_size=4).map(tuple),
    pause=st.sampled_from([0, 0, 0.001, 0.03, 0.1]),
    end=st.sampled_from(["wait", "wait", "wait", "FIN", "RST", "half close"]),
)


# -- what comes back -----------------------------------------------------------------------------------------------


def answers_in(data: bytes, *, whole: bool) -> list[Got]:
    """All answers of a connection; fails where the bytes are no answers. `whole`: the last one must be."""
    found = []
    while data:
        head, blank, rest = data.partition(b"\r\n\r\n")
        if not blank:
            assert not whole, data
            break
        start, *lines = head.decode("latin-1").split("\r\n")
        assert start.startswith("HTTP/1.1 "), start
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        got = Got(int(start.split(" ")[1]), headers, b"", True, head)
        if got.status < 200:
            data = rest
            continue
        length = int(got.header("content-length") or 0)
        got.body, data = rest[:length], rest[length:]
        assert len(got.body) == length or not whole, data
        found.append(got)
    return found


async def attack(running: Running, hostile: Hostile, mark: str) -> None:
    """One hostile client, from its connect to its end."""
    client = await Raw.connect(running.port, running.key)
    data = hostile.bytes_for(running.key, mark)
    cuts = sorted(int(cut * len(data)) for cut in hostile.cuts)
    for start, end in itertools.pairwise([0, *cuts, len(data)]):
        client.send(data[start:end])
        await asyncio.sleep(hostile.pause)
    if hostile.end == "RST":
        client.reset()
        return
    if hostile.end == "half close" and not client.writer.transport.is_closing():
        client.half_close()
    if hostile.end == "FIN":
        client.close()
        return
    got, closed = await _until_silent(client)
    client.close()
    assert not strangers(got, [mark]), got
    # A HEAD's answer has no body behind its length; how many were answered is not known here, so those are left out.
    if b"HEAD" not in data:
        for answer in answers_in(got, whole=hostile.end == "wait" and not closed):
            if answer.status >= 400:
                assert_ours(answer)


async def _until_silent(client: Raw) -> tuple[bytes, bool]:
    got = b""
    while True:
        try:
            async with asyncio.timeout(SILENCE):
                data = await client.reader.read(65536)
        except TimeoutError:
            return got, False
        except ConnectionError:
            return got, True
        if not data:
            return got, True
        got += data


async def ask(running: Running, marks: Marks, dice: random.Random) -> None:
    """A good client among them: it gets its own answer, each time."""
    client = await Raw.connect(running.port, running.key)
    for _ in range(3):
        mark = marks.next()
        got = await client.post(body_with(mark, stream=dice.random() < 0.5))
        assert (got.status, got.json) == (200, {"text": mark})
        await asyncio.sleep(dice.random() * 0.01)
    client.close()


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(hostile=st.lists(_HOSTILE, min_size=1, max_size=8))
async def test_any_bytes_end_and_harm_nobody_else(running: Running, hostile: list[Hostile]) -> None:
    """Hostile clients beside good ones, all over the same pool."""
    marks, dice = Marks(), random.Random(1)
    async with asyncio.TaskGroup() as group:
        for each in hostile:
            group.create_task(attack(running, each, marks.next()))
        for _ in range(2):
            group.create_task(ask(running, marks, dice))
    await assert_unharmed(running, marks)
    logged = b"".join(running.lines)
    assert running.key.encode() not in logged
    assert b"mark-" not in logged
