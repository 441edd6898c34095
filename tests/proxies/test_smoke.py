"""`aiaas smoke` passes through each proxy, and names the cause where one lacks what the rendering gives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from tests.e2e.processes import Gateway, running_gateway, running_simulator
from tests.ports import free_port
from tests.proxies.conftest import StartProxy
from tests.proxies.rendered import SERVER
from tests.proxies.servers import Proxy

pytestmark = pytest.mark.proxies

EACH: Final = ("ingress-nginx", "haproxytech", "traefik", "gateway-api")  # one of each program


@dataclass(frozen=True)
class Smoked:
    """A gateway before the simulator, for `aiaas smoke`."""

    gateway: Gateway
    engine: str
    authority: Path

    @property
    def port(self) -> int:
        """The gateway's own port."""
        port = urlsplit(self.gateway.url).port
        assert port is not None
        return port

    def smoke(self, proxy: Proxy, *options: str, tls: bool = True) -> dict[str, dict[str, Any]]:
        """The report of `aiaas smoke` through a proxy, by the name of the check."""
        url = f"https://localhost:{proxy.place.https}" if tls else f"http://localhost:{proxy.place.http}"
        command = [sys.executable, "-m", "aiaas", "smoke", url, "--ca", str(self.authority), "-o", "json"]
        command += ["-c", str(self.gateway.folder / "aiaas.yaml"), "--metrics", self.gateway.metrics_url]
        command += ["--engine-metrics", self.engine, "--http-port", str(proxy.place.http), *options]
        environment = os.environ | {"AIAAS_API_KEY": self.gateway.key}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
        assert done.returncode in (0, 1), done.stderr
        return {each["name"]: each for each in json.loads(done.stdout)["checks"]}


@pytest.fixture(scope="module")
def smoked(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]) -> Iterator[Smoked]:
    """The gateway, whose key has a limit that the checks reach at once."""
    folder = tmp_path_factory.mktemp("smoke")
    limit = {"requests_per_minute": 1200, "burst": 20}
    with running_simulator(folder / "simulator", "--itl", "5ms") as engine:
        sections = {"server": SERVER, "rate_limit": limit}
        with running_gateway(folder, {"url": engine}, sections=sections) as gateway:
            yield Smoked(gateway, engine, certificate[0])


def failures(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The hint of each check that failed."""
    return {name: each["hint"] for name, each in results.items() if each["outcome"] == "failed"}


@pytest.mark.parametrize("name", EACH)
def test_smoke_passes_through_each_proxy(smoked: Smoked, start_proxy: StartProxy, name: str) -> None:
    """Every check that does not need the engine's own address; /ready is not routed."""
    results = smoked.smoke(start_proxy(name, smoked.port))
    assert failures(results) == {}
    skipped = {name for name, each in results.items() if each["outcome"] == "skipped"}
    assert skipped == {"ready", "direct"}


def test_smoke_names_the_options_that_haproxy_lacks(smoked: Smoked, start_proxy: StartProxy) -> None:
    """Lumps over plain HTTP, and a client that nobody misses."""
    lacks = ("backend-config-snippet", "abortonclose")
    running = start_proxy("haproxytech", smoked.port, without=lacks, noted=False, tls=False)
    hints = failures(smoked.smoke(running, "--only", "stream-pace,abort-early", tls=False))
    assert "`option http-no-delay`" in hints["stream-pace"]
    assert "`option abortonclose`" in hints["abort-early"]


@pytest.mark.parametrize("name", EACH)
def test_smoke_without_a_gateway_says_so(smoked: Smoked, start_proxy: StartProxy, name: str) -> None:
    """Where the proxy answers by itself, with a page or with a line of text."""
    hints = failures(smoked.smoke(start_proxy(name, free_port()), "--only", "health"))
    assert "no gateway pod is ready" in hints["health"]


@pytest.mark.parametrize(
    ("name", "option"), [("ingress-nginx", "proxy-body-size"), ("nginx-inc", "client-max-body-size")]
)
def test_smoke_says_that_nginx_refuses_bodies_first(
    smoked: Smoked, start_proxy: StartProxy, name: str, option: str
) -> None:
    """Its default is below the gateway's limit."""
    hints = failures(smoked.smoke(start_proxy(name, smoked.port, without=(option,)), "--only", "body-too-large"))
    assert "refuses it first" in hints["body-too-large"]
