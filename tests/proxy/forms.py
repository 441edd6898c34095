"""Forms with a file, for the tests of uploads: how clients write them, and a gateway that takes them."""

from __future__ import annotations

import random
from typing import Any, Final

from aiaas.openai.paths import TRANSCRIPTIONS, TRANSLATIONS
from aiaas.proxy.request.upload import HELD_MOST
from tests.proxy.conftest import Got, Raw

AUDIO: Final = {"endpoints": [TRANSCRIPTIONS, TRANSLATIONS, "/v1/models"]}
BOUNDARY: Final = "----form6b1f"
TYPE: Final = f"multipart/form-data; boundary={BOUNDARY}"
SMALL: Final = b"RIFF\x00\x01\r\n--not the boundary\r\n" * 20
LARGE: Final = random.Random(1).randbytes(3 * HELD_MOST)
TOLD: Final = {"text": "hello", "usage": {"type": "duration", "seconds": 3}}

Part = tuple[str, bytes] | tuple[str, bytes, str]


def form(*parts: Part) -> bytes:
    """A form as curl writes it; a part with a third entry is a file of that name."""
    written = b""
    for name, value, *file in parts:
        lines = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
        if file:
            lines += f'; filename="{file[0]}"\r\nContent-Type: audio/wav'
        written += lines.encode() + b"\r\n\r\n" + value + b"\r\n"
    return written + f"--{BOUNDARY}--\r\n".encode()


def model_first(content: bytes = SMALL, model: str = "m", *more: Part) -> bytes:
    """As the OpenAI library for Python orders it."""
    return form(("model", model.encode()), *more, ("file", content, "a.wav"))


def file_first(content: bytes = SMALL, model: str = "m", *more: Part) -> bytes:
    """As `curl -F file=@a.wav -F model=m` orders it."""
    return form(("file", content, "a.wav"), *more, ("model", model.encode()))


async def post(client: Raw, body: bytes, path: str = TRANSCRIPTIONS, *, chunked: bool = False, **kwargs: Any) -> Got:
    """Send a form and read the answer."""
    headers = {"Content-Type": TYPE, **kwargs.pop("headers", {})}
    if not chunked:
        return await client.post(body, path=path, headers=headers, **kwargs)
    head = client.request(None, path=path, headers={**headers, "Transfer-Encoding": "chunked"}, **kwargs)
    client.send(head)
    for at in range(0, len(body), 50_000):
        part = body[at : at + 50_000]
        client.send(b"%x\r\n%b\r\n" % (len(part), part))
        await client.writer.drain()
    client.send(b"0\r\n\r\n")
    return await client.answer()


def error(got: Got) -> tuple[int, str, str | None]:
    """Status, code and param."""
    told = got.json["error"]
    return got.status, told["code"], told["param"]
