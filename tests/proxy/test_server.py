"""aiaas.proxy.server: a server's whole life in this process, with real files, ports and clients."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import trustme
import yaml

from aiaas.errors import EnvironmentFault
from aiaas.keys.records import render_records
from aiaas.plan.model import BackendPlan, EnginePlan
from aiaas.plan.read import read_plan
from aiaas.proxy.client.ports import bind
from aiaas.proxy.server import Ready, run_server
from aiaas.proxy.telemetry.log import JsonLog
from tests.fakes.vllm import DONE, LAST_CHUNK, STREAM_HEAD, FakeVllm, Hang, Send, Wait, chunk, token_event
from tests.ports import free_port
from tests.proxy.conftest import Raw, new_key

BODY = {"model": "m", "messages": []}
STREAM = BODY | {"stream": True}
ALICE, BOB = new_key("alice"), new_key("bob")
QUIET = {"prometheus": False, "admin_port": 0}


@dataclass
class Life:
    """A running server: its folder, its log, and how to end it."""

    folder: Path
    config: dict[str, Any]
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    lines: list[bytes] = field(default_factory=list)
    ready: list[Ready] = field(default_factory=list)
    clients: list[Raw] = field(default_factory=list)
    engines: list[Engine] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return int(self.config["server"]["port"])

    def write_config(self, **sections: Any) -> None:
        """Write the config, with sections changed."""
        self.config.update(sections)
        (self.folder / "aiaas.yaml").write_text(yaml.safe_dump(self.config))

    def write_keys(self, *keys: Any) -> None:
        """Write the key file in place."""
        (self.folder / "keys.yaml").write_text(render_records([key.record for key in keys]))

    async def client(self, key: str = ALICE.text) -> Raw:
        client = await Raw.connect(self.port, key)
        self.clients.append(client)
        return client

    async def status(self, body: Any = BODY, key: str = ALICE.text) -> int:
        """The status of a request on a connection of its own."""
        client = await self.client(key)
        return (await client.post(body)).status

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for block in self.lines for line in block.splitlines() if line]
        return [line for line in lines if line["event"] == name]

    async def event(self, name: str, count: int = 1, timeout: float = 15.0) -> dict[str, Any]:
        """Wait for an event in the log."""
        async with asyncio.timeout(timeout):
            while len(self.events(name)) < count:
                await asyncio.sleep(0.01)
        return self.events(name)[count - 1]


class Engine:
    """A fake engine: it remembers the calls to it."""

    def __init__(self, backend: BackendPlan, healthy: Callable[[bool, str], None]) -> None:
        self.is_up = False
        self._healthy = healthy
        self.grace: float | None = None
        self.started = False
        self.engine = backend.engine
        self.suspicions = 0
        self.starts = 1
        self.deaths = 0

    def healthy(self, up: bool, reason: str) -> None:
        self.is_up = up
        self._healthy(up, reason)

    async def start(self) -> None:
        self.started = True

    async def stop(self, grace: float) -> None:
        self.grace = grace

    def hurry(self) -> None:
        self.hurried = True

    def offer(self, engine: EnginePlan) -> bool:
        if not self.is_up:
            self.engine = engine
        return self.engine == engine

    def suspect(self) -> None:
        self.suspicions += 1


@pytest.fixture
def living(tmp_path: Path, fake_vllm: FakeVllm) -> Any:
    """Start a server in front of the fake; at the end it must have stopped by itself, within seconds."""

    @asynccontextmanager
    async def live(
        *,
        keys: tuple[Any, ...] | None = (ALICE,),
        env: Mapping[str, str] = MappingProxyType({}),
        **sections: Mapping[str, Any],
    ) -> AsyncIterator[Life]:
        server = {"host": "127.0.0.1", "port": free_port(), "drain_timeout": "5s", "heartbeat": "0s"}
        backend = {"url": fake_vllm.url, "models": ["m"], "health": {"interval": "100ms"}}
        life = Life(tmp_path, {"server": server, "backends": {"vllm": backend}, "monitoring": QUIET})
        life.write_config(**{name: {**life.config.get(name, {}), **section} for name, section in sections.items()})
        if keys is not None:
            life.write_keys(*keys)
        plan, problems = read_plan(tmp_path / "aiaas.yaml", {})
        assert plan is not None, problems
        log = JsonLog(life.lines.append, time.time, "info")

        def make_engine(backend: BackendPlan, healthy: Callable[[bool, str], None]) -> Engine:
            life.engines.append(Engine(backend, healthy))
            return life.engines[-1]

        life.task = asyncio.create_task(
            run_server(plan, log, env=env, make_engine=make_engine, on_ready=life.ready.append, stop=life.stop)
        )
        async with asyncio.timeout(15):
            while not life.ready and not life.task.done():
                await asyncio.sleep(0.005)
        try:
            if life.ready:
                yield life
            else:
                await life.task
        finally:
            life.stop.set()
            for client in life.clients:
                client.reset()
            async with asyncio.timeout(15):
                await asyncio.gather(life.task, return_exceptions=True)
            log.flush()
            assert not life.events("internal_error"), life.events("internal_error")

    return live


# -- beginning -----------------------------------------------------------------------------------------------------


async def test_the_metrics_port_is_asked_for_before_anything_starts(
    living: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is taken, the other port is released."""
    monkeypatch.setattr("aiaas.proxy.client.ports.PORT_PATIENCE", 0.0)
    with bind("127.0.0.1", 0, "x") as taken:
        port = free_port()
        with pytest.raises(EnvironmentFault, match=r"monitoring\.metrics_port"):
            async with living(
                server={"port": port}, monitoring={"prometheus": True, "metrics_port": taken.getsockname()[1]}
            ):
                pytest.fail("it started")
    bind("127.0.0.1", port, "x").close()


