"""The programs of a compose file, without containers: the store's command, the health check, and Caddy in front."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from aiaas.limits.resp import RedisReplyError
from aiaas.manifests.caddy import caddyfile
from aiaas.manifests.compose_parts import health_program
from tests.e2e.conftest import StartGateway
from tests.e2e.processes import ALIAS, Gateway, eventually, running, running_gateway, status_of
from tests.fakes.redis import RedisServer, find_server
from tests.manifests.composing import BACKEND, compose_plan, services
from tests.ports import free_port

BODY = {"model": ALIAS, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
needs_caddy = pytest.mark.skipif(shutil.which("caddy") is None, reason="no caddy on PATH: nox -s compose")


@pytest.mark.parametrize("password", ["", "s3cret x"], ids=["no password", "a password with a space"])
def test_stores_command_starts_a_store(password: str, tmp_path: Path) -> None:
    """As Compose runs it: with its password from a variable, its counts on disk, no eviction."""
    port = free_port()
    login = ":${P}@" if password else ""
    text = BACKEND + f"rate_limit: {{store: 'redis://{login}redis:{port}/0'}}\n"
    service = services(text, {"P": "x"} if password else {})["redis"]
    script = service["command"][-1].replace("$$", "$").replace("valkey-server", find_server())
    command = [*service["command"][:-1], script.replace("/data", str(tmp_path))]
    server = RedisServer(tmp_path, port=port)
    with running(command, tmp_path / "log", os.environ | {"REDISCLI_AUTH": password}):

        def answers(*words: str) -> object:
            with suppress(OSError):
                try:
                    return server.command(*words)
                except RedisReplyError as error:
                    return str(error)
            return None

        eventually(lambda: answers("PING"), 20)
        if password:
            assert str(answers("PING")).startswith("NOAUTH")
            assert server.command("AUTH", password) == b"OK"
        else:
            assert server.command("CONFIG", "GET", "maxmemory-policy") == [b"maxmemory-policy", b"noeviction"]
        assert list(tmp_path.glob("appendonly*"))


def test_health_check_agrees_with_the_gateway(start_gateway: StartGateway, simulator_url: str) -> None:
    """It passes while the gateway serves, and fails once it is gone."""
    with start_gateway({"url": simulator_url}) as gateway:
        program = health_program(int(gateway.url.rpartition(":")[2]), seconds=4)
        check = [sys.executable, "-c", program]
        assert subprocess.run(check, check=False, timeout=30).returncode == 0
    assert subprocess.run(check, check=False, timeout=30, stderr=subprocess.DEVNULL).returncode != 0


@contextmanager
def caddy(folder: Path, gateway_port: int, port: int) -> Iterator[str]:
    """Caddy as the compose file runs it, but for plain HTTP on a port of the test's own."""
    made = caddyfile(compose_plan(BACKEND + f"server: {{port: {gateway_port}, drain_timeout: 5s}}\n", domain="a.b"))
    text = made.replace("a.b {", f"http://127.0.0.1:{port} {{").replace("gateway:", "127.0.0.1:")
    (folder / "Caddyfile").write_text(text.replace("{\n", "{\n\tadmin off\n", 1))
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    homes = {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with running(command, folder / "caddy.log", os.environ | homes, grace=10):
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: status_of(url + "/health") == 200, 20)
        yield url


def ask(url: str, key: str) -> int:
    """The status of one request on a connection of its own."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(BODY).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return int(answer.status)


@pytest.mark.compose
@needs_caddy
@pytest.mark.timeout(300)
def test_caddy_passes_on_all_that_the_gateway_does(simulator_url: str, tmp_path: Path) -> None:
    """Streams event by event, errors in the gateway's shape, and clients that leave, before the first token as well."""
    with (
        running_gateway(tmp_path, {"url": simulator_url}) as gateway,
        caddy(tmp_path, port_of(gateway), free_port()) as url,
    ):
        command = ["smoke", url, "-c", str(tmp_path / "aiaas.yaml"), "--engine-metrics", simulator_url, "-o", "json"]
        done = subprocess.run(
            [sys.executable, "-m", "aiaas", *command, "--metrics", gateway.metrics_url],
            env=os.environ | {"AIAAS_API_KEY": gateway.key},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert {name: check for name, check in checks.items() if check["outcome"] == "failed"} == {}
    for name in ("stream-pace", "abort", "abort-early", "body-too-large", "no-key"):
        assert checks[name]["outcome"] == "passed", checks[name]


@pytest.mark.compose
@needs_caddy
@pytest.mark.timeout(300)
def test_requests_wait_while_the_gateway_restarts(simulator_url: str, tmp_path: Path) -> None:
    """Caddy tries again until the new gateway listens; none fails."""
    with ExitStack() as stack:
        with running_gateway(tmp_path, {"url": simulator_url}) as gateway:
            url = stack.enter_context(caddy(tmp_path, port_of(gateway), free_port()))
            assert ask(url, gateway.key) == 200
        pool = stack.enter_context(ThreadPoolExecutor(8))
        waiting = [pool.submit(ask, url, gateway.key) for _ in range(8)]
        with suppress(TimeoutError):
            waiting[0].result(1)
        assert not any(each.done() for each in waiting)
        again = [sys.executable, "-m", "aiaas", "serve", "-c", str(tmp_path / "aiaas.yaml")]
        stack.enter_context(running(again, tmp_path / "again.log", grace=10))
        assert [each.result(30) for each in waiting] == [200] * 8


def port_of(gateway: Gateway) -> int:
    """The port that it serves on."""
    return int(gateway.url.rpartition(":")[2])
