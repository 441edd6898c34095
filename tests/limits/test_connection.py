"""One connection to the shared store, against a scripted server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trustme

from aiaas.limits.connection import PATIENCE, Connection, StoreAwayError, StoreTlsError, connect, tls_context
from aiaas.limits.redis_url import RedisUrl, parse_redis_url
from aiaas.limits.resp import RedisReplyError, Reply

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def connected(
    script: Script, user_info: str = "", database: int = 0, query: str = "", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Connection]:
    """A connection to a server that does as `script` says."""
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await script(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        served.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        port = server.sockets[0].getsockname()[1]
        scheme = "redis" if tls is None else "rediss"
        url = parse_redis_url(f"{scheme}://{user_info}127.0.0.1:{port}/{database}{query}")
        connection = await connect(url, tls_context(url))
        yield connection
        connection.lose("the test is over")
        await served.wait()


async def next_command(reader: asyncio.StreamReader) -> list[bytes]:
    """The arguments of one command."""
    number = int((await reader.readline())[1:])
    arguments = []
    for _ in range(number):
        length = int((await reader.readline())[1:])
        arguments.append((await reader.readexactly(length + 2))[:-2])
    return arguments


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every command with its last argument."""
    while not reader.at_eof():
        try:
            last = (await next_command(reader))[-1]
        except (ValueError, asyncio.IncompleteReadError):
            return
        writer.write(b"$%d\r\n%b\r\n" % (len(last), last))


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take everything and say nothing."""
    while await reader.read(65536):
        pass


async def test_replies_go_to_those_who_asked() -> None:
    """Any number at once, in one connection."""
    async with connected(echo) as connection:
        assert await asyncio.gather(*(connection.call("ECHO", n) for n in range(100))) == [
            str(n).encode() for n in range(100)
        ]


async def test_a_cancelled_waiter_keeps_its_place() -> None:
    """Nobody gets its reply but who is named for it; the next ones get their own."""
    unclaimed: list[Reply] = []
    async with connected(echo) as connection:
        left = connection.call("ECHO", "secret of one", unclaimed=unclaimed.append)
        ignored = connection.call("ECHO", "secret of another")
        mine = connection.call("ECHO", "mine")
        left.cancel()
        ignored.cancel()
        assert await mine == b"mine"
        assert unclaimed == [b"secret of one"]
        assert await connection.call("ECHO", "again") == b"again"


async def test_an_error_fails_only_its_command() -> None:
    """The connection goes on."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await next_command(reader)
        await next_command(reader)
        writer.write(b"-ERR no\r\n+OK\r\n")
        await reader.read()

    async with connected(script) as connection:
        bad, good = connection.call("BAD"), connection.call("GOOD")
        with pytest.raises(RedisReplyError, match="ERR no"):
            await bad
        assert await good == b"OK"
        assert not connection.lost.done()


async def test_silence_ends_it_for_everybody() -> None:
    """Within one and a half times PATIENCE, and a little for the loop; afterwards nobody waits at all."""
    loop = asyncio.get_running_loop()
    waits = []
    for _ in range(3):  # the machine may be busy with others, but not always
        async with connected(silent) as connection:
            began = loop.time()
            found = await asyncio.gather(*(connection.call("PING") for _ in range(5)), return_exceptions=True)
            waits.append(loop.time() - began)
            assert all(isinstance(one, StoreAwayError) and "no answer" in str(one) for one in found)
            assert "no answer" in connection.lost.result()
            with pytest.raises(StoreAwayError):
                connection.call("PING")
    assert PATIENCE <= min(waits) < 1.5 * PATIENCE + 0.015


async def test_our_own_delay_is_not_the_servers() -> None:
    """A loop that stood still for longer than PATIENCE reads what has come before it judges."""

    async with connected(echo) as connection:
        for _ in range(3):
            asked = connection.call("ECHO", "x")
            await asyncio.sleep(0)
            until = asyncio.get_running_loop().time() + 3 * PATIENCE
            while asyncio.get_running_loop().time() < until:
                pass
            assert await asked == b"x"


