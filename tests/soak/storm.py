"""Thousands of disconnects and faults on both sides of a real `aiaas serve`, and then a look at what is left over.

The gateway stands before two scripted backends with a bound and a queue. Meanwhile backends are killed and come back,
and its config changes, so that pools and endpoints are replaced under requests that use them. Afterwards its metrics,
its limits, its descriptors and its connections, as the kernel lists them, must be as they were before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import uvloop
import yaml

from tests.e2e.processes import ALIAS, Gateway, running_gateway
from tests.proxy.conftest import Raw
from tests.soak.backend import DRIPS, BackendProcess
from tests.soak.clients import Clients, HungError
from tests.soak.finding import Finding, slope

AT_ONCE: Final = 40
# The key's bound is less than the clients at once, so that some are refused; the endpoints' is less than that, so that
# some wait.
SLOTS: Final = 32
MAX_INFLIGHT: Final = 12
# The main one, two that hash keys, and those that Python's default executor may have, which it starts when needed.
MOST_THREADS: Final = 3 + min(32, (os.cpu_count() or 1) + 4)
# Seconds. Everything with a timer has ended then: idle upstream connections after 4 s, a client that lingers.
SETTLING: Final = 15.0
# How often something is done to the gateway or a backend during the storm.
INTERVENTIONS: Final = 30
# This share of the clients comes before memory is sampled.
WARM_UP: Final = 0.3
# Bytes a client. One request that is not freed is a kilobyte or more (its Record, its task, its buffers).
BOUND: Final = 256.0
# Bytes in all that allocators may still take after the warm-up, by the MiB: 0.4 to 1.5 MiB was seen over 3,000, 6,000,
# 12,000 and 100,000 clients alike, so that it is 300 bytes a client in a short storm and 14 in a long one.
TAKEN_ONCE: Final = 2 * 1024**2
_BACKEND: Final = {
    "timeout": "300ms",
    "connect_timeout": "200ms",
    "max_inflight": MAX_INFLIGHT,
    "queue": {"size": 10, "max_wait": "2s"},
    "health": {"interval": "500ms", "unhealthy_after": 1000},
    "endpoints": ["/v1/chat/completions", DRIPS, "/v1/models"],
}
_SECTIONS: Final = {
    "server": {"heartbeat": "30ms", "header_timeout": "500ms", "body_timeout": "500ms"},
    "rate_limit": {"requests_per_minute": 10_000_000, "max_concurrent": SLOTS},
    "monitoring": {"log_level": "info"},
}


@dataclass
class Stormy:
    """A gateway, its backends, and the counts so far."""

    gateway: Gateway
    backends: list[BackendProcess]
    dice: random.Random
    happened: Counter[str] = field(default_factory=Counter)
    hung: list[str] = field(default_factory=list)
    resident: list[tuple[float, float]] = field(default_factory=list)  # (clients so far, bytes)

    @property
    def port(self) -> int:
        """Where the gateway listens."""
        return int(self.gateway.url.rpartition(":")[2])


@contextlib.contextmanager
def gateway_in_the_storm(folder: Path, seed: int) -> Iterator[Stormy]:
    """The gateway and its backends, up; ended with the block."""
    backends = [BackendProcess(folder / f"backend-{number}.log", seed + 1000 * number) for number in range(2)]
    with contextlib.ExitStack() as stack:
        for backend in backends:
            backend.start()
            stack.callback(backend.kill)
        backend_section = _BACKEND | {"urls": [backend.url for backend in backends]}
        gateway = stack.enter_context(running_gateway(folder, backend_section, sections=_SECTIONS))
        yield Stormy(gateway, backends, random.Random(seed))


def weather(stormy: Stormy, requests: int, say: Callable[[str], None]) -> list[Finding]:
    """Let `requests` clients misbehave; return leftovers and faults."""
    gateway = stormy.gateway
    uvloop.run(_clients(stormy, 2 * AT_ONCE, say, interventions=0))  # the threads and buffers of a gateway in use
    before = _settled(gateway)
    began = time.monotonic()
    clients = uvloop.run(_clients(stormy, requests, say, interventions=INTERVENTIONS))
    took = time.monotonic() - began
    say(f"storm: {requests} clients in {took:.0f} s; {dict(stormy.happened)}; answers {dict(clients.statuses)}")
    for backend in stormy.backends:
        backend.kill()  # with whatever it still meant to say
        backend.start()
    _until(lambda: all(backend.is_up() for backend in stormy.backends), SETTLING)
    _until(lambda: gateway.metric("aiaas_requests_in_flight") == 0, SETTLING)
    return [
        Finding("clients that waited in vain", str(len(stormy.hung)), "0", not stormy.hung),
        *_left_over(gateway, before),
        *memory_of(stormy.resident),
        *uvloop.run(_all_slots(stormy)),
        *_log(gateway),
    ]


# -- during --------------------------------------------------------------------------------------------------------


async def _clients(stormy: Stormy, requests: int, say: Callable[[str], None], *, interventions: int) -> Clients:
    clients = Clients(stormy.port, stormy.gateway.key, stormy.dice)
    room = asyncio.Semaphore(AT_ONCE)
    intervening = asyncio.Lock()  # one at a time: a backend that is killed twice would be started twice
    done = 0

    async def one() -> None:
        nonlocal done
        async with room:
            try:
                await clients.misbehave()
            except HungError as error:
                stormy.hung.append(str(error))
        done += 1
        if interventions and done > requests * WARM_UP and done % 100 == 0:
            stormy.resident.append((done, psutil.Process(stormy.gateway.pid).memory_info().rss))
        if interventions and done % max(1, requests // interventions) == 0:
            async with intervening:
                await _intervene(stormy)
        if done % 2000 == 0:
            say(f"storm: {done} of {requests}")

    async with asyncio.TaskGroup() as group:
        for _ in range(requests):
            group.create_task(one())
    return clients


async def _intervene(stormy: Stormy) -> None:
    """Kill a backend and bring it back, or change the config, or have the same config read again."""
    what = stormy.dice.choice(["backend killed", "config changed", "SIGHUP"])
    stormy.happened[what] += 1
    if what == "backend killed":
        backend = stormy.dice.choice(stormy.backends)
        backend.kill()
        await asyncio.sleep(stormy.dice.random() * 0.5)
        backend.start()
        return
    if what == "config changed":
        path = stormy.gateway.folder / "aiaas.yaml"
        config: dict[str, Any] = yaml.safe_load(path.read_text())
        config["backends"]["vllm"]["max_retries"] = stormy.dice.randint(0, 3)
        fresh = path.with_suffix(".new")
        fresh.write_text(yaml.safe_dump(config))
        fresh.replace(path)
    os.kill(stormy.gateway.pid, signal.SIGHUP)


# -- afterwards ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Left:
    """The resources of a process, as the kernel counts them: open descriptors, connections, threads."""

    descriptors: int
    connections: int
    threads: int

    @classmethod
    def of(cls, gateway: Gateway) -> _Left:
        process = psutil.Process(gateway.pid)
        connections = [each for each in process.net_connections("tcp") if each.status != psutil.CONN_LISTEN]
        return cls(process.num_fds(), len(connections), process.num_threads())


def _settled(gateway: Gateway) -> _Left:
    """The resources left once no connection is open and no config is being read any more (by a process of its own, with
    pipes to it), or once there was time enough for that."""
    process = psutil.Process(gateway.pid)
    with contextlib.suppress(TimeoutError):
        _until(lambda: _Left.of(gateway).connections == 0 and not process.children(), SETTLING)
    return _Left.of(gateway)


def _left_over(gateway: Gateway, before: _Left) -> list[Finding]:
    now = _settled(gateway)
    in_flight, queued = gateway.metric("aiaas_requests_in_flight"), gateway.metric("aiaas_requests_queued")
    return [
        Finding("requests in flight", f"{in_flight:g}", "0", in_flight == 0),
        Finding("requests in the queue", f"{queued:g}", "0", queued == 0),
        Finding("connections", str(now.connections), "0", now.connections == 0),
        Finding(
            "file descriptors", str(now.descriptors), f"{before.descriptors}", now.descriptors <= before.descriptors
        ),
        Finding("threads", str(now.threads), f"at most {MOST_THREADS}", now.threads <= MOST_THREADS),
    ]


def memory_of(resident: Sequence[tuple[float, float]]) -> list[Finding]:
    """Nothing for a storm of less than a few thousand clients, which says nothing of memory."""
    if len(resident) < 20:
        return []
    growth, clients = slope(resident), resident[-1][0] - resident[0][0]
    most = max(BOUND, TAKEN_ONCE / clients)
    seen = f"{growth:+.0f} bytes ({growth * clients / 2**20:+.1f} MiB)"
    return [Finding("growth of memory, a client", seen, f"at most {most:.0f} bytes", growth <= most)]


async def _all_slots(stormy: Stormy) -> list[Finding]:
    """Every slot of the backends and of the key can be had again: streams up to the bound, the rest waits, one too many
    is refused."""
    gateway, room = stormy.gateway, MAX_INFLIGHT * len(stormy.backends)
    body = {"model": ALIAS, "prompt": "x", "stream": True}
    clients = [await Raw.connect(stormy.port, gateway.key) for _ in range(SLOTS + 1)]
    opened = waiting = refused = 0
    try:
        for number, client in enumerate(clients):
            client.send(client.request(body, path=DRIPS))
            if number < room or number == SLOTS:
                with contextlib.suppress(asyncio.IncompleteReadError):
                    status = (await client.head()).status
                    opened, refused = opened + (status == 200), refused + (status == 429)
            elif number == SLOTS - 1:
                with contextlib.suppress(TimeoutError):
                    _until(lambda: gateway.metric("aiaas_requests_queued") == SLOTS - room, 1.0)
                waiting = int(gateway.metric("aiaas_requests_queued"))
    finally:
        for client in clients:
            client.reset()
    return [
        Finding("slots of the endpoints that can be had", str(opened), str(room), opened == room),
        Finding("slots of the key behind them, in the queue", str(waiting), str(SLOTS - room), waiting == SLOTS - room),
        Finding("refused with 429 beyond those", str(refused), "1", refused == 1),
    ]


def _log(gateway: Gateway) -> list[Finding]:
    """No traceback, no crash, and a line for each request."""
    stdout = (gateway.folder / "stdout.log").read_text()
    stderr = (gateway.folder / "stderr.log").read_text()
    internal = stdout.count('"event":"internal_error"') + stdout.count('"status":500,"error_code":"internal_error"')
    trouble = internal + stdout.count("Traceback") + stdout.count('"event":"library"') + stderr.count("Traceback")
    return [Finding("tracebacks and internal errors in the log", str(trouble), "0", trouble == 0)]


def _until(holds: Callable[[], bool], within: float) -> None:
    """Raises TimeoutError where it does not hold `within` seconds."""
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)
