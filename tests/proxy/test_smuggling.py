"""Requests whose length two readers could see differently: refused, and hidden requests behind them are never run.

Each case is a whole request whose body holds a second one, placed where a reader that takes another header for the
length, or another end for a chunk, would find it. The gateway refuses it and ends the connection, or reads it whole as
a body. nginx 1.22 answers all of these the same but three, which it reads leniently and passes on in a form of its own:
a chunk size that ends with LF, with a space, or with an extension and LF.
"""

from __future__ import annotations

import json

import pytest

from tests.fakes.vllm import FakeVllm
from tests.proxy.conftest import CHAT, Raw, StartGateway

OUTER = json.dumps({"model": "m", "messages": [{"role": "user", "content": "outer"}]}).encode()
HIDDEN = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hidden"}]}).encode()
HEAD = (
    b"POST "
    + CHAT.encode()
    + b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
)
SECOND = HEAD + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(OUTER), OUTER)

LENGTHS = {
    "plus": b"+{n}", "list": b"{n}, {n}", "hex": b"0x{n}", "two words": b"{n} {n}", "vertical tab": b"\x0b{n}",
    "parameter": b"{n};x", "empty": b"", "minus nought": b"-0", "underscore": b"{n}_0", "superscript": "²".encode(),
    "quoted": b'"{n}"', "exponent": b"1e3", "NUL": b"{n}\x00", "65 bits": b"36893488147419103232",
}  # fmt: skip
CODINGS = {
    "unknown": b"xchunked", "identity": b"identity", "chunked not last": b"chunked, identity",
    "identity before": b"identity, chunked", "gzip before": b"gzip, chunked", "chunked twice": b"chunked, chunked",
    "vertical tab": b"\x0bchunked", "parameter": b"chunked;x", "empty": b"",
    "quoted": b'"chunked"', "NUL": b"chunked\x00",
    "comma": b", chunked", "latin": b"chun\xe9ked",
}  # fmt: skip
# Header lines with something wrong, and a length that covers all.
FOLDS = {
    "a space before the colon": b"Transfer-Encoding : chunked", "a folded value": b"Transfer-Encoding:\r\n chunked",
    "behind a fold": b"X: a\r\n Transfer-Encoding: chunked", "behind a bare LF": b"X: a\nTransfer-Encoding: chunked",
    "behind a bare CR": b"X: a\rTransfer-Encoding: chunked", "a space at the beginning": b" Transfer-Encoding: chunked",
}  # fmt: skip
SIZES = {
    "an extension and LF": b"%x;\n%b\r\n0\r\n\r\n", "bare LF": b"%x\n%b\n0\n\n", "bare CR": b"%x\r%b\r\n0\r\n\r\n",
    "hex prefix": b"0x%x\r\n%b\r\n0\r\n\r\n", "plus": b"+%x\r\n%b\r\n0\r\n\r\n", "minus": b"-%x\r\n%b\r\n0\r\n\r\n",
    "more than 64 bits": b"1%016x\r\n%b\r\n0\r\n\r\n", "space": b"%x \r\n%b\r\n0\r\n\r\n",
    "underscore": b"0_%x\r\n%b\r\n0\r\n\r\n", "no line end behind the data": b"%x\r\n%b0\r\n\r\n",
    "two bytes behind the data": b"%x\r\n%bXX0\r\n\r\n",
}  # fmt: skip


def cases() -> dict[str, bytes]:
    """Whole requests by name, with `{key}` for the key."""
    whole = len(CHUNKED + SECOND)
    both = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n"
    early = len(b"%x\r\n" % len(OUTER + SECOND)) + len(OUTER)
    found = {
        "length and chunked": HEAD + both % whole + CHUNKED + SECOND,
        "chunked and length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + CHUNKED + SECOND,
        "length ends inside the chunk": HEAD
        + both % early
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(OUTER + SECOND), OUTER + SECOND),
        "two lengths": HEAD
        + b"Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (len(OUTER), whole)
        + OUTER
        + SECOND,
        "two lengths, the larger first": HEAD
        + b"Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (whole, len(OUTER))
        + OUTER
        + SECOND,
        "two equal lengths": HEAD + b"Content-Length: %d\r\n" % len(OUTER) * 2 + b"\r\n" + OUTER + SECOND,
        "chunked in two headers": HEAD + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n" + CHUNKED + SECOND,
        "chunked, HTTP/1.0": HEAD.replace(b"/1.1", b"/1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED + SECOND,
    }
    for name, value in LENGTHS.items():
        length = value.replace(b"{n}", b"%d" % len(OUTER))
        found[f"length: {name}"] = HEAD + b"Content-Length: " + length + b"\r\n\r\n" + OUTER + SECOND
    for name, value in CODINGS.items():
        line = b"Transfer-Encoding: " + value + b"\r\n"
        found[f"coding: {name}"] = HEAD + line + b"\r\n" + CHUNKED + SECOND
        found[f"coding: {name}, with a length"] = HEAD + line + b"Content-Length: 5\r\n\r\n" + CHUNKED + SECOND
    for name, value in FOLDS.items():
        found[f"header: {name}"] = HEAD + value + b"\r\nContent-Length: 0\r\n\r\n" + SECOND
    for name, value in SIZES.items():
        found[f"chunk: {name}"] = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + value % (len(OUTER), OUTER) + SECOND
    return found


@pytest.mark.parametrize("request_bytes", [pytest.param(data, id=name) for name, data in cases().items()])
async def test_ambiguous_length_is_refused_and_the_rest_is_not_run(
    gateway: StartGateway, fake_vllm: FakeVllm, request_bytes: bytes
) -> None:
    """One refusal, the end of the connection, and nothing at the backend."""
    running = await gateway(fake_vllm, server={"header_timeout": "1s", "body_timeout": "1s"})
    client: Raw = await running.client()
    client.send(request_bytes.replace(b"{key}", running.key.encode()))
    got = await client.answer()
    assert got.status in (400, 501), got
    assert set(got.json["error"]) == {"message", "type", "param", "code"}
    assert got.header("connection") == "close"
    assert await client.ended() == b""
    assert not fake_vllm.posts