async def test_a_server_that_answers_something_is_waited_for() -> None:
    """A burst that takes it longer than PATIENCE as a whole is no outage."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(20):
            await next_command(reader)
            await asyncio.sleep(0.004)
            writer.write(b"+OK\r\n")
        await reader.read()

    async with connected(script) as connection:
        assert await asyncio.gather(*(connection.call("PING") for _ in range(20))) == [b"OK"] * 20


async def test_what_waits_is_told_when_the_server_goes() -> None:
    """At once, with a reason."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await next_command(reader)

    async with connected(script) as connection:
        with pytest.raises(StoreAwayError, match="closed by the server"):
            await connection.call("PING")


async def test_nonsense_ends_it() -> None:
    """Something that is no Redis is never waited for."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with connected(script) as connection:
        with pytest.raises(StoreAwayError, match=r"neither Redis nor Valkey|not connected"):
            await connection.call("PING")


async def test_a_reply_that_nobody_asked_for_ends_it() -> None:
    """Whatever comes next would go to the wrong one."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"+OK\r\n")
        await reader.read()

    async with connected(script) as connection:
        assert await connection.lost == "it answered what nobody asked"


async def test_closing_waits_for_what_is_under_way() -> None:
    """A settlement of the last request is not lost."""
    async with connected(echo) as connection:
        asked = connection.call("ECHO", "last")
        await connection.close()
        assert asked.result() == b"last"


async def test_it_logs_in_and_chooses_its_database() -> None:
    """Before anybody else's command."""
    seen: list[list[bytes]] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            seen.append(await next_command(reader))
            writer.write(b"+OK\r\n")
        await reader.read()

    async with connected(script, "me:pw@", 5):
        pass
    assert seen == [[b"AUTH", b"me", b"pw"], [b"SELECT", b"5"]]


async def test_a_refused_connection_says_where() -> None:
    """And no password."""
    with pytest.raises(StoreAwayError, match=r"redis://127\.0\.0\.1:1/0") as raised:
        await connect(parse_redis_url("redis://:hunter2@127.0.0.1:1"), None)
    assert "hunter2" not in str(raised.value)


def test_tls_trusts_the_system_unless_told_otherwise() -> None:
    """Names are checked, and a file that is no good is named."""
    assert tls_context(RedisUrl("r", 1, 0, False)) is None
    context = tls_context(RedisUrl("r", 1, 0, True))
    assert context is not None
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    with pytest.raises(StoreTlsError, match=r"/nowhere\.pem holds no authorities in PEM: No such file"):
        tls_context(RedisUrl("r", 1, 0, True, ca_file="/nowhere.pem"))
    with pytest.raises(StoreTlsError, match=r"/c\.pem and /k\.pem are no certificate and its key"):
        tls_context(RedisUrl("r", 1, 0, True, cert_file="/c.pem", key_file="/k.pem"))


async def test_tls_with_an_authority_of_ones_own_and_a_certificate_to_show(tmp_path: Path) -> None:
    """The server is checked, and asks for ours; without its authority there is no connection."""
    authority = trustme.CA()
    ours, theirs = authority.issue_cert("client"), authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    ours.private_key_pem.write_to_path(tmp_path / "key.pem")
    ours.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    files = f"ssl_ca_certs={tmp_path}/ca.pem&ssl_certfile={tmp_path}/cert.pem&ssl_keyfile={tmp_path}/key.pem"
    async with connected(echo, query=f"?{files}", tls=context) as connection:
        assert await connection.call("ECHO", "sealed") == b"sealed"
    with pytest.raises(StoreAwayError, match="CERTIFICATE_VERIFY_FAILED"):
        async with connected(echo, query="", tls=context):
            pass