async def test_ipv6_and_ipv4_share_the_wildcard(fake_vllm: FakeVllm, living: Any) -> None:
    """`::` is IPv4 as well, and the client's address is logged as what it is."""
    async with living(server={"host": "::"}) as life:
        assert await life.status() == 200
        assert (await life.event("inference_request"))["client_address"] == "127.0.0.1"
        assert life.ready[0].url == f"http://[::1]:{life.port}"


async def test_missing_backend_does_not_prevent_the_start(living: Any, fake_vllm: FakeVllm) -> None:
    """Its requests get 503 in JSON; they succeed as soon as the backend is there."""
    await fake_vllm.down()
    async with living() as life:
        client = await life.client()
        got = await client.post(BODY)
        assert (got.status, got.json["error"]["code"]) == (503, "no_healthy_backend")
        await life.event("endpoint_down")
        await fake_vllm.up()
        await life.event("endpoint_up")
        assert await life.status() == 200


async def test_models_that_the_backend_does_not_serve_are_warned_of(living: Any, fake_vllm: FakeVllm) -> None:
    """Two names meant as two models would silently be aliases."""
    async with living() as life:
        line = await life.event("models_disagree")
        assert (line["configured_but_not_served"], line["served"]) == (["m"], [])


async def test_managed_engine_serves_once_it_is_healthy(living: Any, fake_vllm: FakeVllm) -> None:
    """The engine starts before the port opens, and stops after the last request."""
    backends = {"vllm": {"engine": {"kind": "simulator", "port": fake_vllm.port}, "models": ["m"]}}
    async with living() as life:
        pass
    async with living(backends={"vllm": None} | backends) as life:
        (engine,) = life.engines
        assert engine.started
        assert await life.status() == 503
        engine.healthy(True, "test")
        assert await life.status() == 200
    assert engine.grace == 15.0


async def test_timeout_in_a_managed_engine_is_reported(living: Any, fake_vllm: FakeVllm) -> None:
    """The engine may be frozen; one late answer does not take it out, since a slow prefill is legal."""
    own = {"engine": {"kind": "simulator", "port": fake_vllm.port}, "models": ["m"], "timeout": "200ms"}
    async with living(backends={"vllm": own | {"max_retries": 0}}) as life:
        life.engines[0].healthy(True, "it is healthy")
        fake_vllm.play(Hang())
        assert await life.status() == 504
        assert life.engines[0].suspicions == 1
        assert await life.status() == 200
        life.write_config(backends={"vllm": own})  # another Plan, the same engine
        await life.event("config_reloaded")
        fake_vllm.play(Hang())
        fake_vllm.play(Hang())
        fake_vllm.play(Hang())
        assert await life.status() == 504
        assert life.engines[0].suspicions >= 2


