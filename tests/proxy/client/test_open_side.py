"""aiaas.proxy.client.open_side: the connections of one port, and their end. Real sockets, both loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from aiaas.errors import ApiError
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.handler import Pause, in_task
from aiaas.proxy.client.incoming import HttpRequest
from aiaas.proxy.client.open_side import OpenSide
from aiaas.proxy.client.refusal import ConnectionLimits
from tests.proxy.conftest import Raw
from tests.proxy.loops import both_loops
from tests.waiting import closed, until

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


event_loop_policy = both_loops


class Port:
    """A port whose handler does what the path says. It records what the connections report."""

    def __init__(self) -> None:
        self.pause = Pause()
        self.log: list[str] = []
        self.errors: list[BaseException | None] = []
        self.side = OpenSide(self.handle, ConnectionLimits(10.0, 4096), self)
        self.number = 0
        self.clients: list[Raw] = []

    async def handle(self, request: HttpRequest, client: ClientConnection) -> bool:
        """Wait in a task or without one, write before a failure or not."""
        words = request.raw_path.split("/")
        self.log.append(request.raw_path)
        assert client.transport is not None
        if "extra" in words:
            client.extra = b"x-mark: 1\r\n"
        try:
            if "begun" in words:
                client.begun = True
                client.transport.write(ANSWER[:20])
            if "task" in words:
                await in_task(client.handler)
            if "wait" in words:
                await self.pause
        except asyncio.CancelledError:
            self.log.append("cancelled")
            if "stubborn" not in words:
                raise
        if "fail" in words:
            raise LookupError
        if client.transport is not None:
            client.transport.write(ANSWER)
        if "closed" in words:
            client.force_close()
        return "last" not in words

    def internal_error(self, error: BaseException | None) -> None:
        """Of the hooks."""
        self.errors.append(error)

    def refused_head(self, _peer: str, error: ApiError, _origin: str | None) -> bytes:
        """Likewise."""
        self.log.append(f"refused {error.status}")
        return b""

    def dropped(self, _peer: str, reason: str) -> None:
        """Likewise."""
        self.log.append(reason)

    async def client(self) -> Raw:
        """A new client, whose connection is open."""
        before = len(self.side.connections)
        client = await Raw.connect(self.number, "")
        self.clients.append(client)
        await until(lambda: len(self.side.connections) > before)
        return client


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    """A port that listens."""
    made = Port()
    server = await asyncio.get_running_loop().create_server(made.side, "127.0.0.1", 0)
    made.number = server.sockets[0].getsockname()[1]
    yield made
    for client in made.clients:
        client.reset()
    await closed(server)
    await made.side.shutdown(0)
    await until(lambda: not made.side.connections)


def get(path: str) -> bytes:
    """A request for it."""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_a_closing_handler_reports_no_error(port: Port) -> None:
    """Nothing is asked of a socket that is closed."""
    client = await port.client()
    client.send(get("/closed/last"))
    assert (await client.answer()).body == b"ok"
    assert await client.ended() == b""
    await until(lambda: not port.side.connections)
    assert port.errors == []


async def test_connections_are_listed_the_oldest_first(port: Port) -> None:
    """Until they end."""
    assert port.side.connections == []
    clients = [await port.client() for _ in range(3)]
    first, second, third = port.side.connections
    assert [c.peer for c in (first, second, third)] == ["127.0.0.1"] * 3
    clients[1].reset()
    await until(lambda: port.side.connections == [first, third])
    for client in clients:
        client.reset()
    await until(lambda: not port.side.connections)


async def test_shutdown_without_connections_ends_at_once(port: Port) -> None:
    """Also a second time."""
    await port.side.shutdown(100)
    await port.side.shutdown(100)


@pytest.mark.parametrize("begun", [b"", b"\r\n", b"GET /half"], ids=["nothing", "an empty line", "half a head"])
async def test_shutdown_closes_idle_connections_at_once(port: Port, begun: bytes) -> None:
    """A head that has only begun does not count as a request."""
    client = await port.client()
    client.send(get("/") + begun)
    assert (await client.answer()).body == b"ok"
    async with asyncio.timeout(5):
        await port.side.shutdown(100)
    assert await client.ended() == b""
    assert not port.errors


@pytest.mark.parametrize("where", ["/wait", "/task/wait"], ids=["at a pause", "in a task"])
async def test_shutdown_waits_for_the_present_answer(port: Port, where: str) -> None:
    """Then the connection ends, although the request would have kept it, and without the one that waits behind it."""
    client = await port.client()
    client.send(get(where) + get("/behind"))
    await until(lambda: port.pause._wake)
    ending = asyncio.create_task(port.side.shutdown(100))
    await asyncio.sleep(0)
    client.send(get("/later"))
    port.pause.go_on()
    assert (await client.answer()).body == b"ok"
    assert await client.ended() == b""
    await ending
    assert port.log == [where]


@pytest.mark.parametrize("where", ["/wait", "/task/wait"], ids=["at a pause", "in a task"])
@pytest.mark.parametrize("how", ["", "/begun", "/stubborn", "/fail"])
async def test_shutdown_ends_what_takes_too_long(port: Port, where: str, how: str) -> None:
    """By CancelledError; whatever the handler makes of it, the connection ends."""
    client = await port.client()
    client.send(get(where + how))
    await until(lambda: port.pause._wake)
    await port.side.shutdown(0)
    await client.ended()
    await until(lambda: not port.side.connections)
    await until(lambda: len(port.log) == 2)
    assert port.log == [where + how, "cancelled"]
    assert not port.errors


@pytest.mark.parametrize("where", ["", "/task", "/wait", "/task/wait"])
@pytest.mark.parametrize("begun", ["", "/begun"], ids=["nothing", "some bytes"])
async def test_failing_handler_gets_500_or_a_break(port: Port, where: str, begun: str) -> None:
    """A 500 only where nothing of another answer can be on the wire; the connection ends either way."""
    client = await port.client()
    client.send(get(f"{where}{begun}/fail") + get("/behind"))
    if "wait" in where:
        await until(lambda: port.pause._wake)
        port.pause.go_on()
    rest = await client.ended()
    if begun:
        assert rest == ANSWER[:20]
    else:
        assert rest.startswith(b"HTTP/1.1 500 ")
        assert rest.count(b"HTTP/1.1") == 1
    assert [type(error) for error in port.errors] == [LookupError]
    assert port.log == [f"{where}{begun}/fail"]


async def test_extra_lines_are_of_one_request_only(port: Port) -> None:
    """A 500 has those of its own request, and not of the one before it."""
    for paths, marks in ((("/extra/fail",), 1), (("/extra", "/fail"), 0)):
        client = await port.client()
        client.send(b"".join(map(get, paths)))
        assert (await client.ended()).count(b"x-mark: 1") == marks


@pytest.mark.parametrize("where", ["/wait", "/task/wait"], ids=["at a pause", "in a task"])
@pytest.mark.parametrize("leave", ["close", "half_close", "reset"])
@pytest.mark.parametrize("behind", [b"", get("/behind"), b"GET /half"], ids=["nothing", "a request", "half a head"])
async def test_client_that_leaves_cancels_its_handler(port: Port, where: str, leave: str, behind: bytes) -> None:
    """However it leaves, and whatever it had begun to send; nothing that waited is begun."""
    client = await port.client()
    client.send(get(where) + behind)
    await until(lambda: port.pause._wake)
    getattr(client, leave)()
    await until(lambda: not port.side.connections)
    await until(lambda: "cancelled" in port.log)
    port.pause.go_on()
    assert port.log == [where, "cancelled"]
    assert not port.errors


@pytest.mark.parametrize("where", ["", "/task", "/wait", "/task/wait"])
async def test_handler_that_returns_false_ends_the_connection(port: Port, where: str) -> None:
    """Behind its answer; a request that waits behind it is thrown away, without a reset."""
    client = await port.client()
    client.send(get(f"{where}/last") + get("/behind"))
    if "wait" in where:
        await until(lambda: port.pause._wake)
        port.pause.go_on()
    assert (await client.answer()).body == b"ok"
    assert await client.ended() == b""
    assert port.log == [f"{where}/last"]


@pytest.mark.parametrize("where", ["", "/task", "/wait", "/task/wait"])
async def test_requests_of_a_connection_are_handled_in_turn(port: Port, where: str) -> None:
    """The second begins after the first one's end, however that one waits."""
    client = await port.client()
    client.send(get(f"{where}/first") + get("/second"))
    if "wait" in where:
        await until(lambda: port.pause._wake)
        assert port.log == [f"{where}/first"]
        port.pause.go_on()
    assert [(await client.answer()).body for _ in range(2)] == [b"ok", b"ok"]
    assert port.log == [f"{where}/first", "/second"]
    (connection,) = port.side.connections
    assert connection.is_idle


@pytest.mark.parametrize("where", ["/wait", "/task/wait"], ids=["at a pause", "in a task"])
async def test_close_ends_the_connection_behind_its_answer(port: Port, where: str) -> None:
    """Of the present request; later bytes are not read."""
    client = await port.client()
    client.send(get(where))
    await until(lambda: port.pause._wake)
    (connection,) = port.side.connections
    connection.close()
    client.send(get("/later"))
    port.pause.go_on()
    assert (await client.answer()).body == b"ok"
    assert await client.ended() == b""
    assert port.log == [where]


async def test_idle_connection_ends_at_the_keep_alive_timeout(port: Port) -> None:
    """One with a request at that time does not."""
    clients = [await port.client() for _ in range(2)]
    idle, busy = port.side.connections
    clients[1].send(get("/wait"))
    await until(lambda: port.pause._wake)
    idle._close_if_idle()
    busy._close_if_idle()
    assert await clients[0].ended() == b""
    port.pause.go_on()
    assert (await clients[1].answer()).body == b"ok"
    assert port.side.connections == [busy]
