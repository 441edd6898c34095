"""One connection to the shared store, against a scripted server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trustme

from aiaas.limits.connection import (
    STORE_PATIENCE,
    StoreAwayError,
    StoreConnection,
    StoreLateError,
    StoreTlsError,
    claimed,
    connect,
    tls_context,
)
from aiaas.limits.redis_url import RedisUrl, StorePlace, parse_redis_url
from aiaas.limits.resp import RedisReplyError, Reply

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def connected(
    script: Script,
    user_info: str = "",
    database: int = 0,
    query: str = "",
    tls: ssl.SSLContext | None = None,
    patience: float = STORE_PATIENCE,
) -> AsyncIterator[StoreConnection]:
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
        connection = await connect(url, url.places[0], tls_context(url), patience)
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
    """Read everything and answer nothing."""
    while await reader.read(65536):
        pass


async def test_replies_go_to_those_who_asked() -> None:
    """Any number of calls at once, in one connection."""
    async with connected(echo) as connection:
        assert await asyncio.gather(*(connection.call("ECHO", n) for n in range(100))) == [
            str(n).encode() for n in range(100)
        ]


async def test_a_cancelled_waiter_keeps_its_place() -> None:
    """Only its own callback gets the late reply; the next calls get their own."""
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


async def test_a_reply_that_its_waiter_did_not_live_to_see_is_taken() -> None:
    """Cancelled in the moment after the reply came; one that is an error has nothing to be taken."""
    for error in (None, RedisReplyError("ERR")):
        unclaimed: list[Reply] = []
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        waiter = asyncio.create_task(claimed(reply, unclaimed.append))
        await asyncio.sleep(0)
        if error is None:
            reply.set_result(b"OK")
        else:
            reply.set_exception(error)
        waiter.cancel()
        await asyncio.wait([waiter])
        assert waiter.cancelled()
        assert unclaimed == ([b"OK"] if error is None else [])


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


PATIENT = 0.05  # seconds, of connections to a server that is slow on purpose


async def test_silence_releases_everybody_and_keeps_the_connection() -> None:
    """Later callers do not wait their own time; afterwards it is not ready, and not lost."""
    loop = asyncio.get_running_loop()
    changes: list[bool] = []
    async with connected(silent, patience=PATIENT) as connection:
        connection.on_change = lambda: changes.append(connection.ready)
        began = loop.time()
        calls = [connection.call("PING") for _ in range(5)]
        loop.call_later(0.6 * PATIENT, lambda: calls.append(connection.call("PING")))
        for call in calls:
            with pytest.raises(StoreLateError, match=r"no answer within 50 ms \(rate_limit\.store_timeout\)"):
                await call
        assert loop.time() - began >= PATIENT
        assert len(calls) == 6
        assert not connection.ready
        assert not connection.lost.done()
        assert changes == [False]


async def test_late_replies_reach_unclaimed_in_order_then_ready() -> None:
    """The late replies are handed over, the next calls get their own replies, and it is ready when it has caught up."""
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await echo(reader, writer)

    unclaimed: list[Reply] = []
    async with connected(script, patience=PATIENT) as connection:
        heard = asyncio.Event()
        late = [connection.call("ECHO", n, unclaimed=unclaimed.append) for n in range(3)]
        patient = connection.call("ECHO", "patient", patient=True)
        assert all(isinstance(one, StoreLateError) for one in await asyncio.gather(*late, return_exceptions=True))
        connection.on_change = heard.set
        go_on.set()
        assert await patient == b"patient"
        await heard.wait()
        assert connection.ready
        assert unclaimed == [b"0", b"1", b"2"]
        assert await connection.call("ECHO", "mine") == b"mine"


async def test_a_server_that_falls_behind_holds_nobody_for_longer() -> None:
    """The server answers in turn, too slowly: each call waits its time at most; not ready before the end."""
    ready: list[bool] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(10):
            await next_command(reader)
            await asyncio.sleep(0.02)
            writer.write(b"+OK\r\n")
        await reader.read()

    def saw(reply: Reply) -> None:
        ready.append(connection.ready)

    async with connected(script, patience=PATIENT) as connection:
        caught_up = asyncio.Event()
        connection.on_change = lambda: caught_up.set() if connection.ready else None
        calls = [connection.call("PING", unclaimed=saw) for _ in range(10)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert any(isinstance(one, StoreLateError) for one in found)
        await caught_up.wait()
        assert set(ready) == {False}
        assert len(ready) == sum(isinstance(one, StoreLateError) for one in found)


async def test_a_connection_that_stays_silent_is_given_up() -> None:
    """A host that vanished: after DEAD another connection is worth a try."""
    async with connected(silent, patience=PATIENT) as connection:
        patient = connection.call("PING", patient=True)
        with pytest.raises(StoreAwayError, match=r"no answer for \d\.\d s"):
            await patient
        assert connection.lost.done()
        with pytest.raises(StoreAwayError):
            connection.call("PING")


async def test_our_own_delay_is_not_the_servers() -> None:
    """A loop that stood still for longer than the patience reads the bytes that came before it judges."""

    async with connected(echo, patience=PATIENT) as connection:
        for _ in range(3):
            asked = connection.call("ECHO", "x")
            await asyncio.sleep(0)
            until = asyncio.get_running_loop().time() + 3 * PATIENT
            while asyncio.get_running_loop().time() < until:
                pass
            assert await asked == b"x"


async def test_waiting_calls_fail_when_the_server_goes() -> None:
    """At once, with a reason."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await next_command(reader)

    async with connected(script) as connection:
        with pytest.raises(StoreAwayError, match="closed by the server"):
            await connection.call("PING")


