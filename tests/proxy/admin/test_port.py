"""aiaas.proxy.admin.port: who may read the admin port, and what it answers to wrong questions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack

import pytest

from aiaas.proxy.admin.page import read_page
from aiaas.proxy.admin.port import MOST_CONNECTIONS, AdminPort, Query, asked_by, fault_of_sender
from aiaas.proxy.telemetry.log import JsonLog
from tests.ports import free_port
from tests.proxy.conftest import Got, Raw


class Told:
    """A source that shows what it was asked."""

    async def status(self) -> bytes:
        return b'{"is":"status"}'

    async def requests(self, asked: Query) -> bytes:
        if asked.id == "large":
            return b"x" * 16 * 1024 * 1024
        return f'"{asked.limit} {asked.id} {asked.live}"'.encode()

    async def refusals(self, asked: Query) -> bytes:
        return f'"refusals {asked.limit}"'.encode()


class Port:
    """An admin port that listens."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.clients: list[Raw] = []

    async def get(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Got:
        client = await Raw.connect(self.port, "")
        self.clients.append(client)
        got = await client.get(path, method=method, headers={"Host": f"localhost:{self.port}", **(headers or {})})
        assert await client.ended() == b""
        return got


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    """An admin port with `Told` behind it."""
    made = Port(free_port())
    log = JsonLog(lambda _lines: True, lambda: 0.0, "info")
    async with AsyncExitStack() as stack:
        await AdminPort(made.port, Told(), log, lambda error: pytest.fail(repr(error))).begin(stack)
        yield made
        for client in made.clients:
            client.reset()


async def test_page_comes_with_its_policy(port: Port) -> None:
    """Beside the headers of every answer."""
    got = await port.get("/")
    assert (got.status, got.body) == (200, read_page().body)
    assert got.header("content-type") == "text/html; charset=utf-8"
    assert (got.header("content-security-policy") or "").startswith("default-src 'none'; style-src 'sha256-")
    assert got.header("x-frame-options") == "DENY"
    assert got.header("x-content-type-options") == "nosniff"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/status", b'{"is":"status"}'),
        ("/status?", b'{"is":"status"}'),
        ("/requests", b'"100 None False"'),
        ("/requests?limit=7&id=abc&live=1", b'"7 abc True"'),
        ("/refusals?limit=0", b'"refusals 0"'),
    ],
)
async def test_answers_are_json_that_nothing_stores(port: Port, path: str, body: bytes) -> None:
    """Each connection ends with its answer, and no answer lets another origin read it."""
    got = await port.get(path)
    assert (got.status, got.body, got.header("connection")) == (200, body, "close")
    assert got.header("content-type") == "application/json; charset=utf-8"
    assert got.header("cache-control") == "no-store"
    assert not any(name.lower().startswith("access-control") for name, _ in got.headers)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/status", 200),
        ("POST", "/status", 405),
        ("DELETE", "/requests", 405),
        ("OPTIONS", "/status", 405),
        ("GET", "/nothing", 404),
        ("GET", "/v1/models", 404),
        ("GET", "/requests?limit=10001", 400),
        ("GET", "/requests?limit=x", 400),
        ("GET", "/requests?status=-1", 400),
        ("GET", "/requests?colour=blue", 400),
    ],
)
async def test_port_is_read_only_and_names_a_fault(port: Port, method: str, path: str, status: int) -> None:
    """A wrong parameter is not ignored: its answer would look like that of all requests."""
    got = await port.get(path, method=method)
    assert got.status == status
    assert (got.header("allow") == "GET, HEAD") is (status == 405)
    assert bool(got.body) is (method != "HEAD")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example"},
        {"Host": "127.0.0.1.evil.example:9091"},
        {"Host": "192.168.0.1:9091"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=lambda headers: " ".join(map(": ".join, headers.items())),
)
async def test_page_of_another_site_is_refused(port: Port, headers: dict[str, str]) -> None:
    """By its Host where its name was pointed at this machine, else by what the browser says of it."""
    got = await port.get("/status", headers)
    assert got.status == 403
    assert b"status" not in got.body


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost"},
        {"host": "LOCALHOST:9091"},
        {"host": "127.0.0.1:19091"},
        {"host": "[::1]"},
        {"host": "[::1]:9091"},
        {"host": "localhost:9091", "origin": "http://localhost:9091", "sec-fetch-site": "same-origin"},
        {"host": "localhost", "sec-fetch-site": "none"},
    ],
)
def test_names_of_loopback_are_welcome(headers: dict[str, str]) -> None:
    """With any port, since `kubectl port-forward` chooses one; and the port's own page."""
    assert fault_of_sender(headers) is None


async def test_connections_beyond_the_bound_are_refused(port: Port) -> None:
    """Each may hold an answer of 10,000 requests."""
    port.clients += [await Raw.connect(port.port, "") for _ in range(MOST_CONNECTIONS)]
    assert (await port.get("/status")).status == 503
    port.clients[0].reset()
    await port.clients[1].get("/status", headers={"Host": "localhost"})
    assert (await port.get("/status")).status == 200


async def test_answers_that_nobody_reads_are_bounded(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks for everything and reads nothing must not take the gateway's memory."""
    monkeypatch.setattr("aiaas.proxy.admin.port.MOST_UNREAD", 1024 * 1024)
    slow = await Raw.connect(port.port, "", receive_buffer=4096)
    port.clients.append(slow)
    slow.send(slow.request(None, method="GET", path="/requests?id=large", headers={"Host": "localhost"}))
    async with asyncio.timeout(20):
        while (await port.get("/status")).status == 200:
            await asyncio.sleep(0.01)
    slow.reset()
    async with asyncio.timeout(20):
        while (await port.get("/status")).status == 503:
            await asyncio.sleep(0.01)


def test_query_is_read() -> None:
    """An empty value asks for nothing in particular."""
    assert asked_by("/requests?key=alice&model=m&status=429&id=") == Query(key="alice", model="m", status=429)
    assert asked_by("/requests?live=0&limit=10000") == Query(limit=10_000)


async def test_port_0_listens_nowhere() -> None:
    """`monitoring.admin_port: 0` is off."""
    log = JsonLog(lambda _lines: True, lambda: 0.0, "info")
    async with AsyncExitStack() as stack:
        admin = AdminPort(0, Told(), log, lambda error: pytest.fail(repr(error)))
        await admin.begin(stack)
        await admin.run()
        assert admin._server is None
