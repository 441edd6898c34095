"""`aiaas serve` with several workers: real processes, real sockets, seen from outside."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
import yaml

from aiaas.keys.records import render_records
from aiaas.proxy.workers.pulse import HANG_PATIENCE, PULSE_INTERVAL
from tests.fakes.vllm import DONE, LAST_CHUNK, STREAM_HEAD, FakeVllm, Send, Wait, chunk, token_event
from tests.ports import free_port
from tests.proxy.conftest import Raw, new_key

BODY = {"model": "m", "messages": []}
STREAM = BODY | {"stream": True}


@dataclass
class Gateway:
    """A supervisor with its workers."""

    folder: Path
    config: dict[str, Any]
    process: subprocess.Popen[bytes]
    log: Path
    said: Path
    clients: list[Raw] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.config["server"]["port"])

    def workers(self) -> list[psutil.Process]:
        """The processes that serve, by number."""
        try:
            children = psutil.Process(self.process.pid).children()
            found = [(child.cmdline(), child) for child in children]
        except psutil.NoSuchProcess:
            return []
        workers = [(int(line[4]), child) for line, child in found if "aiaas.cli.worker" in line]
        return [child for _, child in sorted(workers, key=lambda pair: pair[0])]

    def serves(self, worker: psutil.Process) -> bool:
        """Whether a client is connected to this worker."""
        open_ones = [one for one in worker.net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED]
        return any(one.laddr.port == self.port for one in open_ones)

    def write_config(self, **sections: Any) -> None:
        self.config.update(sections)
        (self.folder / "aiaas.yaml").write_text(yaml.safe_dump(self.config))

    async def client(self, port: int | None = None) -> Raw:
        self.clients.append(await Raw.connect(port or self.port, ""))
        return self.clients[-1]

    async def status(self, body: Any = BODY) -> int:
        """The status of a request on a connection of its own, so at any of the workers."""
        return (await (await self.client()).post(body)).status

    async def metrics(self) -> dict[str, float]:
        client = await self.client(self.config["monitoring"]["metrics_port"])
        text = (await client.get("/metrics")).body.decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    async def seen(self, path: str) -> Any:
        """An answer of the admin port."""
        client = await self.client(self.config["monitoring"]["admin_port"])
        return (await client.get(path, headers={"Host": "localhost"})).json

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log so far; every line of it is JSON."""
        whole = self.log.read_bytes().rpartition(b"\n")[0]
        return [line for line in map(json.loads, whole.splitlines()) if line["event"] == name]

    async def until(self, holds: Callable[[], bool], seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.02)

    async def replaced(self, before: list[psutil.Process]) -> None:
        """Wait until as many workers serve as before, the first of which has been replaced."""

        def is_replaced() -> bool:
            now = self.workers()
            return len(now) == len(before) and before[0] not in now

        await self.until(is_replaced)
        async with asyncio.timeout(15):
            while (await self.metrics())["aiaas_workers"] != len(before):
                await asyncio.sleep(0.05)


@pytest.fixture
async def fake_vllm() -> AsyncIterator[FakeVllm]:
    """A scripted endpoint."""
    fake = await FakeVllm.start()
    yield fake
    await fake.stop()


