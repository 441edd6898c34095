"""Connections: pipelining, leaving, limits. On real sockets; keep-alive's five seconds are in tests/e2e/wire_cases."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket

import pytest

from aiaas.simulator.faults import parse_fault
from aiaas.simulator.http import MAX_PIPELINED
from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import running_simulator

SLOW = SimulatorOptions(ttft=30)
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b'{"messages":[{"role":"user","content":"x"}]}'
CHAT = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(BODY), BODY)
)


async def test_an_idle_connection_is_closed_after_its_keep_alive() -> None:
    """Counted from the last response; here 50 ms."""
    async with running_simulator(SimulatorOptions(keep_alive=0.05)) as simulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
        writer.write(HEALTH)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        assert await asyncio.wait_for(reader.read(), 1) == b""
        writer.close()


async def test_connection_with_a_request_is_not_idle() -> None:
    """Neither is one whose body is still coming."""
    async with running_simulator(SimulatorOptions(keep_alive=0.03, ttft=0.1, itl=0)) as simulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
        writer.write(HEALTH)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHAT[:-5])
        await asyncio.sleep(0.06)
        writer.write(CHAT[-5:])
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        writer.close()


async def test_a_client_that_pipelined_and_leaves_is_noticed() -> None:
    """Reading goes on while an answer is under way, so the end is seen behind what was sent ahead."""
    async with running_simulator(SLOW) as simulator:
        _, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
        writer.write(CHAT + HEALTH * 50)
        await simulator.wait_for(lambda stats: stats.running == 1)
        writer.close()
        await simulator.wait_for(lambda stats: stats.running == 0 and stats.aborted == 1)
        assert len(simulator.received) == 1


async def test_too_many_pipelined_requests_drop_the_connection() -> None:
    """And the generation before them ends too."""
    async with running_simulator(SLOW) as simulator:
        _, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
        writer.write(CHAT + HEALTH * (MAX_PIPELINED + 1))
        await simulator.wait_for(lambda stats: stats.aborted == 1 and stats.connections == 0)
        writer.close()


async def test_a_thousand_requests_one_by_one_each_get_their_answer() -> None:
    """Pipelined in tens on one connection, in order."""
    async with running_simulator(SimulatorOptions()) as simulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
        for _ in range(100):
            writer.write(HEALTH * 10)
            for _ in range(10):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        writer.close()
        assert simulator.stats.accepted == 1


async def test_an_offered_upgrade_is_answered_as_plain_http() -> None:
    """And the upgrade is refused."""
    async with running_simulator(SimulatorOptions()) as simulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        writer.close()


async def test_unhandled_exception_closes_before_next_request() -> None:
    """The 500 does not announce the close; a request sent at once behind it is not read, and gets a RST."""
    async with running_simulator(SimulatorOptions(fault=parse_fault("unhandled-exception"))) as simulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
        writer.write(CHAT)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 500 ")
        assert b"connection:" not in head
        await reader.readuntil(b"}}")
        writer.write(CHAT)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await simulator.wait_for(lambda stats: stats.connections == 0)
        assert len(simulator.received) == 1


async def test_a_killed_simulator_leaves_no_connection() -> None:
    """Every client sees the end."""
    async with running_simulator(SLOW) as simulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
        writer.write(CHAT)
        await simulator.wait_for(lambda stats: stats.running == 1)
        await simulator.kill()
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 1) == b""
        writer.close()
        assert simulator.stats.connections == 0


@pytest.mark.parametrize("turns", range(5))
async def test_killed_while_it_accepts_it_leaves_no_socket(turns: int) -> None:
    """In whichever turn of the loop: a socket that nobody closes is an error when it is collected."""
    async with running_simulator(SLOW) as simulator:
        with socket.create_connection(("127.0.0.1", simulator.port)):
            for _ in range(turns):
                await asyncio.sleep(0)
            await simulator.kill()
            gc.collect()
            assert simulator.stats.connections == 0
