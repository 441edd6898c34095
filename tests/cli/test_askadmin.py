"""aiaas.cli.askadmin: one question to an admin port. (With a gateway behind it: test_status.py.)"""

from __future__ import annotations

import asyncio

import pytest

from aiaas.cli.askadmin import ask_admin, ask_gateway
from aiaas.clients.check import connected
from aiaas.errors import EnvironmentFault
from aiaas.httpclient.target import parse_target
from aiaas.proxy.admin.model import Requests, Status
from tests.fakes.admin import FakeAdmin


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


async def test_port_of_another_program_is_named() -> None:
    """The metrics port, an older version, another program: the error says where to look."""
    with FakeAdmin() as fake:
        async with connected(parse_target(fake.url)) as client:
            with pytest.raises(EnvironmentFault, match=r"answers 404: .*unknown path"):
                await ask_admin(client, "/nowhere", Status)
            with pytest.raises(EnvironmentFault, match=r"this version.*monitoring\.admin_port"):
                await ask_admin(client, "/", Status)
