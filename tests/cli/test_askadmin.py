"""aiaas.cli.askadmin: one question to an admin port. (With a gateway behind it: test_status.py.)"""

from __future__ import annotations

import asyncio

import pytest

from aiaas.cli.askadmin import ask_gateway
from aiaas.errors import EnvironmentFault
from aiaas.proxy.admin.model import Requests


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(b"HTTP/1.1 403 No\r\ncontent-length: 4\r\n\r\nNo.\n", ": answers 403: No.", id="refused"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "does not answer as an admin", id="other JSON"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n<", "does not answer as an admin", id="no JSON"),
        pytest.param(b"SSH-2.0-x\r\n", "is `aiaas serve` running there", id="no HTTP"),
    ],
)
async def test_other_answers_are_one_line(answer: bytes, said: str) -> None:
    """With the URL."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(EnvironmentFault) as raised:
            await asyncio.to_thread(ask_gateway, url, "/requests?limit=1", Requests)
    assert raised.value.message.startswith(url)
    assert said in raised.value.message
    assert "\n" not in raised.value.message
