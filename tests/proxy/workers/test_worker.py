"""aiaas.proxy.workers.worker: one worker in this process, controlled over a real channel."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from aiaas.errors import EnvironmentFault
from aiaas.keys.records import render_records
from aiaas.plan.read import read
from aiaas.proxy.client.ports import bind
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.workers.channel import (
    Alive,
    Begin,
    Channel,
    Counted,
    EngineHealth,
    EngineSuspected,
    Leaving,
    Reload,
    Report,
    Serving,
    Stop,
)
from aiaas.proxy.workers.worker import work
from tests.fakes.vllm import STREAM_HEAD, FakeVllm, Hang, Send, chunk, token_event
from tests.proxy.conftest import Raw, new_key

ALICE = new_key("alice")
BODY = {"model": "m", "messages": []}


@dataclass
class Worker:
    """The worker, and its supervisor's end of the channel, which this test holds."""

    folder: Path
    channel: Channel
    listener: socket.socket
    task: asyncio.Task[None]
    log: JsonLog
    lines: list[bytes]

    @property
    def files(self) -> tuple[str, ...]:
        return (str(self.folder / "aiaas.yaml"),)

    async def hear(self, kind: type[Any]) -> Any:
        """The next message of this kind."""
        async with asyncio.timeout(10):
            while not isinstance(message := await self.channel.receive(), kind):
                assert message is not None, "the channel has ended"
        return message

    async def begin(self, keys: str | None = None) -> Serving:
        self.channel.send(Begin(self.files, text := ((self.folder / "aiaas.yaml").read_text(),), text, keys))
        serving = await self.hear(Serving)
        assert isinstance(serving, Serving)
        return serving

    async def status(self) -> int:
        """The status of a request on a connection of its own."""
        client = await Raw.connect(self.listener.getsockname()[1], ALICE.text)
        try:
            return (await client.post(BODY)).status
        finally:
            client.reset()

    async def event(self, name: str) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while True:
                self.log.flush()
                for line in b"".join(self.lines).splitlines():
                    if json.loads(line)["event"] == name:
                        return dict(json.loads(line))
                await asyncio.sleep(0.01)


@pytest.fixture
async def worker(tmp_path: Path, fake_vllm: FakeVllm) -> AsyncIterator[Worker]:
    """A worker that has not been told to begin; at the end its supervisor is gone, and the worker must end too."""
    config = {
        "server": {"host": "127.0.0.1", "drain_timeout": "2s", "heartbeat": "0s"},
        "backends": {
            "vllm": {"url": fake_vllm.url, "models": ["m"]},
            "own": {"engine": {"kind": "simulator", "port": fake_vllm.port}, "models": ["e"]},
        },
    }
    (tmp_path / "aiaas.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "keys.yaml").write_text(render_records([ALICE.record]))
    ours, its = socket.socketpair()
    ours.setblocking(False)
    its.setblocking(False)
    lines: list[bytes] = []
    log = JsonLog(lines.append, time.time, "info", 3)
    listener = bind("127.0.0.1", 0, "x")
    task = asyncio.create_task(work(its, listener, log, {}))
    made = Worker(tmp_path, await Channel.open(ours), listener, task, log, lines)
    yield made
    await made.channel.close()
    async with asyncio.timeout(10):
        await asyncio.gather(task, return_exceptions=True)
    listener.close()
    log.flush()
    assert b"internal_error" not in b"".join(lines)


async def test_it_serves_on_the_socket_that_it_is_given(worker: Worker) -> None:
    """With the keys of the file; its events say which worker it is."""
    assert (await worker.begin()).keys == 1
    assert await worker.status() == 200
    assert (await worker.event("keys_loaded"))["worker"] == 3


async def test_without_its_supervisor_it_drains(worker: Worker) -> None:
    """A supervisor that was killed leaves no orphans."""
    await worker.begin()
    await worker.channel.close()
    async with asyncio.timeout(10):
        await worker.task
    assert (await worker.event("stopped"))["cut_off"] == 0


async def test_a_supervisor_that_is_gone_before_it_begins_is_the_end(worker: Worker) -> None:
    """The worker has served nothing."""
    await worker.channel.close()
    async with asyncio.timeout(10):
        await worker.task
    assert not worker.lines


async def test_told_to_stop_it_drains_and_says_what_it_counted_last(worker: Worker) -> None:
    """An orderly end loses no counts."""
    await worker.begin()
    await worker.status()
    worker.channel.send(Stop(now=False))
    counted = await worker.hear(Counted)
    (requests,) = [f for f in counted.families if f.name == "inference_requests"]
    assert sum(sample.value for sample in requests.samples) == 1
    async with asyncio.timeout(10):
        await worker.task


async def test_told_to_stop_now_it_waits_for_no_stream(worker: Worker, fake_vllm: FakeVllm) -> None:
    """As after a second signal."""
    await worker.begin()
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Hang())
    client = await Raw.connect(worker.listener.getsockname()[1], ALICE.text)
    client.send(client.request(BODY | {"stream": True}))
    await client.head()
    worker.channel.send(Stop(now=False))
    await asyncio.sleep(0.1)
    assert not worker.task.done()
    began = time.monotonic()
    worker.channel.send(Stop(now=True))
    async with asyncio.timeout(10):
        await worker.task
    assert time.monotonic() - began < 1.5  # drain_timeout is 2 s
    client.reset()


