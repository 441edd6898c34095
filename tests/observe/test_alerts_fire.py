"""Each alert fires in a real Prometheus when its fault is there, and stops when the fault is gone.

Two gateways in one namespace: `api-router` has two workers, TLS, a shared store, an engine of its own and several
backends; `second` has one worker and few file descriptors. Faults are made one group after another; between the groups
nothing fires, and no fault of one gateway fires an alert of the other.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import trustme

from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import SimulatorHandle, running_simulator
from tests.e2e.processes import ALIAS, MODEL, Gateway, running_gateway
from tests.fakes.redis import RedisServer
from tests.observe.clients import CHAT, Ask, Seen, ask_all
from tests.observe.prometheus import Prometheus, running_prometheus
from tests.waiting import until

pytestmark = [pytest.mark.observe, pytest.mark.timeout(500)]

FIRST, SECOND = "api-router", "second"
FIRES_WITHIN = 90.0  # seconds; mostly 5 to 20, on a busy machine more
STOPS_WITHIN = 120.0  # and the longest window of the rules, half a minute
FEW_DESCRIPTORS = 512
HELD = 205  # requests, with two descriptors each: of the 224 that are let in, some places are for new clients
HELLO = [{"role": "user", "content": "Say hello."}]
HEALTH = {"interval": "500ms", "timeout": "3s", "unhealthy_after": 2}


class Engines:
    """The simulators by name, each of which can be killed and brought back at its port."""

    def __init__(self) -> None:
        self.handles: dict[str, SimulatorHandle] = {}
        self._stacks: dict[str, AsyncExitStack] = {}

    async def start(self, name: str, model: str, port: int = 0, **options: Any) -> str:
        """Start a simulator; its URL."""
        stack = self._stacks[name] = AsyncExitStack()
        made = SimulatorOptions(**{"models": (model,), "ttft": 0.005, "itl": 0.002, **options})
        self.handles[name] = await stack.enter_async_context(running_simulator(made, port=port))
        return self.handles[name].url

    async def stop(self, name: str) -> None:
        """Kill one."""
        await self._stacks.pop(name).aclose()

    @asynccontextmanager
    async def away(self, name: str, other_model: str | None = None) -> AsyncIterator[None]:
        """Without this engine for a while, or with one at its address that serves another model."""
        handle = self.handles[name]
        await self.stop(name)
        if other_model is not None:
            await self.start(name, other_model, handle.port)
        yield
        if other_model is not None:
            await self.stop(name)
        await self.start(name, handle.options.models[0], handle.port)

    async def close(self) -> None:
        """Kill all."""
        for name in list(self._stacks):
            await self.stop(name)


@dataclass(frozen=True)
class Pod:
    """A pod of the second gateway."""

    gateway: Gateway
    _stack: ExitStack

    async def stop(self) -> None:
        """End it, as with SIGTERM."""
        await asyncio.to_thread(self._stack.close)


@dataclass
class Site:
    """The programs and files that the faults need."""

    folder: Path
    engines: Engines
    redis: RedisServer
    prometheus: Prometheus
    authority: trustme.CA
    pods: ExitStack
    gateway: Gateway = field(init=False)
    second: Pod = field(init=False)
    seen: Seen = field(default_factory=Seen)

    def certify(self, days: float, of: float) -> None:
        """Write a certificate that has `days` left of a life of `of` days."""
        now = datetime.now(UTC)
        ends = now + timedelta(days=days)
        made = self.authority.issue_cert("127.0.0.1", not_before=ends - timedelta(days=of), not_after=ends)
        folder = self.folder / "gateway"
        (folder / "key.pem").write_bytes(made.private_key_pem.bytes())
        (folder / "cert.pem").write_bytes(made.cert_chain_pems[0].bytes())

    def children(self, word: str) -> list[psutil.Process]:
        """The gateway's processes with this word in their command line."""
        found = []
        for process in psutil.Process(self.gateway.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    async def firing(self) -> set[tuple[str, str]]:
        """(gateway, alert) of all that fire now."""
        return await asyncio.to_thread(self.prometheus.firing)

    async def expect(self, gateway: str, alerts: set[str], within: float = FIRES_WITHIN) -> None:
        """Wait until exactly these alerts fire."""
        wanted = {(gateway, alert) for alert in alerts}
        ever: set[tuple[str, str]] = set()
        deadline = asyncio.get_running_loop().time() + within
        while (found := await self.firing()) != wanted:
            ever |= found
            late = asyncio.get_running_loop().time() > deadline
            assert not late, f"missing {sorted(wanted - found)}, too many {sorted(found - wanted)}"
            await asyncio.sleep(0.2)

    async def quiet(self) -> None:
        """Wait until nothing fires."""
        await self.expect(FIRST, set(), STOPS_WITHIN)

    @asynccontextmanager
    async def traffic(self, model: str, **body: Any) -> AsyncIterator[None]:
        """Streams of a model, four at a time, without end."""
        request = Ask(CHAT, {"model": model, "messages": HELLO, "stream": True, "max_tokens": 8, **body})

        async def go_on() -> None:
            while True:
                with suppress(aiohttp.ClientError):
                    await ask_all(self.gateway.url, self.gateway.key, [request] * 4, self.seen)
                await asyncio.sleep(0.05)

        task = asyncio.create_task(go_on(), name="traffic")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def site(tmp_path: Path, redis_server: RedisServer) -> AsyncIterator[Site]:
    """Both gateways, running, without any alert; and Prometheus with the rules of both."""
    async with AsyncExitStack() as stack:
        engines = Engines()
        stack.push_async_callback(engines.close)
        urls = [await engines.start(name, MODEL) for name in ("a", "b")]
        folder = tmp_path / "gateway"
        for name in ("gateway", "prometheus"):
            (tmp_path / name).mkdir()
        backends = {
            "alone": {"url": await engines.start("alone", "alone"), "models": ["alone"], "health": HEALTH},
            "named": {"url": await engines.start("named", "named"), "models": ["named"], "health": HEALTH},
            "slow": {"url": await engines.start("slow", "slow", ttft=0.6), "models": ["slow"]},
            "one": {"url": await engines.start("one", "one", itl=0.1), "models": ["one"], "max_inflight": 2},
            "engine": {"engine": {"kind": "simulator"}, "models": ["engine"]},
        }
        sections: dict[str, Any] = {
            "server": {"workers": 2, "tls": {"cert_file": "cert.pem", "key_file": "key.pem"}},
            "rate_limit": {"store": redis_server.url},
            "backends": backends,
        }
        running = running_prometheus(tmp_path / "prometheus", FIRST, SECOND, monitoring="{slo: {ttft: 250ms}}")
        prometheus = await asyncio.to_thread(stack.enter_context, running)
        pods = stack.enter_context(ExitStack())
        site = Site(tmp_path, engines, redis_server, prometheus, trustme.CA(), pods)
        site.certify(80, 90)
        serving = running_gateway(folder, {"urls": urls, "health": HEALTH}, sections=sections)
        site.gateway = await asyncio.to_thread(stack.enter_context, serving)
        prometheus.target(FIRST, "aaaaa", site.gateway.metrics_url)
        site.second = await start_second(site, "second", "bbbbb")
        await until(lambda: len(prometheus.query("aiaas_endpoint_up == 1")) == 8, 60)
        await site.quiet()
        yield site


async def test_faults_of_files_and_processes_fire_and_stop(site: Site) -> None:
    """Engines, files, the store and workers, all at the same time."""
    folder = site.gateway.folder
    whole = {name: (folder / name).read_text() for name in ("keys.yaml", "aiaas.yaml")}
    async with AsyncExitStack() as faults:
        await faults.enter_async_context(site.engines.away("a"))
        await faults.enter_async_context(site.engines.away("alone"))
        await faults.enter_async_context(site.engines.away("named", other_model="renamed"))
        site.redis.kill()
        for name in whole:
            (folder / name).write_text("[")
        site.certify(5, 90)
        for process in site.children("simulate"):
            process.kill()
        for _ in range(4):
            killed = site.children("aiaas.cli.worker")[0]
            killed.kill()
            await asyncio.to_thread(killed.wait, 30)
            await until(lambda: len(site.children("aiaas.cli.worker")) == 2, 60)
            await until(lambda: site.prometheus.value("aiaas_workers") == 2, 60)
        failures = await asyncio.to_thread(site.gateway.metric, "aiaas_limit_store_failures_total")
        lasting = {
            "AiaasBackendDown",
            "AiaasEndpointDown",
            "AiaasModelsWrong",
            "AiaasStoreAway",
            "AiaasReloadFails",
            "AiaasCertificateEnds",
        }
        await fired(site, FIRST, lasting | {"AiaasEngineDies", "AiaasWorkersDie"})
        await site.expect(FIRST, lasting, STOPS_WITHIN)  # these last as long as their faults
        assert await asyncio.to_thread(site.gateway.metric, "aiaas_limit_store_failures_total") > failures
        site.redis.start()
        for name, text in whole.items():
            (folder / name).write_text(text)
        site.certify(80, 90)
    await site.quiet()


async def fired(site: Site, gateway: str, alerts: set[str], may: Collection[str] = ()) -> None:
    """Wait until each of these alerts has fired, and check that no other has, but for those that `may`."""
    seen: set[tuple[str, str]] = set()
    wanted = {(gateway, alert) for alert in alerts}
    deadline = asyncio.get_running_loop().time() + FIRES_WITHIN
    allowed = {(gateway, alert) for alert in may}
    while seen != wanted:
        seen |= await site.firing() - allowed
        assert seen <= wanted, f"too many: {sorted(seen - wanted)}"
        assert asyncio.get_running_loop().time() < deadline, f"missing: {sorted(wanted - seen)}"
        await asyncio.sleep(0.2)


async def test_failing_and_slow_requests_fire_and_stop(site: Site) -> None:
    """Answers that break off; late first tokens; a queue; a worker that is held up."""
    availability = {"AiaasAvailabilityBurnsFast", "AiaasAvailabilityBurnsSlowly"}
    async with site.traffic(ALIAS):
        for name in ("a", "b"):
            site.engines.handles[name].set_fault("engine-dies-mid-stream:3")
        # An engine that dies counts against its endpoint, which gets no requests until the next probe.
        await fired(site, FIRST, availability | {"AiaasAnswersBreak"}, may=("AiaasBackendDown", "AiaasEndpointDown"))
        for name in ("a", "b"):
            site.engines.handles[name].set_fault("none")
        await site.quiet()
        for name in ("a", "b"):
            site.engines.handles[name].set_fault("error:500")
        await fired(site, FIRST, availability)
        for name in ("a", "b"):
            site.engines.handles[name].set_fault("none")
        await site.quiet()
    async with site.traffic("slow"):
        await fired(site, FIRST, {"AiaasFirstTokenBurnsFast", "AiaasFirstTokenBurnsSlowly"})
    await site.quiet()
    long = Ask(CHAT, {"model": "one", "messages": HELLO, "stream": True, "max_tokens": 5000, "ignore_eos": True})
    async with held(site, [long] * 8, site.gateway):
        await fired(site, FIRST, {"AiaasQueueing"})
    await site.quiet()
    async with stalls(site):
        await fired(site, FIRST, {"AiaasLoopLag"})
    await site.quiet()


@asynccontextmanager
async def held(site: Site, requests: list[Ask], gateway: Gateway) -> AsyncIterator[None]:
    """These requests, under way; their clients leave at the end."""
    task = asyncio.create_task(ask_all(gateway.url, gateway.key, requests, site.seen, len(requests)), name="held")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def stalls(site: Site) -> AsyncIterator[None]:
    """A worker that gets no CPU for a second, again and again."""
    worker = site.children("aiaas.cli.worker")[0]

    async def stop_and_go() -> None:
        while True:
            worker.send_signal(signal.SIGSTOP)
            await asyncio.sleep(1.0)
            worker.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.3)

    task = asyncio.create_task(stop_and_go(), name="stalls")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        worker.send_signal(signal.SIGCONT)


