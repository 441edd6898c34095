"""aiaas.proxy.client.ports: listening sockets on real ports."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from aiaas.errors import EnvironmentFault
from aiaas.plan.model import Plan
from aiaas.plan.read import read
from aiaas.proxy.client.ports import PORT_PATIENCE, bind, bind_shared, keeps_metrics_port, take_ports
from aiaas.proxy.telemetry.log import JsonLog
from tests.ports import free_port


async def test_a_port_that_is_taken_is_one_clear_message() -> None:
    """The message names the field; neither a second server nor one that only binds gets the same port."""
    with bind("127.0.0.1", 0, "server.port") as first:
        port = first.getsockname()[1]
        with pytest.raises(EnvironmentFault) as caught:
            bind("127.0.0.1", port, "server.port")
    assert caught.value.message == (
        f"cannot listen on 127.0.0.1:{port} (server.port): "
        "another program listens there; stop it or choose another port"
    )


async def test_a_port_that_workers_share_is_taken_for_everybody_else() -> None:
    """Connections are spread over the sockets; a second server with the same options is refused."""
    listeners = bind_shared("127.0.0.1", 0, "server.port", 2)
    port = listeners[0].getsockname()[1]
    try:
        with pytest.raises(EnvironmentFault, match="another program listens there"):
            bind_shared("127.0.0.1", port, "server.port", 2)
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        accepted = [0, 0]
        for number, listener in enumerate(listeners):
            with suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()
                    accepted[number] += 1
        for client in clients:
            client.close()
        assert sum(accepted) == 40
        assert min(accepted) > 0
    finally:
        for listener in listeners:
            listener.close()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.1", "this machine does not have that address"),
        ("no.such.host.invalid", "cannot listen on no.such.host"),
    ],
)
def test_foreign_address_is_one_clear_message(host: str, words: str) -> None:
    """The message has no error numbers."""
    with pytest.raises(EnvironmentFault, match=words) as caught:
        bind(host, 8080, "server.port")
    assert "Errno" not in caught.value.message


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="Linux lets accepted sockets inherit these")
def test_accepted_socket_notices_a_client_that_lost_power() -> None:
    """Within half a minute; the kernel's own bound is two hours."""
    with bind("127.0.0.1", 0, "x") as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
            found = [accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
            assert found == [15, 5, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux lets accepted sockets inherit this")
def test_accepted_socket_sends_events_at_once() -> None:
    """By Nagle's algorithm a stream's second event would wait until the client acknowledges the first."""
    with bind("127.0.0.1", 0, "x") as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# -- taking over from a predecessor ---------------------------------------------------------------------------------


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A config with free ports."""
    config = {
        "server": {"host": "127.0.0.1", "port": free_port()},
        "backends": {"vllm": {"url": "http://127.0.0.1:9", "models": ["m"]}},
        "monitoring": {"metrics_port": free_port(), "admin_port": 0},
    }
    (tmp_path / "aiaas.yaml").write_text(yaml.safe_dump(config))
    found = read(tmp_path / "aiaas.yaml", {}).plan
    assert found is not None
    return found


class Lines:
    """The logged events."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.log = JsonLog(self.written.append, time.time, "info")

    def events(self) -> list[dict[str, object]]:
        self.log.flush()
        return [json.loads(line) for line in b"".join(self.written).splitlines()]


@pytest.mark.parametrize("workers", [1, 3])
async def test_free_ports_are_taken_at_once(plan: Plan, workers: int) -> None:
    """One socket for each worker; closing the stack closes all of them."""
    lines = Lines()
    plan = replace(plan, server=replace(plan.server, workers=workers))
    async with AsyncExitStack() as stack:
        listeners, metrics = await take_ports(plan, lines.log, stack)
        assert len(listeners) == workers
        assert metrics is not None
    assert [listener.fileno() for listener in (*listeners, metrics)] == [-1] * (workers + 1)
    assert lines.events() == []


@pytest.mark.parametrize("field", ["server.port", "monitoring.metrics_port"])
async def test_a_port_of_a_predecessor_is_waited_for(plan: Plan, field: str) -> None:
    """With one line in the log, and nothing else listens meanwhile."""
    ports = {"server.port": plan.server.port, "monitoring.metrics_port": plan.monitoring.metrics_port}
    lines = Lines()
    async with AsyncExitStack() as stack:
        with bind("127.0.0.1", ports.pop(field), "x"):
            taking = asyncio.create_task(take_ports(plan, lines.log, stack))
            while not lines.events():
                await asyncio.sleep(0)
            (other,) = ports.values()
            bind("127.0.0.1", other, "x").close()
            assert not taking.done()
        listeners, _ = await taking
        assert listeners[0].getsockname()[1] == plan.server.port
    (line,) = lines.events()
    assert (line["level"], line["event"]) == ("warning", "waiting_for_port")
    assert f"({field})" in str(line["error"])


async def test_a_port_that_stays_taken_is_an_error(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the timeout, with both ports released."""
    monkeypatch.setattr("aiaas.proxy.client.ports.PORT_PATIENCE", 0.05)
    with bind("127.0.0.1", plan.server.port, "x"):
        async with AsyncExitStack() as stack:
            with pytest.raises(EnvironmentFault, match=r"server\.port"):
                await take_ports(plan, Lines().log, stack)
    bind("127.0.0.1", plan.monitoring.metrics_port, "x").close()


async def test_an_address_that_is_not_ours_is_not_waited_for(plan: Plan) -> None:
    """The address will not become ours."""
    began = time.monotonic()
    with pytest.raises(EnvironmentFault, match="does not have that address"):
        async with AsyncExitStack() as stack:
            await take_ports(replace(plan, server=replace(plan.server, host="192.0.2.1")), Lines().log, stack)
    assert time.monotonic() - began < PORT_PATIENCE / 2


@pytest.mark.parametrize(("env", "keeps"), [({}, False), ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, True)])
def test_only_a_pod_keeps_its_metrics_port(env: dict[str, str], keeps: bool) -> None:
    """Elsewhere a successor needs it."""
    assert keeps_metrics_port(env) is keeps


# -- sockets that systemd passes ------------------------------------------------------------------------------------


def passed_sockets(count: int) -> list[socket.socket]:
    """Listening sockets on one port, as a socket unit opens them; without the options that aiaas sets."""
    first = socket.create_server(("127.0.0.1", 0), reuse_port=True)
    return [first, *(socket.create_server(first.getsockname(), reuse_port=True) for _ in range(count - 1))]


@pytest.mark.parametrize(("workers", "count"), [(1, 1), (3, 3), (3, 1), (3, 2)])
async def test_passed_sockets_are_used_for_the_workers(plan: Plan, workers: int, count: int) -> None:
    """Each worker listens, and each socket has a worker; the port of the config stays free."""
    passed = passed_sockets(count)
    port = passed[0].getsockname()[1]
    plan = replace(plan, server=replace(plan.server, workers=workers))
    async with AsyncExitStack() as stack:
        listeners, metrics = await take_ports(plan, Lines().log, stack, passed)
        assert [listener.getsockname()[1] for listener in listeners] == [port] * workers
        assert len({socket_number(listener) for listener in listeners}) == count
        assert all(not listener.getblocking() for listener in listeners)
        assert all(listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for listener in listeners)
        assert metrics is not None
        bind("127.0.0.1", plan.server.port, "x").close()
    assert [listener.fileno() for listener in (*listeners, *passed)] == [-1] * (workers + count)


def socket_number(sock: socket.socket) -> int:
    """The number of the kernel's socket, the same for copies of a descriptor."""
    return os.fstat(sock.fileno()).st_ino


async def test_passed_socket_without_a_worker_is_an_error(plan: Plan) -> None:
    """The clients in its queue would wait for ever."""
    passed = passed_sockets(2)
    async with AsyncExitStack() as stack:
        with pytest.raises(EnvironmentFault, match=r"2 sockets, but server.workers is 1.*--target systemd"):
            await take_ports(plan, Lines().log, stack, passed)
    for sock in passed:
        sock.close()


async def test_passed_socket_on_another_port_is_logged(plan: Plan) -> None:
    """The socket unit counts, and the operator may have changed the config only."""
    (passed,) = passed_sockets(1)
    port = passed.getsockname()[1]
    lines = Lines()
    async with AsyncExitStack() as stack:
        await take_ports(plan, lines.log, stack, [passed])
    (line,) = lines.events()
    assert (line["event"], line["listens_on"], line["config"]) == ("other_port", port, plan.server.port)
