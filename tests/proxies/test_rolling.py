"""Gateways are replaced one after another under load, as a Deployment does it, and no client notices.

Each replacement is what Kubernetes and the rendered Deployment make of it: a new gateway starts and is added once it is
ready (`maxSurge: 1`, `maxUnavailable: 0`); the old one is taken from the endpoints, which a proxy learns a moment
later; it goes on serving for `preStop`'s seconds, gets SIGTERM, and ends its streams.
"""

from __future__ import annotations

import asyncio
import time
from asyncio import IncompleteReadError
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests.e2e.processes import Gateway, keys, running_gateway
from tests.fakes.vllm import FakeVllm, json_answer
from tests.proxies.client import WITHIN, Connection, Reply, Target, chat
from tests.proxies.conftest import trusting
from tests.proxies.rendered import rendering
from tests.proxies.servers import CONTROLLERS, Proxy, program_of, running_proxy
from tests.proxies.upstream import AsAsked, Stamped

pytestmark = [pytest.mark.proxies, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]

NAMES: Final = ("ingress-nginx", "haproxytech", "traefik", "gateway-api")  # one of each program
STREAMS: Final = 20  # of each proxy, at any time
STREAM: Final = Stamped(80, 0.2)  # longer than preStop, so that each old gateway has streams to end
REQUESTS: Final = 20  # a second, of each proxy: half on connections that are kept
DRAINS: Final = 2.0  # seconds; a gateway without streams ends sooner
RELOADS: Final = 4  # two of each replacement
LEARNS_AFTER: Final = 1.0  # seconds from the deletion of a pod to the controller's new list of endpoints
ANSWER: Final = json_answer({"object": "chat.completion", "choices": [], "usage": {}})