# -- the second gateway --------------------------------------------------------------------------------------------


async def start_second(site: Site, folder: str, pod: str, **server: Any) -> Pod:
    """A pod of the second gateway, scraped. It ends with the test, if not before."""
    (site.folder / folder).mkdir()
    stack = ExitStack()
    backend = {"url": site.engines.handles["b"].url, "max_inflight": None}
    prefix = ("prlimit", f"--nofile={FEW_DESCRIPTORS}:{FEW_DESCRIPTORS}")
    running = running_gateway(site.folder / folder, backend, sections={"server": server}, prefix=prefix)
    gateway = await asyncio.to_thread(stack.enter_context, running)
    site.pods.callback(stack.close)
    site.prometheus.target(SECOND, pod, gateway.metrics_url)
    return Pod(gateway, stack)


async def test_faults_of_a_second_gateway_are_its_own(site: Site) -> None:
    """It runs out of descriptors; a pod of it has another config; it ends and comes back."""
    second = site.second
    long = Ask(CHAT, {"model": ALIAS, "messages": HELLO, "stream": True, "max_tokens": 1900, "ignore_eos": True})
    site.engines.handles["b"].set_fault("hang-before-first-event")
    async with held(site, [long] * HELD, second.gateway):
        await fired(site, SECOND, {"AiaasDescriptorsLow"})
    site.engines.handles["b"].set_fault("none")
    await site.quiet()
    third = await start_second(site, "third", "ccccc", heartbeat="14s")
    await fired(site, SECOND, {"AiaasConfigsDiffer"})
    await third.stop()
    site.prometheus.target(SECOND, "ccccc", None)
    await site.quiet()
    await second.stop()
    await fired(site, SECOND, {"AiaasDown"})
    await start_second(site, "fourth", "bbbbb")
    await site.quiet()