async def test_engine_takes_fixed_settings_unless_healthy(living: Any, fake_vllm: FakeVllm) -> None:
    """A healthy engine goes on, and the log says which change needs a restart."""
    engine = {"kind": "simulator", "port": fake_vllm.port, "args": {"no-such-option": 1}}
    own = {"engine": engine, "models": ["m"]}
    async with living(backends={"vllm": own}) as life:
        engine["args"] = {"max-model-len": 1024}
        life.write_config(backends={"vllm": own})
        await life.event("config_reloaded")
        assert life.engines[0].engine.args == ("--max-model-len", "1024")
        assert not life.events("restart_needed")
        life.engines[0].healthy(True, "it is healthy")
        assert await life.status() == 200
        engine["args"] = {"max-model-len": 2048}
        life.write_config(backends={"vllm": own})
        assert (await life.event("restart_needed"))["fields"] == ["backends.vllm.engine"]
        assert life.engines[0].engine.args == ("--max-model-len", "1024")
        assert await life.status() == 200


async def test_metrics_answer_on_a_port_of_their_own(living: Any) -> None:
    """Without a key, and not on the port for clients."""
    async with living(monitoring={"prometheus": True, "metrics_port": (port := free_port())}) as life:
        await life.status()
        client = await Raw.connect(port, "")
        life.clients.append(client)
        got = await client.get("/metrics")
        assert got.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
        assert b"inference_requests_total{" in got.body
        assert life.ready[0].metrics_url == f"http://127.0.0.1:{port}/metrics"
        assert (await (await life.client()).get("/metrics")).status == 404


async def test_admin_port_tells_the_state_of_the_gateway(living: Any, fake_vllm: FakeVllm) -> None:
    """The keys, the backends, and the request that was answered."""
    async with living(monitoring={"admin_port": (port := free_port())}) as life:
        assert await life.status() == 200
        client = await Raw.connect(port, "")
        life.clients.append(client)
        status = (await client.get("/status", headers={"Host": "localhost"})).json
        assert (status["keys"]["loaded"], status["totals"]["requests"], status["draining"]) == (1, 1, False)
        assert [endpoint["url"] for endpoint in status["backends"][0]["endpoints"]] == [fake_vllm.url]
        assert {reload["what"]: reload["ok"] for reload in status["reloads"]} == {"config": True, "keys": True}


async def test_refused_config_and_keys_are_in_the_status(living: Any, tmp_path: Path) -> None:
    """With the reason, and the last reading that was good; the good file then clears both."""
    async with living(monitoring={"admin_port": (port := free_port())}) as life:

        async def reloads() -> dict[str, Any]:
            client = await Raw.connect(port, "")
            life.clients.append(client)
            status = (await client.get("/status", headers={"Host": "127.0.0.1"})).json
            return {reload["what"]: reload for reload in status["reloads"]}

        (tmp_path / "keys.yaml").write_text("version: 1\nkeys: [\n")
        await life.event("keys_not_reloaded")
        (tmp_path / "aiaas.yaml").write_text("backends: [\n")
        await life.event("config_not_reloaded")
        for what in ("config", "keys"):
            found = (await reloads())[what]
            assert not found["ok"]
            assert f"{what.replace('config', 'aiaas')}.yaml:" in found["error"]
            assert found["last_success"] < found["at"]
        life.write_config()
        life.write_keys(ALICE)
        await life.event("keys_loaded", count=2)
        await life.event("config_unchanged")
        assert all(each["ok"] and each["error"] is None for each in (await reloads()).values())


