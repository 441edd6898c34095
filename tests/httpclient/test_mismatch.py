"""aiaas.httpclient.mismatch: TLS spoken to plain HTTP, and the reverse."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aiaas.httpclient.mismatch import WRITE_HTTP, speaks_tls, tls_fault
from tests.certificate import self_signed


@asynccontextmanager
async def listening(answer: bytes, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that reads a little, answers and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_plain_http_behind_an_https_address_is_named() -> None:
    """By the words of the OpenSSL that runs here."""
    async with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        with pytest.raises(ssl.SSLError) as raised:
            await asyncio.open_connection("127.0.0.1", port, ssl=ssl.create_default_context())
    assert tls_fault(raised.value) == WRITE_HTTP


async def test_an_untrusted_certificate_is_another_fault(tmp_path: Path) -> None:
    """The handshake works there."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*self_signed(tmp_path))
    async with listening(b"", context) as port:
        with pytest.raises(ssl.SSLError) as raised:
            await asyncio.open_connection("127.0.0.1", port, ssl=ssl.create_default_context())
        assert await speaks_tls("127.0.0.1", port, 20.0)
    assert tls_fault(raised.value) == (
        "its certificate does not verify: signed by an unknown authority, self-signed certificate"
    )


async def test_plain_servers_and_closed_ports_do_not_speak_tls() -> None:
    """Nor does a name that does not exist; nothing is raised."""
    async with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert not await speaks_tls("127.0.0.1", port, 20.0)
    assert not await speaks_tls("127.0.0.1", port, 20.0)
    assert not await speaks_tls("no-such-host.invalid", 443, 20.0)