async def test_a_signal_to_it_alone_is_told_and_obeyed_once(worker: Worker) -> None:
    """The supervisor must know that nobody accepts there; a second SIGTERM to the group must not cut streams."""
    await worker.begin()
    os.kill(os.getpid(), signal.SIGTERM)
    await worker.hear(Leaving)
    async with asyncio.timeout(10):
        await worker.task


async def test_asked_it_says_what_it_has_counted(worker: Worker) -> None:
    """At once; beside that the worker reports every second by itself."""
    await worker.begin()
    await worker.status()
    worker.channel.send(Report())
    while not (counted := await worker.hear(Counted)).asked:
        pass
    [requests] = [family for family in counted.families if family.name == "inference_requests"]
    assert sum(sample.value for sample in requests.samples) == 1
    assert not (await worker.hear(Counted)).asked


async def test_it_says_again_and_again_that_it_is_there(worker: Worker) -> None:
    """From its start to its end, also while it drains, so that its supervisor can tell slow from stopped."""
    worker.channel.send(Begin(worker.files, text := ((worker.folder / "aiaas.yaml").read_text(),), text, None))
    assert isinstance(await worker.channel.receive(), Alive)
    await worker.hear(Serving)
    await worker.hear(Alive)
    client = await Raw.connect(worker.listener.getsockname()[1], ALICE.text)
    client.send(b"POST /v1/chat/completions HTTP/1.1\r\n")
    worker.channel.send(Stop(now=False))
    await worker.event("draining")
    await worker.hear(Alive)
    client.reset()


async def test_supervised_engine_is_up_when_the_supervisor_says_so(worker: Worker) -> None:
    """Also where that message came before the worker was ready."""
    worker.channel.send(Begin(worker.files, text := ((worker.folder / "aiaas.yaml").read_text(),), text, None))
    worker.channel.send(EngineHealth("own", True, "it is healthy", None))
    await worker.hear(Serving)
    body = BODY | {"model": "e"}
    client = await Raw.connect(worker.listener.getsockname()[1], ALICE.text)
    assert (await client.post(body)).status == 200
    worker.channel.send(EngineHealth("own", False, "it died", None))
    assert (await worker.event("endpoint_down"))["reason"] == "it died"
    assert (await client.post(body)).status == 503
    client.reset()


async def test_a_request_that_times_out_in_an_engine_is_told(worker: Worker, fake_vllm: FakeVllm) -> None:
    """The supervisor runs the engine, so the supervisor looks."""
    config = yaml.safe_load((worker.folder / "aiaas.yaml").read_text())
    config["backends"]["own"] |= {"timeout": "200ms", "max_retries": 0}
    (worker.folder / "aiaas.yaml").write_text(yaml.safe_dump(config))
    await worker.begin()
    worker.channel.send(EngineHealth("own", True, "it is healthy", None))
    await worker.event("endpoint_up")
    fake_vllm.play(Hang())
    client = await Raw.connect(worker.listener.getsockname()[1], ALICE.text)
    assert (await client.post(BODY | {"model": "e"})).status == 504
    assert (await worker.hear(EngineSuspected)).backend == "own"
    client.reset()


@pytest.mark.parametrize("is_up", [False, True])
async def test_changed_engine_settings_need_a_restart_while_it_is_up(worker: Worker, is_up: bool) -> None:
    """The supervisor decides, since it reads the same file."""
    await worker.begin()
    if is_up:
        worker.channel.send(EngineHealth("own", True, "it is healthy", None))
        await worker.event("endpoint_up")
    config = yaml.safe_load((worker.folder / "aiaas.yaml").read_text())
    config["backends"]["own"]["engine"]["args"] = {"max-model-len": 1024}
    (worker.folder / "aiaas.yaml").write_text(yaml.safe_dump(config))
    await worker.event("config_reloaded")
    if is_up:
        assert (await worker.event("restart_needed"))["fields"] == ["backends.own.engine"]
    await asyncio.sleep(0.05)
    assert (b"restart_needed" in b"".join(worker.lines)) is is_up