async def test_taken_admin_port_is_a_warning_and_tried_again(living: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway serves meanwhile, and the port is served as soon as it is free."""
    monkeypatch.setattr("aiaas.proxy.admin.port.PORT_PATIENCE", 0.0)
    with bind("127.0.0.1", 0, "x") as taken:
        port = taken.getsockname()[1]
        async with living(monitoring={"admin_port": port}) as life:
            line = await life.event("admin_port_taken")
            assert line["level"] == "warning"
            assert f"127.0.0.1:{port} (monitoring.admin_port)" in line["error"]
            assert await life.status() == 200
            taken.close()
            await life.event("admin_port_open")
            client = await Raw.connect(port, "")
            life.clients.append(client)
            assert (await client.get("/status", headers={"Host": "localhost"})).status == 200
            assert len(life.events("admin_port_taken")) == 1


async def test_library_log_records_become_our_lines(living: Any) -> None:
    """Python would print it on stderr."""
    async with living() as life:
        logging.getLogger("asyncio").warning("something %s", "odd")
        line = await life.event("library")
        assert (line["level"], line["logger"], line["message"]) == ("warning", "asyncio", "something odd")
    assert not any(type(handler).__name__ == "LibraryLog" for handler in logging.getLogger().handlers)


# -- keys ----------------------------------------------------------------------------------------------------------


async def test_a_missing_key_file_is_a_warning_until_it_appears(living: Any) -> None:
    """`run_server` starts and refuses; soon after the file's appearance the keys hold."""
    async with living(keys=None) as life:
        assert (await life.event("keys_missing"))["level"] == "warning"
        assert await life.status() == 401
        life.write_keys(ALICE)
        await life.event("keys_loaded")
        assert await life.status() == 200


@pytest.mark.parametrize("damage", ["half", "gone link", "folder"])
async def test_a_key_file_that_cannot_be_used_at_the_start_is_refused(living: Any, tmp_path: Path, damage: str) -> None:
    """With its place, before anything starts: every valid key would get a 401."""
    file = tmp_path / "keys.yaml"
    message = {"half": r"keys\.yaml:\d+:1: it was cut short", "gone link": "a link to a file", "folder": "Is a dir"}
    if damage == "half":
        file.write_text(render_records([ALICE.record])[:-5])
    elif damage == "gone link":
        file.symlink_to("nowhere")
    else:
        file.mkdir()
    with pytest.raises(EnvironmentFault, match=rf"^auth\.keys_file: .*{message[damage]}"):
        async with living(keys=None):
            pytest.fail("it started")


async def test_without_authentication_the_key_file_does_not_matter(living: Any, tmp_path: Path) -> None:
    """Nobody reads the file."""
    (tmp_path / "keys.yaml").mkdir()
    async with living(keys=None, auth={"enabled": False}) as life:
        assert await life.status(key="none") == 200


async def test_a_revoked_key_is_refused_soon(living: Any) -> None:
    """Also where it was verified before and its digest is known. (How soon: test_watch.py.)"""
    async with living(keys=(ALICE, BOB)) as life:
        assert [await life.status(key=key.text) for key in (ALICE, BOB)] == [200, 200]
        life.write_keys(BOB)
        await life.event("keys_loaded", count=2)
        assert [await life.status(key=key.text) for key in (ALICE, BOB)] == [401, 200]


@pytest.mark.parametrize("damage", ["half", "gone", "unreadable", "empty folder"])
async def test_a_broken_key_file_keeps_the_last_good_one(living: Any, damage: str) -> None:
    """The log says so, and valid keys never get 401 for it; the fixed file counts again."""
    async with living() as life:
        file = life.folder / "keys.yaml"
        text = file.read_text()
        file.unlink()
        if damage == "half":
            file.write_text(text[: len(text) // 2])
        elif damage == "unreadable":
            file.write_bytes(b"\xff\xfe\x00")
        elif damage == "empty folder":
            file.mkdir()
        line = await life.event("keys_not_reloaded")
        assert line["kept"] == 1
        assert str(file) in line["error"]
        assert await life.status() == 200
        if damage == "empty folder":
            file.rmdir()
        life.write_keys(BOB)
        await life.event("keys_loaded", count=2)
        assert [await life.status(key=key.text) for key in (ALICE, BOB)] == [401, 200]


async def test_the_symlink_swap_of_a_mounted_secret_is_seen(living: Any) -> None:
    """As the kubelet does it: `..data` points to another folder, the file's own link stays."""
    async with living(keys=None) as life:
        for name, key in (("..1", ALICE), ("..2", BOB)):
            (life.folder / name).mkdir()
            (life.folder / name / "keys.yaml").write_text(render_records([key.record]))
        (life.folder / "..data").symlink_to("..1")
        (life.folder / "keys.yaml").symlink_to("..data/keys.yaml")
        await life.event("keys_loaded")
        assert [await life.status(key=key.text) for key in (ALICE, BOB)] == [200, 401]
        (life.folder / "..tmp").symlink_to("..2")
        (life.folder / "..tmp").rename(life.folder / "..data")
        await life.event("keys_loaded", count=2)
        assert [await life.status(key=key.text) for key in (ALICE, BOB)] == [401, 200]


# -- config --------------------------------------------------------------------------------------------------------


async def test_a_changed_config_is_put_in_force_while_a_stream_runs(living: Any, fake_vllm: FakeVllm) -> None:
    """The stream ends under the old one; new requests meet the new one."""
    go_on = asyncio.Event()
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Wait(go_on), Send(chunk(DONE) + LAST_CHUNK))
    async with living() as life:
        client = await life.client()
        client.send(client.request(STREAM))
        await client.head()
        life.write_config(backends={"vllm": {"url": fake_vllm.url, "models": ["new"]}})
        await life.event("config_reloaded")
        assert [await life.status(BODY | {"model": name}) for name in ("m", "new")] == [404, 200]
        go_on.set()
        assert [await client.chunk() for _ in range(3)] == [token_event(), DONE, b""]
        assert not life.events("restart_needed")


async def test_a_broken_config_changes_nothing_and_says_so(living: Any) -> None:
    """Each problem with its line; the same for a missing file; the fixed file counts."""
    async with living() as life:
        good = (life.folder / "aiaas.yaml").read_text()
        (life.folder / "aiaas.yaml").write_text(good + "\nnonsense: 1\n")
        line = await life.event("config_not_reloaded")
        assert "aiaas.yaml" in line["problems"][0]
        assert "nonsense" in line["problems"][0]
        (life.folder / "aiaas.yaml").unlink()
        assert "error" in await life.event("config_not_reloaded", count=2)
        assert await life.status() == 200
        life.write_config(rate_limit={"requests_per_minute": 77})
        await life.event("config_reloaded")
        got = await (await life.client()).post(BODY)
        assert got.header("x-ratelimit-limit-requests") == "77"


async def test_field_that_needs_a_restart_is_named(living: Any) -> None:
    """And no longer once the field is as at the start."""
    async with living() as life:
        port = life.port
        life.write_config(server={**life.config["server"], "port": free_port(), "header_timeout": "3s"})
        line = await life.event("restart_needed")
        assert line["fields"] == ["server.port", "server.header_timeout"]
        life.write_config(server={**life.config["server"], "port": port, "header_timeout": "10s"})
        await life.event("config_reloaded", count=2)
        assert len(life.events("restart_needed")) == 1


async def test_an_engine_answers_while_another_waits_for_a_restart(living: Any, fake_vllm: FakeVllm) -> None:
    """Its health is that of the process that runs, also where the config says otherwise, and after that is undone."""
    engine = {"engine": {"kind": "simulator", "port": fake_vllm.port}, "models": ["m"]}
    async with living(backends={"vllm": engine}) as life:
        life.engines[0].healthy(True, "test")
        assert await life.status() == 200
        new = {"engine": {"kind": "simulator"}, "models": ["new"]}
        life.write_config(backends={"new": new, "vllm": engine})
        assert (await life.event("restart_needed"))["fields"] == ["backends.new.engine"]
        assert [await life.status(BODY | {"model": name}) for name in ("m", "new")] == [200, 404]
        life.engines[0].healthy(False, "test")
        assert await life.status() == 503
        life.engines[0].healthy(True, "test")
        life.write_config(backends={"vllm": engine})
        await life.event("config_reloaded", count=2)
        assert await life.status() == 200
    assert len(life.engines) == 1


async def test_authentication_that_is_turned_on_reads_the_keys_first(living: Any) -> None:
    """So that no valid key is refused in between; likewise another key file."""
    async with living(auth={"enabled": False}) as life:
        assert await life.status(key="none") == 200
        life.write_config(auth={"enabled": True})
        await life.event("config_reloaded")
        assert await life.status() == 200
        assert await life.status(key="sk-none") == 401
        (life.folder / "other.yaml").write_text(render_records([BOB.record]))
        life.write_config(auth={"keys_file": "other.yaml"})
        await life.event("config_reloaded", count=2)
        assert [await life.status(key=key.text) for key in (ALICE, BOB)] == [401, 200]
        (life.folder / "other.yaml").write_text(render_records([ALICE.record]))
        await life.event("keys_loaded", count=3)
        assert [await life.status(key=key.text) for key in (ALICE, BOB)] == [200, 401]


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
async def test_another_key_file_that_cannot_be_read_keeps_the_keys(living: Any, broken: bool) -> None:
    """A missing file like a broken one, with a log line; the file is followed, and counts once it is valid."""
    async with living() as life:
        other = life.folder / "other.yaml"
        if broken:
            other.write_text("version: 1\nkeys: [\n")
        life.write_config(auth={"keys_file": "other.yaml"})
        line = await life.event("keys_not_reloaded")
        assert line["error"].startswith(f"{other}:3:1: not YAML" if broken else f"{other}: file not found")
        assert (line["level"], line["kept"]) == ("error", 1)
        await life.event("config_reloaded")
        assert await life.status() == 200
        other.write_text(render_records([BOB.record]))
        await life.event("keys_loaded", count=2)
        assert [await life.status(key=key.text) for key in (ALICE, BOB)] == [401, 200]


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
async def test_authentication_is_not_turned_on_without_keys(living: Any, broken: bool) -> None:
    """Without last good keys every request would be refused: the Plan stays, and the log says what to do."""
    async with living(keys=None, auth={"enabled": False}) as life:
        file = life.folder / "keys.yaml"
        if broken:
            file.write_text("version: 1\nkeys: [\n")
        life.write_config(auth={"enabled": True})
        line = await life.event("config_not_reloaded")
        assert line["error"].startswith(f"auth.keys_file: {file}:")
        assert "SIGHUP" in line["error"]
        assert await life.status(key="none") == 200
        life.write_keys(ALICE)
        os.kill(os.getpid(), signal.SIGHUP)
        await life.event("config_reloaded")
        assert [await life.status(key=key) for key in (ALICE.text, "none")] == [200, 401]


async def test_sighup_reads_both_files_at_once(living: Any) -> None:
    """Also where nothing has changed."""
    async with living() as life:
        os.kill(os.getpid(), signal.SIGHUP)
        await life.event("config_unchanged")
        await life.event("keys_loaded", count=2)


# -- ending --------------------------------------------------------------------------------------------------------


async def test_sigterm_finishes_what_is_open(living: Any, fake_vllm: FakeVllm) -> None:
    """New connections are refused, /ready says no on open ones, the stream goes on to its end, then it stops."""
    go_on = asyncio.Event()
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Wait(go_on), Send(chunk(DONE) + LAST_CHUNK))
    async with living() as life:
        client, idle, other, probe = [await life.client() for _ in range(4)]
        for one in (idle, other, probe):
            assert (await one.get("/ready")).status == 200
        client.send(client.request(STREAM))
        await client.head()
        os.kill(os.getpid(), signal.SIGTERM)
        while (await probe.get("/ready")).status == 200:
            await asyncio.sleep(0.001)
        served = await other.post(BODY)
        assert (served.status, served.header("connection")) == (200, "close")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", life.port)
        await asyncio.sleep(1.1)
        refused = await idle.post(BODY)
        assert (refused.status, refused.json["error"]["code"]) == (503, "draining")
        go_on.set()
        assert [await client.chunk() for _ in range(3)] == [token_event(), DONE, b""]
        async with asyncio.timeout(10):
            await life.task
    assert life.events("stopped")[0]["cut_off"] == 0


async def test_a_reload_while_it_drains_changes_no_stream(living: Any, fake_vllm: FakeVllm) -> None:
    """An operator who restarts has often just edited the config: it is read, and the stream ends whole."""
    go_on = asyncio.Event()
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Wait(go_on), Send(chunk(DONE) + LAST_CHUNK))
    async with living(server={"drain_timeout": "60s"}) as life:
        client = await life.client()
        client.send(client.request(STREAM))
        await client.head()
        life.stop.set()
        await life.event("draining")
        life.write_config(backends={"other": {"url": fake_vllm.url, "models": ["n"]}})
        await life.event("config_reloaded")
        with bind("127.0.0.1", life.port, "x"):  # the successor's by now
            go_on.set()
            assert [await client.chunk() for _ in range(3)] == [token_event(), DONE, b""]
            async with asyncio.timeout(10):
                await life.task
    assert life.events("stopped")[0]["cut_off"] == 0


