"""aiaas.proxy.client.descriptors: the limit on file descriptors, and how many connections it is enough for."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from aiaas.proxy.client.descriptors import connections_for, descriptors_for
from tests.e2e.processes import running_gateway, status_of


@pytest.mark.parametrize("connections", [1, 100, 2048])
def test_descriptors_for_connections_are_enough(connections: int) -> None:
    """One descriptor less is not enough."""
    assert connections_for(descriptors_for(connections)) == connections
    assert connections_for(descriptors_for(connections) - 1) == connections - 1
    assert connections_for(10) == 0


EXHAUSTED = """
import asyncio, json, resource, socket, sys
import uvloop
from aiaas.proxy.client.open_side import OpenSide
from aiaas.proxy.client.door import Door
from aiaas.proxy.client.places import Places
from aiaas.proxy.client.refusal import ConnectionLimits
from aiaas.proxy.client.answers import answer
from tests.proxy.conftest import config_of, plan_of

class Hooks:
    reasons = []
    def internal_error(self, error): raise error
    def refused_head(self, peer, error, origin): return b""
    def dropped(self, peer, reason): pass
    def turned_away(self, reason): self.reasons.append(reason)

async def main(held):
    hooks, busy, turns = Hooks(), asyncio.Event(), 0
    async def handle(request, client):
        if request.raw_path == "/busy":
            await busy.wait()
        client.transport.write(answer(200, b"text/plain", b"", extra=b"", close=False))
        return True
    places = Places(plan_of(config_of(["http://vllm"], {}, {})).server, hooks.turned_away)
    side = OpenSide(handle, ConnectionLimits(10.0, 4096), hooks)
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    port = listener.getsockname()[1]
    door = Door(listener, side, places, hooks, None, 10.0)
    door.open()
    flood = [socket.socket() for _ in range(40)]
    probes = [socket.socket() for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (socket.socket().fileno() + 20, 4096))
    for client in flood:
        client.connect(("127.0.0.1", port))
        if held:
            client.sendall(b"GET /busy HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        await asyncio.sleep(0.01)
    answers = []
    for probe in probes:
        probe.settimeout(5)
        def ask():
            probe.connect(("127.0.0.1", port))
            probe.sendall(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
            try:
                return probe.recv(100)[9:12].decode()
            except ConnectionResetError:
                return ""
        answers.append(await asyncio.to_thread(ask))
    before = len(hooks.reasons)
    await asyncio.sleep(0.5)
    print(json.dumps([answers, sorted(set(hooks.reasons)), before, len(hooks.reasons) - before]))

{run}(main({held}))
"""


@pytest.mark.parametrize("run", ["asyncio.run", "uvloop.run"])
@pytest.mark.parametrize("held", [False, True], ids=["idle clients", "busy clients"])
def test_exhausted_descriptors_do_not_stop_the_door(run: str, held: bool) -> None:
    """In a process with 20 descriptors for 40 clients: an idle connection ends for each new one; without idle ones,
    new ones are refused. Either way it is counted, the loop does not run hot, and it goes on accepting."""
    script = EXHAUSTED.replace("{run}", run).replace("{held}", str(held))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    answers, reasons, times, later = json.loads(done.stdout)
    assert answers == (["", "", ""] if held else ["200", "200", "200"])
    assert "descriptors" in reasons
    assert "full" not in reasons
    assert 20 <= times <= 200
    assert later == 0


def test_a_low_hard_limit_lets_fewer_in_and_says_so(tmp_path: Path) -> None:
    """`aiaas serve` with 164 descriptors lets 50 connections in, however many clients try, and answers probes."""
    prefix = ("sh", "-c", 'ulimit -n 164; exec "$@"', "sh")
    with running_gateway(tmp_path, {"url": "http://127.0.0.1:9"}, prefix=prefix) as gateway, ExitStack() as stack:
        address = ("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        for _ in range(150):
            stack.enter_context(socket.create_connection(address, 10))
        for _ in range(3):
            assert status_of(gateway.url + "/health") == 200
        assert 0 < gateway.metric("aiaas_connections") <= 50
        assert gateway.metric("aiaas_connections_turned_away_total", reason="evicted") >= 100
        assert gateway.metric("aiaas_connections_turned_away_total", reason="descriptors") == 0
        lines = [json.loads(line) for line in (tmp_path / "stdout.log").read_text().splitlines()]
    [line] = [line for line in lines if line["event"] == "descriptors_few"]
    assert (line["limit"], line["max_connections"], line["bound"]) == (164, 2048, 50)


def test_a_low_soft_limit_is_raised_to_what_is_needed(tmp_path: Path) -> None:
    """1,024 is the usual one, and enough for 480 connections only; the hard one is higher everywhere."""
    prefix = ("sh", "-c", 'ulimit -S -n 200; exec "$@"', "sh")
    with running_gateway(tmp_path, {"url": "http://127.0.0.1:9"}, prefix=prefix) as gateway:
        assert gateway.metric("process_max_fds") >= 2048 * 2 + 64
        assert "descriptors_few" not in (tmp_path / "stdout.log").read_text()