@dataclass
class Load:
    """The clients of one proxy: their answers by kind, and their failures.

    stale  requests that met the end of an idle connection: a proxy that reads its configuration anew ends those, and a
           client that sends in that moment sends again, as every pool of connections does
    """

    target: Target
    good: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    stale: int = 0

    async def run(self) -> None:
        """Ask until the task is cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(STREAMS):
                group.create_task(self._streams(number * STREAM.count * STREAM.interval / STREAMS))
            group.create_task(self._requests(kept=True))
            group.create_task(self._requests(kept=False))

    def take_failures(self) -> list[str]:
        """Return the failures since the last call."""
        taken, self.failed = self.failed, []
        return taken

    async def _streams(self, wait: float) -> None:
        await asyncio.sleep(wait)
        while True:
            await self._one("stream", [])

    async def _requests(self, *, kept: bool) -> None:
        idle: list[Connection] = []
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    group.create_task(self._one("kept" if kept else "new", idle))
                    await asyncio.sleep(2 / REQUESTS)
        finally:
            for connection in idle:
                connection.abort()

    async def _one(self, kind: str, idle: list[Connection]) -> None:
        """One exchange, on an idle connection if there is one."""
        while idle and idle[0].reader.at_eof():
            idle.pop(0).abort()
        kept = connection = idle.pop(0) if idle else None
        again = False
        try:
            async with asyncio.timeout(2 * WITHIN):
                connection = connection or await Connection.open(self.target)
                await connection.send(chat(stream=kind == "stream"), keep=kind == "kept")
                reply = await connection.reply()
            if self._is_whole(kind, reply) and kind == "kept":
                idle.append(connection)
                connection = None
        except (OSError, EOFError, TimeoutError) as error:
            again = kept is not None and _is_unheard(error)
            if not again:
                self.failed.append(f"{kind}: {error!r}")
        finally:
            if connection is not None:
                connection.abort()
        if again:
            self.stale += 1
            await self._one(kind, [])

    def _is_whole(self, kind: str, reply: Reply) -> bool:
        events = reply.body.count(b"@") // 2
        if reply.status == 200 and (kind != "stream" or (events == STREAM.count and b"[DONE]" in reply.body)):
            self.good[kind] += 1
            return reply.headers.get("connection", "") != "close"
        self.failed.append(f"{kind}: {reply.status}, {events} events, {reply.body[:80]!r}")
        return False


def _is_unheard(error: Exception) -> bool:
    """Whether a connection ended before the first byte of an answer."""
    if isinstance(error, IncompleteReadError):
        return not error.partial
    return isinstance(error, ConnectionError)


class Deployment:
    """The gateways, one key for all of them, and the proxies that have them as endpoints."""

    def __init__(self, folder: Path, engine: str, proxies: list[Proxy], stack: AsyncExitStack) -> None:
        self._folder, self._engine, self._stack = folder, engine, stack
        self.proxies = proxies
        self.key = keys(folder, "create", "load")
        self.running: list[Gateway] = []
        self._number = 0

    async def start(self) -> Gateway:
        """Another gateway, ready; no proxy knows it yet."""
        self._number += 1
        folder = self._folder / f"gateway-{self._number}"
        folder.mkdir()
        shared = {"keys_file": str(self._folder / "keys.yaml")}
        sections = {"server": {"drain_timeout": "60s"}, "auth": shared}
        running = running_gateway(folder, {"url": self._engine}, sections=sections)
        gateway = await asyncio.to_thread(running.__enter__)
        self._stack.push_async_callback(asyncio.to_thread, running.__exit__, None, None, None)
        self.running.append(gateway)
        return gateway

    def announce(self) -> None:
        """Tell the proxies which gateways there are."""
        ports = [urlsplit(gateway.url).port or 0 for gateway in self.running]
        for proxy in self.proxies:
            proxy.point(*ports)

    async def replace(self, pre_stop: float) -> asyncio.Task[float]:
        """Replace the oldest gateway. Returns at its SIGTERM, as the next replacement does not wait for its end: the
        task has the seconds until then."""
        await self.start()
        self.announce()
        await asyncio.sleep(LEARNS_AFTER)
        old = self.running.pop(0)
        await asyncio.sleep(LEARNS_AFTER)
        self.announce()
        await asyncio.sleep(pre_stop - LEARNS_AFTER)
        return asyncio.create_task(self.end(old))

    async def end(self, gateway: Gateway) -> float:
        """SIGTERM, and its end."""
        began = time.monotonic()
        assert await asyncio.to_thread(gateway.stop, 60) == 0
        return time.monotonic() - began


@dataclass(frozen=True)
class Outcome:
    """The clients of a proxy: their answers, their failures with and without `preStop`, and their stale connections."""

    good: Counter[str]
    failed: list[str]
    abrupt: list[str]
    stale: int


@contextmanager
def available(folder: Path, certificate: tuple[Path, Path]) -> Iterator[list[Proxy]]:
    """A proxy of each program that is installed, without a gateway so far."""
    with ExitStack() as stack:
        names = [name for name in NAMES if program_of(name) is not None]
        yield [stack.enter_context(running_proxy(name, folder / name, certificate)) for name in names]


def pre_stop_of(name: str) -> float:
    """The seconds of the rendered Deployment's preStop."""
    [container] = rendering(name)["Deployment"]["spec"]["template"]["spec"]["containers"]
    return float(container["lifecycle"]["preStop"]["sleep"]["seconds"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(
    tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]
) -> AsyncIterator[dict[str, Outcome]]:
    """Both gateways replaced, then a third ended at once: all proxies at the same time, to spare minutes."""
    engine = await FakeVllm.start()
    engine.default = (AsAsked(STREAM, ANSWER),)
    folder = tmp_path_factory.mktemp("rolling")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.stop)
        deployment = Deployment(folder, engine.url, [], stack)
        for _ in range(2):
            await deployment.start()
        with available(folder, certificate) as proxies:
            deployment.proxies = proxies
            deployment.announce()
            loads = {
                each.name: Load(Target(each.place.https, deployment.key, trusting(certificate))) for each in proxies
            }
            await asyncio.sleep(3)  # Traefik reads at most every 2 s
            clients = [asyncio.create_task(load.run()) for load in loads.values()]
            ended = await asyncio.gather(*[await deployment.replace(pre_stop_of(NAMES[0])) for _ in range(2)])
            print(f"\nthe old gateways ended {', '.join(f'{each:.1f} s' for each in ended)} after SIGTERM")
            assert min(ended) > DRAINS, "the old gateways had no streams to end, so that was not tested"
            failed = {name: load.take_failures() for name, load in loads.items()}
            abrupt = deployment.running[0]
            ending = asyncio.create_task(deployment.end(abrupt))
            await asyncio.sleep(2 * LEARNS_AFTER)
            deployment.running.remove(abrupt)
            deployment.announce()
            await ending
            for client in clients:
                client.cancel()
            for result in await asyncio.gather(*clients, return_exceptions=True):
                assert isinstance(result, asyncio.CancelledError), result
            for name, load in loads.items():
                print(
                    f"{name}: {dict(load.good)}, {len(failed[name])} failed, {load.stale} sent again on another ",
                    end="",
                )
                print(f"connection; without preStop {len(load.failed)} failed, such as {load.failed[:1]}")
            yield {name: Outcome(load.good, failed[name], load.failed, load.stale) for name, load in loads.items()}


def outcome_of(outcomes: dict[str, Outcome], name: str) -> Outcome:
    """The outcome of a proxy, unless it is not installed."""
    if name not in outcomes:
        pytest.skip(f"no {CONTROLLERS[name].program} on PATH: {CONTROLLERS[name].packages}")
    return outcomes[name]


@pytest.mark.parametrize("name", NAMES)
async def test_a_replacement_fails_no_request(outcomes: dict[str, Outcome], name: str) -> None:
    """20 streams at any time and 20 short requests a second: each is answered, and each stream is whole."""
    outcome = outcome_of(outcomes, name)
    assert outcome.failed == []
    assert outcome.stale <= RELOADS
    assert outcome.good["stream"] >= STREAMS
    assert min(outcome.good["kept"], outcome.good["new"]) > 100


@pytest.mark.parametrize("name", ["traefik", "gateway-api"])
async def test_a_gateway_without_pre_stop_fails_requests(outcomes: dict[str, Outcome], name: str) -> None:
    """Its ports are closed before the proxy knows. (nginx and HAProxy then try another gateway, which hides most.)"""
    assert outcome_of(outcomes, name).abrupt != []
