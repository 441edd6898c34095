"""Fixtures of the tests with real proxies: one gateway before a scripted engine, and a proxy of each controller."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests.certificate import self_signed
from tests.e2e.processes import Gateway, running_gateway
from tests.fakes.vllm import FakeVllm
from tests.proxies.client import Target
from tests.proxies.rendered import SERVER
from tests.proxies.servers import CONTROLLERS, Proxy, running_proxy

StartProxy = Callable[..., AbstractContextManager[Proxy]]


@dataclass(frozen=True)
class Site:
    """A gateway whose engine is scripted, and the certificate of the proxies before it."""

    engine: FakeVllm
    gateway: Gateway
    certificate: tuple[Path, Path]

    @property
    def port(self) -> int:
        """The gateway's own port."""
        port = urlsplit(self.gateway.url).port
        assert port is not None
        return port

    @property
    def direct(self) -> Target:
        """The gateway without a proxy."""
        return Target(self.port, self.gateway.key)

    def through(self, proxy: Proxy, *, tls: bool = True) -> Target:
        """The gateway behind a proxy."""
        if not tls:
            return Target(proxy.place.http, self.gateway.key)
        return Target(proxy.place.https, self.gateway.key, trusting(self.certificate))


def trusting(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    """A client's side of TLS that trusts the proxies."""
    return ssl.create_default_context(cafile=certificate[0])


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The certificate of every proxy."""
    made, key = self_signed(tmp_path_factory.mktemp("certificate"), "DNS:localhost,IP:127.0.0.1")
    return made, key.rename(made.with_name(f"{made.name}.key"))  # the name by which HAProxy finds it


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def site(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]) -> AsyncIterator[Site]:
    """The gateway that the tests share."""
    engine = await FakeVllm.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.stop)
        backend = {"url": engine.url}
        running = running_gateway(tmp_path_factory.mktemp("gateway"), backend, sections={"server": SERVER})
        gateway = await asyncio.to_thread(running.__enter__)
        stack.push_async_callback(asyncio.to_thread, running.__exit__, None, None, None)
        yield Site(engine, gateway, certificate)


@pytest.fixture(scope="session", params=list(CONTROLLERS))
def proxy(request: pytest.FixtureRequest, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The proxy of each controller before the shared gateway."""
    folder = tmp_path_factory.mktemp(request.param) / "proxy"
    with running_proxy(request.param, folder, site.certificate, site.port) as running:
        yield running


@pytest.fixture(params=list(CONTROLLERS))
def controller(request: pytest.FixtureRequest) -> str:
    """The name of each controller."""
    return str(request.param)


@pytest.fixture
def start_proxy(tmp_path: Path, certificate: tuple[Path, Path]) -> Iterator[StartProxy]:
    """`start_proxy(name, *gateways, without=..., noted=...)`: a proxy of the test's own, until its end."""
    with ExitStack() as stack:
        numbers = itertools.count()

        def start(name: str, *gateways: int, **options: object) -> Proxy:
            folder = tmp_path / f"{name}-{next(numbers)}"
            running = running_proxy(name, folder, certificate, *gateways, **options)  # type: ignore[arg-type]
            return stack.enter_context(running)

        yield start
