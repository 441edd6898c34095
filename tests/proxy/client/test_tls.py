"""aiaas.proxy.client.tls: everything works with TLS as without it, and a certificate is replaced while it
does."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from aiaas.errors import EnvironmentFault
from aiaas.plan.model import TlsPlan
from aiaas.proxy.client.door import Door
from aiaas.proxy.client.tls import ServerTls, TlsError, files_of, open_tls, read_pair
from aiaas.proxy.reload import Reloader
from tests.fakes.vllm import DONE, STREAM_HEAD, FakeVllm, Hang, Send, Wait, chunk, json_answer, stream, token_event
from tests.proxy.conftest import Raw, Running, StartGateway
from tests.proxy.loops import both_loops

BODY: dict[str, Any] = {"model": "m", "messages": []}


# Each test on both loops: each has a TLS transport of its own.
event_loop_policy = both_loops


@pytest.fixture(autouse=True)
def quiet_libraries(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever clients do to TLS, the event loop and aiohttp log nothing about it."""
    yield
    said = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    assert said == []


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Signs the tests' certificates."""
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture
def pair(authority: trustme.CA, tmp_path: Path) -> TlsPlan:
    """A certificate for localhost and its key, in files."""
    plan = TlsPlan(tmp_path / "tls.crt", tmp_path / "tls.key", "1.2")
    write_pair(authority, plan)
    return plan


def write_pair(authority: trustme.CA, plan: TlsPlan) -> bytes:
    """Put another pair into the plan's files; the certificate in DER."""
    made = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    plan.cert_file.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    plan.key_file.write_bytes(made.private_key_pem.bytes())
    return ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())


def config_of_pair(plan: TlsPlan) -> dict[str, str]:
    """The plan's files as a config names them."""
    return {"cert_file": str(plan.cert_file), "key_file": str(plan.key_file)}


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """A client that knows the authority and no other."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
async def running(gateway: StartGateway, fake_vllm: FakeVllm, pair: TlsPlan) -> Running:
    """A gateway under TLS whose clients have 200 ms for a handshake or a head."""
    return await gateway(fake_vllm, server={"tls": config_of_pair(pair), "header_timeout": "200ms"})


@pytest.fixture
async def client(running: Running, authority: trustme.CA) -> Raw:
    """A client under TLS."""
    return await running.client(tls=trusting(authority))


async def until_gone(fake: FakeVllm) -> None:
    """Wait until the gateway has ended the fake's first request."""
    async with asyncio.timeout(2):
        while not fake.posts:
            await asyncio.sleep(0.005)
        await fake.posts[0].gone.wait()


# -- requests --------------------------------------------------------------------------------------------------------


async def test_requests_streams_and_large_bodies_go_through(client: Raw, fake_vllm: FakeVllm) -> None:
    """On one connection; the client's address is known as without TLS."""
    assert (await client.post(BODY)).status == 200
    fake_vllm.play(Send(stream(*[token_event("x" * 5000)] * 100, DONE)))
    got = await client.post(BODY | {"stream": True})
    assert (got.whole, got.body) == (True, token_event("x" * 5000) * 100 + DONE)
    body = BODY | {"pad": "x" * 1_000_000}
    assert (await client.post(body)).status == 200
    assert fake_vllm.posts[-1].json == body


async def test_the_client_is_known_by_its_address_and_speaks_http_1_1(
    running: Running, authority: trustme.CA, fake_vllm: FakeVllm
) -> None:
    """The handshake tells a client that prefers HTTP/2 to use HTTP/1.1."""
    context = trusting(authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    client = await running.client(tls=context)
    assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    assert (await client.post(BODY)).status == 200
    assert running.log_lines()[-1]["client_address"] == "127.0.0.1"


@pytest.mark.parametrize("streamed", [True, False], ids=["mid-stream", "before the answer"])
@pytest.mark.parametrize("how", ["reset", "close", "half close"])
async def test_a_client_that_leaves_takes_its_request_with_it(
    client: Raw, running: Running, fake_vllm: FakeVllm, streamed: bool, how: str
) -> None:
    """Also by a FIN without TLS's goodbye, and by one of the sending side only."""
    fake_vllm.play(*([Send(STREAM_HEAD + chunk(token_event()))] if streamed else []), Hang())
    client.send(client.request(BODY | {"stream": streamed}))
    if streamed:
        await client.head()
    else:
        async with asyncio.timeout(1):
            while not fake_vllm.posts:
                await asyncio.sleep(0.005)
    if how == "reset":
        client.reset()
    elif how == "close":
        client.close()
    else:
        with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as beneath:
            beneath.shutdown(socket.SHUT_WR)
    await until_gone(fake_vllm)
    await running.quiet()
    assert running.log_lines()[-1]["ended_by"] == "client"


async def test_a_slow_reader_stops_the_reading_from_upstream(
    gateway: StartGateway, pair: TlsPlan, authority: trustme.CA, fake_vllm: FakeVllm
) -> None:
    """The bytes that wait in memory are bounded; a client that takes nothing at all is dropped."""
    running = await gateway(fake_vllm, server={"tls": config_of_pair(pair)}, backend={"timeout": "1s"})
    event = token_event("x" * 1000)
    fake_vllm.play(Send(stream(*[event] * 20_000, DONE)), Hang())
    client = await running.client(receive_buffer=4096, tls=trusting(authority))
    client.writer.transport.pause_reading()
    client.send(client.request(BODY | {"stream": True}))
    async with asyncio.timeout(3):
        while not any(connection.writing_paused for connection in running.open_side.connections):
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.1)
    (connection,) = running.open_side.connections
    assert connection.transport is not None
    assert connection.transport.get_write_buffer_size() < 2_000_000
    assert fake_vllm.posts[0].gone_at is None
    await until_gone(fake_vllm)
    await running.quiet()
    assert running.log_lines()[-1]["error_code"] == "client_too_slow"