def start(folder: Path, stdout: IO[bytes], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    """`aiaas serve` in a folder."""
    command = [sys.executable, "-m", "aiaas", "serve", "-c", str(folder / "aiaas.yaml")]
    return subprocess.Popen(command, stdout=stdout, stderr=stderr)


@pytest.fixture
async def gateway(tmp_path: Path, fake_vllm: FakeVllm) -> AsyncIterator[Gateway]:
    """Two workers in front of the fake, without keys and limits; at the end none of its processes is left."""
    config = {
        "server": {"host": "127.0.0.1", "port": free_port(), "workers": 2, "drain_timeout": "10s", "heartbeat": "0s"},
        "backends": {"vllm": {"url": fake_vllm.url, "models": ["m"], "timeout": "30s"}},
        "auth": {"enabled": False},
        "rate_limit": {"enabled": False},
        "monitoring": {"metrics_port": free_port(), "admin_port": free_port()},
    }
    (tmp_path / "aiaas.yaml").write_text(yaml.safe_dump(config))
    log, said = tmp_path / "log", tmp_path / "said"
    with log.open("wb") as stdout, said.open("wb") as stderr:
        made = Gateway(tmp_path, config, start(tmp_path, stdout, stderr), log, said)
    try:
        await made.until(lambda: b"listening on" in said.read_bytes())
    except TimeoutError:
        made.process.kill()  # with which its workers end
        made.process.wait()
        raise
    workers = made.workers()
    yield made
    for client in made.clients:
        client.reset()
    await asyncio.sleep(0.01)  # until their sockets are closed
    workers += made.workers()
    made.process.terminate()
    try:
        await asyncio.to_thread(made.process.wait, 20)
    finally:
        made.process.kill()
        for worker in workers:
            try:
                worker.wait(30)
            except psutil.TimeoutExpired:
                worker.kill()
                pytest.fail(f"{worker} was left behind")
    assert not made.events("internal_error")
    assert b"Traceback" not in said.read_bytes()


async def fill(gateway: Gateway, count: int = 24) -> list[Raw]:
    """`count` connections with a request each, spread by the kernel over all the sockets."""
    clients = [await gateway.client() for _ in range(count)]
    for client in clients:
        client.send(client.request(BODY))
    return clients


async def test_all_workers_serve_and_one_metrics_port_counts_for_all(gateway: Gateway) -> None:
    """The metrics count every request, and each worker had a part."""
    assert [await gateway.status() for _ in range(40)] == [200] * 40
    got = await gateway.metrics()
    name = '{endpoint="/v1/chat/completions",model="m",status="success"}'
    assert got[f"inference_requests_total{name}"] == 40
    assert got['inference_latency_seconds_count{endpoint="/v1/chat/completions",model="m"}'] == 40
    assert got["aiaas_workers"] == 2
    assert got["aiaas_requests_in_flight"] == 0
    processes = [psutil.Process(gateway.process.pid), *gateway.workers()]
    used = sum(each.user + each.system for each in (process.cpu_times() for process in processes))
    ticks = 2 * 0.01 * len(processes)  # what the system rounds down
    assert used - 0.5 < got["process_cpu_seconds_total"] <= used + ticks
    began = min(process.create_time() for process in processes)
    assert abs(got["process_start_time_seconds"] - began) < 2  # the system knows its own start to a second
    await gateway.until(lambda: len(gateway.events("inference_request")) == 40)
    clients = await fill(gateway)
    for client in clients:
        assert (await client.answer()).status == 200
    for worker in gateway.workers():
        states = [one.status for one in worker.net_connections("tcp") if one.laddr.port == gateway.port]
        assert psutil.CONN_ESTABLISHED in states
    for client in clients:
        client.reset()
    assert gateway.events("started")[0]["workers"] == 2


async def test_admin_port_answers_for_all_workers(gateway: Gateway) -> None:
    """Every request once, with its worker; the counts outlive a worker, which is missed until it is replaced."""
    for client in await fill(gateway):
        assert (await client.answer()).status == 200
    await gateway.until(lambda: len(gateway.events("inference_request")) == 24)
    rows = (await gateway.seen("/requests"))["ended"]
    assert len({row["id"] for row in rows}) == len(rows) == 24
    assert {row["worker"] for row in rows} == {1, 2}
    assert [row["at"] + row["duration"] for row in rows] == sorted(
        (r["at"] + r["duration"] for r in rows), reverse=True
    )
    (row,) = (await gateway.seen(f"/requests?id={rows[5]['id']}"))["ended"]
    assert row == rows[5]
    status = await gateway.seen("/status")
    assert (status["workers"], status["workers_up"], status["totals"]["requests"]) == (2, 2, 24)
    assert (await gateway.seen("/refusals")) == {"refusals": [], "by_code": {}}
    before = gateway.workers()
    before[0].kill()
    await gateway.until(lambda: bool(gateway.events("worker_ended")))
    assert (await gateway.seen("/status"))["totals"]["requests"] == 24
    await gateway.replaced(before)
    assert (await gateway.seen("/status"))["workers_up"] == 2


async def test_killed_worker_is_replaced_and_its_counts_stay(gateway: Gateway) -> None:
    """The other one goes on meanwhile, and no counter goes backwards."""
    name = 'inference_requests_total{endpoint="/v1/chat/completions",model="m",status="success"}'
    for client in await fill(gateway):
        assert (await client.answer()).status == 200
    assert (await gateway.metrics())[name] == 24
    before = gateway.workers()
    used = [(await gateway.metrics())["process_cpu_seconds_total"]]
    before[0].kill()
    seen: list[float] = []
    replaced = asyncio.create_task(gateway.replaced(before))
    while not replaced.done():
        assert await gateway.status() == 200  # one of the two sockets; where the dead one's, then a little later
        got = await gateway.metrics()
        seen.append(got[name])
        used.append(got["process_cpu_seconds_total"])
    await replaced
    assert seen == sorted(seen)
    assert used == sorted(used)
    got = await gateway.metrics()
    assert got[name] == 24 + len(seen)
    assert got["aiaas_worker_ends_total"] == 1
    (line,) = gateway.events("worker_ended")
    assert (line["worker"], line["pid"], line["how"]) == (1, before[0].pid, "SIGKILL")


async def test_a_removed_key_leaves_the_metrics_of_all_workers(gateway: Gateway) -> None:
    """Also the counts of a worker that has died since."""
    alice, bob = new_key("alice"), new_key("bob")
    keys = gateway.folder / "keys.yaml"
    keys.write_text(render_records([alice.record, bob.record]))
    gateway.write_config(auth={"enabled": True})
    await gateway.until(lambda: len(gateway.events("config_reloaded")) == 2)
    for key in (alice, bob):
        assert [(await (await gateway.client()).post(BODY, key=key.text)).status for _ in range(12)] == [200] * 12
    series = {key.record.name: f'aiaas_key_requests_total{{key_id="{key.record.id}"}}' for key in (alice, bob)}
    before = gateway.workers()
    await gateway.metrics()
    before[0].kill()
    await gateway.replaced(before)
    got = await gateway.metrics()
    assert [got[series[name]] for name in ("alice", "bob")] == [12, 12]
    loaded = len(gateway.events("keys_loaded"))
    keys.write_text(render_records([bob.record]))
    await gateway.until(lambda: len(gateway.events("keys_loaded")) == loaded + 2)
    async with asyncio.timeout(10):
        while series["alice"] in (got := await gateway.metrics()):
            await asyncio.sleep(0.05)
    assert got[series["bob"]] == 12


async def test_connections_of_a_dead_worker_are_served_by_the_next(gateway: Gateway) -> None:
    """None is reset: the supervisor has kept the socket in whose queue they wait."""
    before = gateway.workers()
    before[0].suspend()
    clients = await fill(gateway)
    answers = [asyncio.create_task(client.answer()) for client in clients]
    done, waiting = await asyncio.wait(answers, timeout=1)
    assert done
    assert waiting, "every connection went to the other worker"
    before[0].kill()
    assert [(await answer).status for answer in answers] == [200] * len(answers)


async def test_a_worker_that_hangs_does_not_hang_the_scrape(gateway: Gateway) -> None:
    """The hung worker counts with its last report."""
    assert [await gateway.status() for _ in range(20)] == [200] * 20
    full = await gateway.metrics()
    stopped = gateway.workers()[0]
    stopped.suspend()
    began = time.monotonic()
    got = await gateway.metrics()
    assert time.monotonic() - began < HANG_PATIENCE - 2  # after which the worker would be killed
    stopped.resume()
    name = 'inference_requests_total{endpoint="/v1/chat/completions",model="m",status="success"}'
    assert got[name] == full[name] == 20


async def test_a_worker_that_hangs_is_replaced_and_its_queue_served(gateway: Gateway, fake_vllm: FakeVllm) -> None:
    """SIGSTOP: it is noticed, counted and logged; connections in its queue wait for its replacement."""
    before = gateway.workers()
    before[0].suspend()
    clients = await fill(gateway)
    async with asyncio.timeout(30):
        while (await gateway.metrics())["aiaas_workers"] != 1:
            await asyncio.sleep(0.05)
    assert before[0].status() == psutil.STATUS_STOPPED, "it is missed before it is killed"
    assert len(fake_vllm.posts) < len(clients), "every connection went to the other worker"
    await gateway.until(lambda: bool(gateway.events("worker_hung")), 30)
    assert [(await client.answer()).status for client in clients] == [200] * len(clients)
    await gateway.replaced(before)
    (hung,), (ended,) = gateway.events("worker_hung"), gateway.events("worker_ended")
    assert (hung["worker"], hung["pid"], hung["level"]) == (1, before[0].pid, "error")
    assert hung["silent_seconds"] >= HANG_PATIENCE
    assert ended["how"] == "SIGKILL"
    assert gateway.workers()[1] == before[1]
    got = await gateway.metrics()
    assert (got["aiaas_worker_hangs_total"], got["aiaas_worker_ends_total"]) == (1, 1)


async def test_a_supervisor_that_was_stopped_itself_kills_no_worker(gateway: Gateway, fake_vllm: FakeVllm) -> None:
    """The supervisor did not listen; streams go on to their ends."""
    go_on = asyncio.Event()
    clients = await open_streams(gateway, fake_vllm, go_on, 4)
    before = gateway.workers()
    gateway.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(HANG_PATIENCE + 2)
    gateway.process.send_signal(signal.SIGCONT)
    await asyncio.sleep(PULSE_INTERVAL + 1)  # it has looked
    assert (await gateway.metrics())["aiaas_workers"] == 2
    go_on.set()
    for client in clients:
        assert [await client.chunk() for _ in range(2)] == [DONE, b""]
    assert gateway.workers() == before
    assert not gateway.events("worker_hung")


async def test_a_worker_that_hangs_while_all_drain_is_killed(gateway: Gateway, fake_vllm: FakeVllm) -> None:
    """The end does not wait for the hung worker until drain_timeout; the other one's stream ends whole."""
    gateway.write_config(server=gateway.config["server"] | {"drain_timeout": "120s"})
    gateway.process.send_signal(signal.SIGHUP)
    await gateway.until(lambda: len({line["worker"] for line in gateway.events("config_reloaded")}) == 2)
    go_on = asyncio.Event()
    clients = await open_streams(gateway, fake_vllm, go_on)
    before = gateway.workers()
    before[0].suspend()
    gateway.process.send_signal(signal.SIGTERM)
    await gateway.until(lambda: bool(gateway.events("worker_hung")), 30)
    go_on.set()
    assert await asyncio.to_thread(gateway.process.wait, 20) == 0
    whole = 0
    for client in clients:
        try:
            whole += [await client.chunk() for _ in range(2)] == [DONE, b""]
        except (asyncio.IncompleteReadError, ConnectionError, AssertionError):
            continue  # it was the worker's that hung
    assert 0 < whole < len(clients)
    assert gateway.events("stopped")[-1]["workers_left"] == 0


async def test_a_worker_killed_while_all_drain_is_not_replaced(gateway: Gateway, fake_vllm: FakeVllm) -> None:
    """The successor owns the port by then."""
    go_on = asyncio.Event()
    await open_streams(gateway, fake_vllm, go_on)
    before = gateway.workers()
    gateway.process.send_signal(signal.SIGTERM)
    await gateway.until(lambda: len(gateway.events("draining")) == 2)
    before[0].kill()
    await gateway.until(lambda: len(gateway.workers()) == 1)
    await asyncio.sleep(0.5)
    assert gateway.workers() == before[1:]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", gateway.port)
    go_on.set()
    assert await asyncio.to_thread(gateway.process.wait, 10) == 0


async def test_worker_on_sigterm_is_replaced_and_ends_its_streams(gateway: Gateway, fake_vllm: FakeVllm) -> None:
    """SIGTERM to one worker alone."""
    before = gateway.workers()
    go_on = asyncio.Event()
    fake_vllm.play(*[Send(STREAM_HEAD + chunk(token_event())), Wait(go_on), Send(chunk(DONE) + LAST_CHUNK)])
    client = await gateway.client()
    client.send(client.request(STREAM))
    await client.head()
    for worker in before:
        worker.terminate()
    # The one with the stream, and two new ones: while the idle one is still there, it may take a connection and refuse.
    await gateway.until(lambda: len(gateway.workers()) == 3 and len({*gateway.workers()} - {*before}) == 2)
    assert [await gateway.status() for _ in range(10)] == [200] * 10
    go_on.set()
    assert [await client.chunk() for _ in range(3)] == [token_event(), DONE, b""]
    await gateway.until(lambda: len(gateway.workers()) == 2)
    assert not set(gateway.workers()) & set(before)


async def test_a_second_serve_on_the_port_is_refused(gateway: Gateway) -> None:
    """Although the sockets would share it; with workers or without."""
    for workers in (2, 1):
        other = gateway.folder / f"other{workers}"
        other.mkdir()
        config = gateway.config | {"server": gateway.config["server"] | {"workers": workers}}
        (other / "aiaas.yaml").write_text(
            yaml.safe_dump(config | {"monitoring": {"metrics_port": free_port(), "admin_port": 0}})
        )
        with (other / "said").open("wb") as said:
            process = start(other, said, said)
            assert await asyncio.to_thread(process.wait, 20) == 3
        assert (other / "said").read_text().splitlines()[-1] == (
            f"aiaas: cannot listen on 127.0.0.1:{gateway.port} (server.port): "
            "another program listens there; stop it or choose another port"
        )


async def open_streams(gateway: Gateway, fake_vllm: FakeVllm, go_on: asyncio.Event, count: int = 8) -> list[Raw]:
    """At least `count` streams, each with one event so far; in each worker some.

    The kernel deals connections out by a hash: of eight all go to one of two workers once in 128 times.
    """
    script = [Send(STREAM_HEAD + chunk(token_event())), Wait(go_on), Send(chunk(DONE) + LAST_CHUNK)]
    clients: list[Raw] = []
    while len(clients) < count or not all(gateway.serves(worker) for worker in gateway.workers()):
        fake_vllm.play(*script)
        clients.append(await gateway.client())
        clients[-1].send(clients[-1].request(STREAM))
        await clients[-1].head()
        assert await clients[-1].chunk() == token_event()
    return clients


async def test_sigterm_finishes_open_streams_and_leaves_no_child(gateway: Gateway, fake_vllm: FakeVllm) -> None:
    """New connections are refused meanwhile; exit code 0."""
    go_on = asyncio.Event()
    clients = await open_streams(gateway, fake_vllm, go_on)
    workers = gateway.workers()
    gateway.process.send_signal(signal.SIGTERM)
    await gateway.until(lambda: len(gateway.events("draining")) == 2)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", gateway.port)
    await asyncio.sleep(1.2)
    assert gateway.process.poll() is None
    go_on.set()
    for client in clients:
        assert [await client.chunk() for _ in range(2)] == [DONE, b""]
    assert await asyncio.to_thread(gateway.process.wait, 10) == 0
    assert not any(worker.is_running() for worker in workers)
    assert not gateway.events("worker_ended")
    assert not gateway.events("worker_killed")


async def test_a_second_signal_leaves_at_once(gateway: Gateway, fake_vllm: FakeVllm) -> None:
    """Whatever is open; all processes end cleanly."""
    await open_streams(gateway, fake_vllm, asyncio.Event(), 2)
    gateway.process.send_signal(signal.SIGINT)
    await gateway.until(lambda: len(gateway.events("draining")) == 2)
    began = time.monotonic()
    gateway.process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(gateway.process.wait, 10) == 0
    assert time.monotonic() - began < 8  # drain_timeout is 10 s


async def test_workers_do_not_outlive_a_supervisor_that_is_killed(gateway: Gateway, fake_vllm: FakeVllm) -> None:
    """They end open streams, as for a SIGTERM, and the port is free at once."""
    go_on = asyncio.Event()
    clients = await open_streams(gateway, fake_vllm, go_on, 4)
    workers = gateway.workers()
    gateway.process.kill()
    await gateway.until(lambda: len(gateway.events("draining")) == 2)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", gateway.port)
    go_on.set()
    for client in clients:
        assert [await client.chunk() for _ in range(2)] == [DONE, b""]
    await gateway.until(lambda: not any(worker.is_running() for worker in workers))


async def test_a_changed_config_reaches_all_workers(gateway: Gateway, fake_vllm: FakeVllm) -> None:
    """On SIGHUP at once; also the worker that starts afterwards has it, though the file is broken by then."""
    gateway.write_config(backends={"vllm": {"url": fake_vllm.url, "models": ["new"]}})
    gateway.process.send_signal(signal.SIGHUP)
    await gateway.until(lambda: len({line["worker"] for line in gateway.events("config_reloaded")}) == 2)
    assert {await gateway.status(BODY | {"model": "new"}) for _ in range(16)} == {200}
    await asyncio.sleep(0.3)  # the supervisor reads it as well, and says nothing
    (gateway.folder / "aiaas.yaml").write_text("backends: [")
    before = gateway.workers()
    before[0].kill()
    await gateway.replaced(before)
    assert {await gateway.status(BODY | {"model": "new"}) for _ in range(16)} == {200}
    await gateway.until(lambda: any(line["worker"] == 1 for line in gateway.events("config_not_reloaded")))