async def test_stream_at_the_drain_deadline_ends_with_an_error_event(living: Any, fake_vllm: FakeVllm) -> None:
    """The backend's work ends with it."""
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Hang())
    async with living(server={"drain_timeout": "300ms"}) as life:
        client = await life.client()
        client.send(client.request(STREAM))
        await client.head()
        await client.chunk()
        life.stop.set()
        event = await client.chunk()
        assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "draining"
        assert await client.chunk() == b""
        assert await client.ended() == b""
        await asyncio.wait_for(fake_vllm.posts[0].gone.wait(), 4)
        async with asyncio.timeout(10):
            await life.task
    assert life.events("stopped")[0]["cut_off"] == 1


async def test_a_second_signal_leaves_at_once(living: Any, fake_vllm: FakeVllm) -> None:
    """Whatever drain_timeout says."""
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Hang())
    async with living(server={"drain_timeout": "300s"}) as life:
        client = await life.client()
        client.send(client.request(STREAM))
        await client.head()
        os.kill(os.getpid(), signal.SIGTERM)
        await life.event("draining")
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            await life.task


@pytest.mark.parametrize(("env", "freed"), [({}, True), ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, False)])
async def test_a_draining_server_has_given_up_its_ports(
    living: Any, fake_vllm: FakeVllm, env: dict[str, str], freed: bool
) -> None:
    """For its successor on this machine; a pod goes on to serve metrics, since nobody else wants its port."""
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Hang())
    port, admin = free_port(), free_port()
    monitoring = {"prometheus": True, "metrics_port": port, "admin_port": admin}
    async with living(env=env, monitoring=monitoring, server={"drain_timeout": "300s"}) as life:
        client = await life.client()
        client.send(client.request(STREAM))
        await client.head()
        life.stop.set()
        await life.event("draining")
        await asyncio.sleep(0.01)  # until the loop has closed them
        bind("127.0.0.1", life.port, "x").close()
        if freed:
            bind("127.0.0.1", port, "x").close()
            bind("127.0.0.1", admin, "x").close()
        else:
            person = await Raw.connect(admin, "")
            assert (await person.get("/status", headers={"Host": "localhost"})).json["draining"]
            person.reset()
            scraper = await Raw.connect(port, "")
            assert b"aiaas_requests_in_flight 1.0" in (await scraper.get("/metrics")).body
            scraper.reset()
        client.reset()
        async with asyncio.timeout(10):
            await life.task