async def test_nonsense_ends_it() -> None:
    """A server that is not Redis is never waited for."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with connected(script) as connection:
        with pytest.raises(StoreAwayError, match=r"neither Redis nor Valkey|not connected"):
            await connection.call("PING")


async def test_a_reply_that_nobody_asked_for_ends_it() -> None:
    """The next replies would go to the wrong callers."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"+OK\r\n")
        await reader.read()

    async with connected(script) as connection:
        assert await connection.lost == "the server sent a reply to no command"


async def test_closing_waits_for_what_is_under_way() -> None:
    """A settlement of the last request is not lost."""
    async with connected(echo) as connection:
        asked = connection.call("ECHO", "last")
        await connection.close()
        assert asked.result() == b"last"


async def test_it_logs_in_and_chooses_its_database() -> None:
    """Before any other command."""
    seen: list[list[bytes]] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            seen.append(await next_command(reader))
            writer.write(b"+OK\r\n")
        await reader.read()

    async with connected(script, "me:pw@", 5):
        pass
    assert seen == [[b"AUTH", b"me", b"pw"], [b"SELECT", b"5"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param("?sentinel_username=u&sentinel_password=p", [[b"AUTH", b"u", b"p"], [b"PING"]], id="a user"),
        pytest.param("", [[b"PING"]], id="no user"),
    ],
)
async def test_a_sentinel_is_told_its_own_user_and_no_database(query: str, expected: list[list[bytes]]) -> None:
    """Not those of the servers; without a password in the URL, AUTH is not sent."""
    seen: list[list[bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in expected:
            seen.append(await next_command(reader))
            writer.write(b"+OK\r\n")
        await reader.read()
        writer.close()
        served.set()

    served = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        place = StorePlace("127.0.0.1", server.sockets[0].getsockname()[1])
        url = parse_redis_url(f"redis+sentinel://me:pw@{place}/name/5{query}")
        connection = await connect(url, place, None, sentinel=True)
        assert await connection.call("PING") == b"OK"
        await connection.close()
        await served.wait()
    assert seen == expected


async def test_a_refused_connection_says_where() -> None:
    """The message has no password."""
    with pytest.raises(StoreAwayError, match=r"redis://127\.0\.0\.1:1/0") as raised:
        await connect(parse_redis_url("redis://:hunter2@127.0.0.1:1"), StorePlace("127.0.0.1", 1), None)
    assert "hunter2" not in str(raised.value)


def test_tls_trusts_the_system_unless_told_otherwise() -> None:
    """Names are checked, and an unusable file is named."""
    assert tls_context(RedisUrl((StorePlace("r", 1),), 0, False)) is None
    context = tls_context(RedisUrl((StorePlace("r", 1),), 0, True))
    assert context is not None
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    with pytest.raises(StoreTlsError, match=r"/nowhere\.pem does not exist"):
        tls_context(RedisUrl((StorePlace("r", 1),), 0, True, ca_file=Path("/nowhere.pem")))
    with pytest.raises(StoreTlsError, match=r"/c\.pem and /k\.pem are not a certificate and its key"):
        tls_context(RedisUrl((StorePlace("r", 1),), 0, True, cert_file=Path("/c.pem"), key_file=Path("/k.pem")))


async def test_tls_with_a_private_authority_and_a_client_certificate(tmp_path: Path) -> None:
    """The server is verified, and asks for our certificate; without its authority the connection fails."""
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
    with pytest.raises(StoreAwayError, match=r"self-signed .*; name a file with its authority: \?ssl_ca_certs=FILE"):
        async with connected(echo, query="", tls=context):
            pass
