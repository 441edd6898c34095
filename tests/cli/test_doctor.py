"""`aiaas doctor`: each fault is led to its cause, in words that say what to do."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from aiaas.cli.main import run
from aiaas.keys.model import KeyRecord
from aiaas.keys.records import render_records
from tests.certificate import self_signed
from tests.fakes.vllm import FakeVllm, Send, answer, json_answer
from tests.ports import free_port
from tests.proxy.conftest import new_key


@dataclass
class Scene:
    """A gateway's folder in which all is well, for a test to spoil."""

    folder: Path
    fake: FakeVllm
    monkeypatch: pytest.MonkeyPatch
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / "aiaas.yaml"

    @property
    def backend(self) -> dict[str, Any]:
        backend: dict[str, Any] = self.config["backends"]["vllm"]
        return backend

    def write_keys(self, *records: KeyRecord) -> None:
        (self.folder / "keys.yaml").write_text(render_records(list(records)))
        (self.folder / "keys.yaml").chmod(0o640)

    def lists(self, *models: str) -> None:
        self.says(json_answer({"data": [{"id": model, "root": model} for model in models]}))

    def says(self, data: bytes) -> None:
        self.fake.gets["/v1/models"] = (Send(data),)

    async def doctor(self, *options: str) -> int:
        """Run it in a thread: the fake answers on this loop."""
        self.path.write_text(yaml.safe_dump(self.config))
        return await asyncio.to_thread(run, ["doctor", "-c", str(self.path), *options])


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    fake = await FakeVllm.start()
    scene = Scene(tmp_path, fake, monkeypatch)
    scene.config = {
        "server": {"host": "127.0.0.1", "port": free_port(), "max_connections": 64},
        "backends": {"vllm": {"url": fake.url, "models": ["base"], "health": {"timeout": "5s"}}},
        "auth": {"keys_file": "keys.yaml"},
        "monitoring": {"metrics_port": free_port(), "admin_port": free_port(), "usage_file": "usage.db"},
    }
    scene.write_keys(new_key("alice").record)
    dated = format_datetime(datetime.now(UTC), usegmt=True).encode()
    body = b'{"data":[{"id":"base","root":"base"}]}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: %s\r\nContent-Length: %d\r\n\r\n"
    scene.says(head % (dated, len(body)) + body)
    yield scene
    await fake.stop()