async def test_an_idle_server_stops_at_once(living: Any) -> None:
    """Without a request, nothing delays the end."""
    async with living() as life:
        started = time.monotonic()
        life.stop.set()
        await life.task
        assert time.monotonic() - started < 4  # drain_timeout is 5 s


async def test_tls_is_served_renewed_and_moved_without_a_restart(
    living: Any, tmp_path: Path, fake_vllm: FakeVllm
) -> None:
    """The URL says https; a pair under another name is a change of the config like any other. Where TLS is taken out of
    the config, it goes on until a restart, and so do renewals."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def write_pair(name: str) -> bytes:
        made = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
        (tmp_path / f"{name}.key").write_bytes(made.private_key_pem.bytes())
        (tmp_path / f"{name}.crt").write_bytes(made.cert_chain_pems[0].bytes())
        return ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())

    async def served() -> bytes:
        client = await Raw.connect(life.port, ALICE.text, tls=context)
        life.clients.append(client)
        assert (await client.post(BODY)).status == 200
        der: bytes = client.writer.get_extra_info("ssl_object").getpeercert(True)
        return der

    first = write_pair("a")
    async with living(server={"tls": {"cert_file": "a.crt", "key_file": "a.key"}}) as life:
        assert life.ready[0].url.startswith("https://")
        assert await served() == first
        second = write_pair("b")
        tls = {"cert_file": "b.crt", "key_file": "b.key"}
        life.write_config(server=life.config["server"] | {"tls": tls})
        await life.event("tls_reloaded")
        assert await served() == second
        third = write_pair("b")
        await life.event("tls_reloaded", count=2)
        assert await served() == third
        assert not life.events("restart_needed")
        life.write_config(server={name: value for name, value in life.config["server"].items() if name != "tls"})
        assert (await life.event("restart_needed"))["fields"] == ["server.tls"]
        fourth = write_pair("b")
        await life.event("tls_reloaded", count=3)
        assert await served() == fourth


async def test_without_a_usable_certificate_nothing_starts(living: Any, tmp_path: Path) -> None:
    """Plain HTTP in its place would be worse."""
    with pytest.raises(EnvironmentFault, match=r"cannot use server\.tls: .*a\.crt does not exist"):
        async with living(server={"tls": {"cert_file": "a.crt", "key_file": "a.key"}}):
            pass
