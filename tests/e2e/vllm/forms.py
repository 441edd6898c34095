"""Read mutated forms with aiaas's scanner and vLLM's own parser: run by vLLM's Python, asked by `test_vllm_forms.py`.

    forms.py SEED SECONDS

stdout  its last line: {"read": accepted forms, "refused": others, "differ": [[form, ours, theirs], ...]}
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser

from aiaas.errors import ClientError
from aiaas.openai.multipart import Content, Field, File, FormScanner

CURL: Final = (
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    b'\r\n--\r\r\n-\r\n--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--B--\r\n'
)
DOTNET: Final = (
    b"--B\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--B\r\n"
    b"Content-Disposition: form-data; name=file; filename=a; filename*=utf-8''a\r\n\r\n\x00\xff\r\n--B--\r\n"
)
OTHERS: Final = (
    b'--B\r\nContent-Disposition: form-data; name="a"; filename="b\\c;name=c;x="\r\nContent-Length: 0\r\n\r\n'
    b'\r\n--B\r\ncontent-disposition:form-data;name="stream"\r\nX-y: z\r\n\r\ntrue\r\n--B--'
)
PIECES: Final = (
    b"\r\n", b"\r", b"\n", b"--B", b"\r\n--B", b"\r\n--B\r\n", b"--", b'"', b"\\", b'\\"', b";", b"; ", b"name=",
    b'name="model"', b'; filename="x"', b"; filename*=utf-8''q", b"\t", b" ", b":", b"=", b"\x00", b"\xff", b"\r\n\r\n",
    b'\r\nContent-Disposition: form-data; name="q"', b"Content-Length: 1", b"name*=x", b"NAME=q", b"%22", b"'",
)  # fmt: skip
Part = tuple[str, bool, bytes | str]


def ours(form: bytes, size: int) -> list[Part] | None:
    """Name, whether a file, and content of each part; None for a form that is refused."""
    scanner = FormScanner(b"B")
    parts: list[list[Any]] = []
    try:
        pieces = [piece for at in range(0, len(form), size) for piece in scanner.feed(form[at : at + size])]
        scanner.close()
    except ClientError:
        return None
    for piece in pieces:
        if isinstance(piece, Field):
            parts.append([piece.name, False, text(piece.value)])
        elif isinstance(piece, File):
            parts.append([piece.name, True, b""])
        elif isinstance(piece, Content):
            parts[-1][2] += piece.raw
    return [tuple(part) for part in parts]


def text(value: bytes) -> str:
    """As starlette decodes a field."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


async def theirs(form: bytes, size: int) -> list[Part] | str:
    """The same, or the refusal."""

    async def body() -> AsyncIterator[bytes]:
        for at in range(0, len(form), size):
            yield form[at : at + size]

    headers = Headers({"content-type": "multipart/form-data; boundary=B"})
    try:
        found = await MultiPartParser(headers, body()).parse()  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001  whatever vLLM's parser raises is a finding
        return repr(error)
    return [(n, not isinstance(v, str), v if isinstance(v, str) else await v.read()) for n, v in found.multi_items()]


async def compare(seed: int, seconds: float) -> dict[str, Any]:
    """Mutate forms and compare both readings until the time is over."""
    chance, end = random.Random(seed), time.monotonic() + seconds
    read = refused = 0
    differ: list[Any] = []
    while time.monotonic() < end and len(differ) < 10:
        form = chance.choice((CURL, DOTNET, OTHERS))
        for _ in range(chance.randint(0, 4)):
            at, gone = chance.randint(0, len(form)), chance.choice((0, 0, 0, 1, 2, 5, 20))
            form = form[:at] + chance.choice((*PIECES, bytes([chance.randint(0, 255)]))) + form[at + gone :]
        mine = ours(form, chance.choice((1, 2, 3, 7, 1000)))
        if mine is None:
            refused += 1
            continue
        read += 1
        other = await theirs(form, chance.choice((1, 3, 1000)))
        if other != mine:
            differ.append([repr(form), repr(mine), repr(other)])
    return {"read": read, "refused": refused, "differ": differ}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print(json.dumps(asyncio.run(compare(int(sys.argv[1]), float(sys.argv[2])))))