async def test_a_healthy_gateway_has_only_ok_lines(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each check; exit code 0."""
    assert await scene.doctor() == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert {line[0] for line in lines} == {"ok"}
    checks = ["python", "config", "keys", "files", "ports", "descriptors", "disk", "usage", "backend", "clock"]
    assert [line[1] for line in lines] == checks
    assert err.endswith(": 10 ok\n")
    assert "1 of 1 in" in out
    assert f"{scene.fake.url}: lists base" in out


# -- the faults: each spoils the scene, and expects a line ------------------------------------------------------------


def dead_backend(scene: Scene) -> None:
    scene.backend["url"] = f"http://127.0.0.1:{free_port()}"


def unknown_host(scene: Scene) -> None:
    scene.backend["url"] = "http://no-such-host.invalid:8000"


def gateway_behind_it(scene: Scene) -> None:
    scene.says(json_answer({"error": {"code": "missing_api_key"}}, status=401))


def web_page(scene: Scene) -> None:
    scene.says(answer(200, b"<html>", content_type="text/html"))


def key_wanted(scene: Scene) -> None:
    scene.says(json_answer({"error": "Unauthorized"}, status=401))


def renamed_model(scene: Scene) -> None:
    scene.lists("base-v2")


def expired_key(scene: Scene) -> None:
    record = new_key("bob").record
    past = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    values = {name: getattr(record, name) for name in ("id", "hash", "created")}
    scene.write_keys(new_key("alice").record, KeyRecord(name="bob", expires=past, **values))


def no_usable_key(scene: Scene) -> None:
    scene.write_keys()


def broken_key_file(scene: Scene) -> None:
    (scene.folder / "keys.yaml").write_text("version: 1\nkeys:\n- name: [\n")


def readable_key_file(scene: Scene) -> None:
    (scene.folder / "keys.yaml").chmod(0o644)


def writable_config(scene: Scene) -> None:
    scene.path.touch()
    scene.path.chmod(0o666)


def store_away(scene: Scene) -> None:
    scene.config["rate_limit"] = {"store": f"redis://127.0.0.1:{free_port()}/0"}


def full_disk(scene: Scene) -> None:
    class Full:
        f_bavail, f_frsize, f_files, f_favail = 10, 4096, 1000, 500

    scene.monkeypatch.setattr(os, "statvfs", lambda _folder: Full)


def no_inodes(scene: Scene) -> None:
    class Full:
        f_bavail, f_frsize, f_files, f_favail = 10**9, 4096, 1000, 0

    scene.monkeypatch.setattr(os, "statvfs", lambda _folder: Full)


def few_descriptors(scene: Scene) -> None:
    scene.monkeypatch.setattr(resource, "getrlimit", lambda _which: (100, 100))


def ending_certificate(scene: Scene) -> None:
    certificate(scene, "DNS:api.example.com")
    later = time.time() + 1.8 * 86400  # of the two days that it has
    scene.monkeypatch.setattr(time, "time", lambda: later)


def past_certificate(scene: Scene) -> None:
    certificate(scene, "DNS:api.example.com")
    later = time.time() + 3 * 86400
    scene.monkeypatch.setattr(time, "time", lambda: later)


def certificate_of_another(scene: Scene) -> None:
    certificate(scene, "DNS:other.example.com")
    scene.config["kubernetes"] = {"host": "api.example.com", "image": "registry.example.com/aiaas:1"}


def key_of_another(scene: Scene) -> None:
    certificate(scene, "DNS:api.example.com")
    other = scene.folder / "other"
    other.mkdir()
    scene.config["server"]["tls"]["key_file"] = str(self_signed(other)[1])


def certificate(scene: Scene, name: str) -> None:
    cert, key = self_signed(scene.folder, name)
    scene.config["server"]["tls"] = {"cert_file": str(cert), "key_file": str(key)}


def refused_config(scene: Scene) -> None:
    scene.config["server"]["colour"] = "blue"


def damaged_usage(scene: Scene) -> None:
    (scene.folder / "usage.db").write_bytes(b"not a database" * 100)


def wrong_clock(scene: Scene) -> None:
    scene.says(json_answer({"data": [{"id": "base", "root": "base"}]}))  # dated by the fake


FAULTS = [
    pytest.param(dead_backend, "FAIL", "backend vllm", "nothing listens on that port: start vLLM", id="backend dead"),
    pytest.param(unknown_host, "FAIL", "backend vllm", "no such host: fix the name", id="wrong URL"),
    pytest.param(gateway_behind_it, "FAIL", "backend vllm", "an aiaas gateway listens there", id="wrong port"),
    pytest.param(web_page, "FAIL", "backend vllm", "is this a vLLM?", id="not a vLLM"),
    pytest.param(key_wanted, "FAIL", "backend vllm", "`api_key_env` names", id="vLLM wants a key"),
    pytest.param(renamed_model, "FAIL", "backend vllm", "the backend lists base-v2", id="model renamed"),
    pytest.param(expired_key, "warn", "keys", "make a new one: aiaas keys create bob-2", id="key expired"),
    pytest.param(no_usable_key, "FAIL", "keys", "aiaas keys create NAME", id="no key"),
    pytest.param(broken_key_file, "FAIL", "keys", "not YAML", id="key file broken"),
    pytest.param(readable_key_file, "warn", "files", "chmod o-r", id="key file for everybody"),
    pytest.param(writable_config, "FAIL", "files", "chmod o-w", id="config for everybody"),
    pytest.param(store_away, "FAIL", "store", "start it, or fix rate_limit.store", id="store away"),
    pytest.param(full_disk, "FAIL", "disk", "make room", id="disk full"),
    pytest.param(no_inodes, "FAIL", "disk", "no inodes; make room", id="no inodes"),
    pytest.param(few_descriptors, "warn", "descriptors", "LimitNOFILE=", id="few descriptors"),
    pytest.param(ending_certificate, "warn", "certificate", "; renew it", id="certificate expiring"),
    pytest.param(past_certificate, "FAIL", "certificate", "clients refuse it", id="certificate expired"),
    pytest.param(certificate_of_another, "FAIL", "certificate", "not for kubernetes.host", id="another name"),
    pytest.param(key_of_another, "FAIL", "certificate", "is not the key of the certificate", id="another key"),
    pytest.param(refused_config, "FAIL", "config", "server.colour", id="config refused"),
    pytest.param(damaged_usage, "FAIL", "usage", "damaged or not a database", id="usage damaged"),
    pytest.param(wrong_clock, "warn", "clock", "one of the two needs NTP", id="clock wrong"),
]


@pytest.mark.parametrize(("spoil", "state", "check", "words"), FAULTS)
async def test_a_fault_is_led_to_its_cause(
    scene: Scene,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Scene], None],
    state: str,
    check: str,
    words: str,
) -> None:
    """One line has the state, the check and what to do; exit code 1 for a FAIL."""
    spoil(scene)
    code = await scene.doctor()
    found = [line for line in capsys.readouterr().out.splitlines() if words in line]
    assert [line.startswith(f"{state:4}  {check} ") for line in found] == [True], found
    assert code == (1 if state == "FAIL" else 0)


async def test_plain_http_to_a_tls_server_is_led_to_its_cause(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """The reverse of `https://` written for a plain server."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*self_signed(scene.folder))
    secure = await FakeVllm.start(context)
    scene.backend["url"] = secure.url
    code = await scene.doctor()
    await secure.stop()
    assert code == 1
    assert f"FAIL  backend vllm      {secure.url}: the server speaks TLS; write https://" in capsys.readouterr().out


async def test_tls_to_a_plain_server_is_led_to_its_cause(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """vLLM's server answers a handshake with a 400, as most do."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\nInvalid HTTP request received.")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        scene.backend["url"] = url
        assert await scene.doctor() == 1
    line = f"FAIL  backend vllm      {url}: the server speaks plain HTTP; write http:// instead of https://"
    assert line in capsys.readouterr().out.splitlines()


async def test_a_taken_port_names_its_holder(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """Here this test itself."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", scene.config["server"]["port"]))
        taken.listen()
        assert await scene.doctor() == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert "(server.port): another program listens there" in line
    assert f"process {os.getpid()}, " in line


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"], ids=["loopback", "all addresses"])
async def test_a_taken_admin_port_is_a_warning(scene: Scene, capsys: pytest.CaptureFixture[str], host: str) -> None:
    """The gateway serves without it. Off, the port is nobody's concern."""
    with socket.socket() as taken:
        taken.bind((host, scene.config["monitoring"]["admin_port"]))
        taken.listen()
        assert await scene.doctor() == 0
        (line,) = about_the_admin_port(capsys)
        assert line.startswith("warn  ports ")
        assert "(monitoring.admin_port): another program listens there; stop it or choose another port" in line
        assert f"process {os.getpid()}, " in line
        assert "has it; the gateway serves without it: no page" in line
        scene.config["monitoring"]["admin_port"] = 0
        assert await scene.doctor() == 0
    assert about_the_admin_port(capsys) == []