async def test_no_restart_is_needed_where_the_engine_runs_the_change(worker: Worker) -> None:
    """The supervisor may read the file first, and its engine be healthy before this process reads the file."""
    await worker.begin()
    config = yaml.safe_load((worker.folder / "aiaas.yaml").read_text())
    config["backends"]["own"]["engine"]["args"] = {"max-model-len": 1024}
    text = yaml.safe_dump(config)
    plan = read(worker.folder / "aiaas.yaml", {}, (text,)).plan
    assert plan is not None
    (engine,) = (backend.engine for backend in plan.backends if backend.name == "own")
    worker.channel.send(EngineHealth("own", True, "it is healthy", engine))
    await worker.event("endpoint_up")
    (worker.folder / "aiaas.yaml").write_text(text)
    await worker.event("config_reloaded")
    await asyncio.sleep(0.05)
    assert b"restart_needed" not in b"".join(worker.lines)


async def test_told_to_reload_it_reads_both_files(worker: Worker) -> None:
    """The supervisor passes SIGHUP on."""
    await worker.begin()
    worker.channel.send(Reload())
    assert await worker.event("config_unchanged")


async def test_start_uses_the_last_good_files_if_they_are_broken_now(worker: Worker) -> None:
    """A replacement serves what the others still serve, and says what is wrong with the files."""
    text, keys = [(worker.folder / name).read_text() for name in ("aiaas.yaml", "keys.yaml")]
    (worker.folder / "aiaas.yaml").write_text("backends: [")
    (worker.folder / "keys.yaml").write_text("[")
    worker.channel.send(Begin(worker.files, (text,), (text,), keys))
    assert (await worker.hear(Serving)).keys == 1
    assert await worker.status() == 200
    assert (await worker.event("keys_not_reloaded"))["kept"] == 1
    assert await worker.event("config_not_reloaded")


async def test_replacement_begins_with_the_last_good_overlay(worker: Worker) -> None:
    """It serves with the limit of that overlay, and says what is wrong with the present one."""
    text, overlay = (worker.folder / "aiaas.yaml").read_text(), worker.folder / "prod.yaml"
    overlay.write_text("server: {max_body_size: lots}\n")
    config = (text, "server: {max_body_size: 2KiB}\n")
    keys = (worker.folder / "keys.yaml").read_text()
    worker.channel.send(Begin((*worker.files, str(overlay)), config, config, keys))
    await worker.hear(Serving)
    client = await Raw.connect(worker.listener.getsockname()[1], ALICE.text)
    assert (await client.post(BODY | {"x": "x" * 2048})).status == 413
    client.reset()
    problems = (await worker.event("config_not_reloaded"))["problems"]
    assert any(problem.startswith(f"{overlay}:1:") for problem in problems)


async def test_a_replacement_has_of_a_held_config_what_the_others_have(worker: Worker) -> None:
    """The engine runs at its old port, and a new timeout holds, as in the other workers."""
    before = (worker.folder / "aiaas.yaml").read_text()
    config = yaml.safe_load(before)
    config["backends"]["own"]["engine"] = {"kind": "simulator", "port": 1}
    config["server"]["max_body_size"] = "2KiB"
    text = yaml.safe_dump(config)
    (worker.folder / "aiaas.yaml").write_text(text)
    worker.channel.send(Begin(worker.files, (text,), (before,), None))
    worker.channel.send(EngineHealth("own", True, "it is healthy", None))
    await worker.hear(Serving)
    client = await Raw.connect(worker.listener.getsockname()[1], ALICE.text)
    assert (await client.post(BODY | {"model": "e"})).status == 200
    assert (await client.post(BODY | {"model": "e", "x": "x" * 2048})).status == 413
    client.reset()


async def test_without_good_keys_a_worker_begins_all_the_same(worker: Worker) -> None:
    """The others have no keys either; the supervisor refuses such a file at the start."""
    (worker.folder / "keys.yaml").write_text("[")
    worker.channel.send(Begin(worker.files, text := ((worker.folder / "aiaas.yaml").read_text(),), text, None))
    assert (await worker.hear(Serving)).keys == 0
    assert await worker.status() == 401
    assert (await worker.event("keys_not_reloaded"))["kept"] == 0


async def test_a_config_that_cannot_be_used_is_an_error(worker: Worker) -> None:
    """The config was valid where it came from."""
    worker.channel.send(Begin(worker.files, ("backends: [",), ("backends: [",), None))
    with pytest.raises(EnvironmentFault, match="no longer valid"):
        await worker.task