async def test_tls_refusal_can_be_read_while_the_client_still_sends(client: Raw) -> None:
    """The connection ends behind the refusal."""
    client.send(client.request(b"x" * 3_000_000, headers={"Content-Type": "text/plain"}))
    got = await client.answer()
    assert (got.status, got.header("connection")) == (415, "close")
    assert await client.ended() == b""


async def test_a_slow_head_under_tls_gets_408(client: Raw) -> None:
    """As without TLS."""
    client.send(b"GET /health HT")
    assert (await client.answer()).status == 408


# -- handshakes ------------------------------------------------------------------------------------------------------


async def says_in_plain(port: int, data: bytes) -> bytes:
    """Send `data` without TLS, and return the answer until the gateway ends the connection (2 s at most)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(2):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "half a hello"])
async def test_a_client_that_never_ends_its_handshake_is_dropped(running: Running, hello: bytes) -> None:
    """After header_timeout, without a log line: scanners do it all day."""
    assert await says_in_plain(running.port, hello) == b""
    running.gateway.log.flush()
    assert not running.lines


@pytest.mark.parametrize("data", [b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 100], ids=["HTTP", "rubbish"])
async def test_plain_text_on_the_tls_port_ends_at_once(running: Running, data: bytes) -> None:
    """And is not reported as a fault of the gateway."""
    assert b"HTTP/1.1" not in await says_in_plain(running.port, data)
    running.gateway.log.flush()
    assert not running.lines


async def test_client_that_distrusts_the_certificate_leaves_no_trace(running: Running) -> None:
    """The client ends the handshake by itself."""
    with pytest.raises(ssl.SSLError):
        await running.client(tls=ssl.create_default_context())
    await asyncio.sleep(0.05)
    running.gateway.log.flush()
    assert not running.lines


async def test_a_client_that_breaks_tls_inside_a_request_is_gone(client: Raw, running: Running) -> None:
    """An invalid TLS record ends the connection, and the request with it."""
    client.send(client.request(None, headers={"Content-Type": "application/json", "Content-Length": "100"}))
    while not running.gateway.in_flight:
        await asyncio.sleep(0.005)
    with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as beneath:
        beneath.send(b"GET / HTTP/1.1\r\n\r\n" * 10)
    await running.quiet()
    assert running.log_lines()[-1]["ended_by"] == "client"


async def test_an_older_version_than_the_least_is_refused(
    pair: TlsPlan, authority: trustme.CA, gateway: StartGateway, fake_vllm: FakeVllm
) -> None:
    """The handshake fails."""
    running = await gateway(fake_vllm, server={"tls": config_of_pair(pair) | {"min_version": "1.3"}})
    context = trusting(authority)
    assert (await (await running.client(tls=context)).get("/health")).status == 200
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await running.client(tls=context)


# -- files -----------------------------------------------------------------------------------------------------------


def spoil(plan: TlsPlan, how: str, authority: trustme.CA) -> None:
    """Make the pair unusable."""
    if how == "no certificate":
        plan.cert_file.unlink()
    elif how == "no key":
        plan.key_file.unlink()
    elif how == "a folder":
        plan.key_file.unlink()
        plan.key_file.mkdir()
    elif how == "rubbish":
        plan.cert_file.write_text("rubbish")
    elif how == "no key in it":
        plan.key_file.write_bytes(plan.cert_file.read_bytes())
    elif how == "rubbish in the key":
        plan.key_file.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    elif how == "another's key":
        old = plan.cert_file.read_bytes()
        write_pair(authority, plan)
        plan.cert_file.write_bytes(old)
    elif how == "encrypted":
        from cryptography.hazmat.primitives import serialization as s

        key = s.load_pem_private_key(plan.key_file.read_bytes(), None)
        secret = s.BestAvailableEncryption(b"secret")
        plan.key_file.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, secret))


FAULTS = {
    "no certificate": "tls.crt does not exist",
    "no key": "tls.key does not exist",
    "a folder": "tls.key cannot be read: Is a directory",
    "rubbish": "tls.crt does not contain a PEM certificate",
    "no key in it": "tls.key does not contain a PEM private key",
    "rubbish in the key": "cannot be used",
    "another's key": "is not the key of the certificate in",
    "encrypted": "the private key is encrypted; store it without a passphrase",
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_pair_that_cannot_be_used_is_one_line_that_says_why(how: str, pair: TlsPlan, authority: trustme.CA) -> None:
    """And at start the command ends with that line."""
    spoil(pair, how, authority)
    with pytest.raises(TlsError) as caught:
        read_pair(pair)
    assert FAULTS[how] in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(EnvironmentFault, match=r"cannot use server\.tls: "):
        open_tls(pair)


def test_tls_needs_its_section() -> None:
    """Plain HTTP."""
    assert open_tls(None) is None


# -- renewal ---------------------------------------------------------------------------------------------------------


async def served(port: int, authority: trustme.CA) -> bytes:
    """The certificate that a new connection gets, in DER."""
    client = await Raw.connect(port, "", tls=trusting(authority))
    der: bytes = client.writer.get_extra_info("ssl_object").getpeercert(True)
    client.reset()
    return der


class Renewing:
    """A gateway under TLS whose reloader is run by the test."""

    def __init__(self, running: Running, tls: ServerTls, port: int) -> None:
        self.running = running
        self.port = port
        self.reloader = Reloader(running.gateway, {}, lambda _engines: (), lambda _plan: None)
        self.reloader.follow_tls(tls)


@pytest.fixture
async def renewing(running: Running, pair: TlsPlan) -> Any:
    """The running gateway on one more port, with a reloader."""
    tls = open_tls(pair)
    assert tls is not None
    sock = socket.create_server(("127.0.0.1", 0))
    door = Door(sock, running.open_side, running.gateway.places, running.gateway.incidents, tls, 1.0)
    port = sock.getsockname()[1]
    door.open()
    yield Renewing(running, tls, port)
    await door.end()


async def test_renewed_pair_serves_new_connections_and_keeps_open_ones(
    renewing: Renewing, pair: TlsPlan, authority: trustme.CA, fake_vllm: FakeVllm
) -> None:
    """A running stream does not notice."""
    finish = asyncio.Event()
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Wait(finish), Send(chunk(DONE) + b"0\r\n\r\n"))
    client = await Raw.connect(renewing.port, renewing.running.key, tls=trusting(authority))
    client.send(client.request(BODY | {"stream": True}))
    await client.head()
    before = await served(renewing.port, authority)
    der = write_pair(authority, pair)
    await renewing.reloader.reload_tls()
    assert before != await served(renewing.port, authority) == der
    finish.set()
    assert [await client.chunk() for _ in range(3)] == [token_event(), DONE, b""]
    fake_vllm.play(Send(json_answer({"id": 1})))
    assert (await client.post(BODY)).status == 200
    client.reset()
    assert len(renewing.running.log_lines("tls_reloaded")) == 1
    await renewing.reloader.reload_tls()
    assert len(renewing.running.log_lines("tls_reloaded")) == 1


@pytest.mark.parametrize("how", FAULTS)
async def test_a_broken_pair_keeps_the_last_good_one_and_says_so(
    renewing: Renewing, pair: TlsPlan, authority: trustme.CA, how: str
) -> None:
    """Until there is a good pair again."""
    before = await served(renewing.port, authority)
    spoil(pair, how, authority)
    await renewing.reloader.reload_tls()
    assert await served(renewing.port, authority) == before
    (line,) = renewing.running.log_lines("tls_not_reloaded")
    assert FAULTS[how] in line["error"]
    assert renewing.running.metric('aiaas_reloads_total{result="failure",what="tls"}') == 1
    if pair.key_file.is_dir():
        pair.key_file.rmdir()
    der = write_pair(authority, pair)
    await renewing.reloader.reload_tls()
    assert await served(renewing.port, authority) == der


async def test_the_symlink_swap_of_a_mounted_secret_is_seen(
    renewing: Renewing, pair: TlsPlan, authority: trustme.CA, tmp_path: Path
) -> None:
    """By the watch itself, as Kubernetes renews a Secret; SIGHUP reads the files too."""
    for version in ("..1", "..2"):
        (tmp_path / version).mkdir()
        inside = TlsPlan(tmp_path / version / "tls.crt", tmp_path / version / "tls.key", "1.2")
        der = write_pair(authority, inside)
    for file in files_of(pair):
        file.unlink()
        file.symlink_to(Path("..data") / file.name)
    (tmp_path / "..data").symlink_to("..1")
    await renewing.reloader.reload_tls()
    watching = [asyncio.create_task(watch.run(), name="watch") for watch in renewing.reloader.watches()]
    await asyncio.sleep(0)
    (tmp_path / "..new").symlink_to("..2")
    os.rename(tmp_path / "..new", tmp_path / "..data")
    renewing.reloader.wake()
    async with asyncio.timeout(5):
        while await served(renewing.port, authority) != der:
            await asyncio.sleep(0.05)
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)


def test_the_repr_tells_the_file_and_no_key(pair: TlsPlan) -> None:
    """The message names the cause in an operator's words."""
    read = read_pair(pair)
    assert "BEGIN" not in repr(read)
    assert repr(ServerTls(pair, read)) == f"<ServerTls {pair.cert_file}>"