def about_the_admin_port(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "monitoring.admin_port" in line]


async def test_admin_port_of_another_gateway_is_a_warning(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """Two gateways on one machine have the same default; that of the gateway on our server port is ours."""
    port = scene.config["monitoring"]["admin_port"]
    with listener(scene, port) as other:
        assert await scene.doctor() == 0
        (line,) = about_the_admin_port(capsys)
        assert line.startswith("warn  ports ")
        assert f"process {other.pid}, " in line
    with listener(scene, port, scene.config["server"]["port"]) as process:
        assert await scene.doctor() == 0
    (line,) = about_the_admin_port(capsys)
    assert (
        line == f"ok    ports             {port} (monitoring.admin_port): the gateway runs there, process {process.pid}"
    )


async def test_a_running_gateway_is_recognised(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """Its ports are no fault; its own descriptors count, and the disk of its log."""
    with listener(scene) as process:
        assert await scene.doctor() == 0
        out = capsys.readouterr().out
        port = scene.config["server"]["port"]
        assert f"{port} (server.port): the gateway runs there, process {process.pid}" in out
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (4, 4))
        assert await scene.doctor() == 1
        out = capsys.readouterr().out
        assert f"FAIL  descriptors       the gateway, process {process.pid}, has 4 of 4 open; new connections" in out


@contextmanager
def listener(scene: Scene, *ports: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process on these ports, or else on the gateway's, with a gateway's command line."""
    holder = "import socket, sys, time\n"
    holder += "sockets = [socket.create_server(('127.0.0.1', int(port))) for port in sys.argv[2:]]\n"
    holder += "print('listening', flush=True)\ntime.sleep(60)\n"
    script = scene.folder / "gateway.py"
    script.write_text(holder)
    held = map(str, ports or [scene.config["server"]["port"]])
    process = subprocess.Popen([sys.executable, str(script), "aiaas.cli.gateway", *held], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_an_engine_of_a_running_gateway_may_have_its_port(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its command line is vLLM's; without the gateway, the same is a fault."""
    port = free_port()
    scene.config["backends"]["vllm"] = {"engine": {"kind": "simulator", "port": port}, "models": ["base"]}
    with socket.socket() as engine:
        engine.bind(("127.0.0.1", port))
        engine.listen()
        assert await scene.doctor() == 1
        assert "(backends.vllm.engine.port): another program listens there" in capsys.readouterr().out
        with listener(scene):
            assert await scene.doctor() == 0
    assert f"{port} (backends.vllm.engine.port): the gateway's engine runs there" in capsys.readouterr().out


async def test_json_has_every_finding(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """With the worst state."""
    expired_key(scene)
    assert await scene.doctor("-o", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "warn"
    assert {"state": "warn", "check": "keys"}.items() <= found["findings"][2].items()


async def test_a_refused_config_ends_the_examination(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """The rest would be read from it; each problem has its line."""
    refused_config(scene)
    scene.config["monitoring"]["log_level"] = "loud"
    assert await scene.doctor() == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("FAIL  config") for line in lines) == 2
    assert lines[-1].startswith("warn  config            nothing else was checked")
    assert scene.fake.got == []


def test_a_missing_config_is_exit_code_3(tmp_path: Path) -> None:
    """As for every command."""
    assert run(["doctor", "-c", str(tmp_path / "none.yaml")]) == 3
