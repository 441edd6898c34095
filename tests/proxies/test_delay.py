"""Each event of a stream arrives when it is generated, through each proxy."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from typing import Final

import pytest

from tests.proxies.client import Target, delays
from tests.proxies.conftest import Site, StartProxy
from tests.proxies.servers import Proxy, version_of
from tests.proxies.upstream import Stamped

pytestmark = [pytest.mark.proxies, pytest.mark.asyncio(loop_scope="session")]

INTERVAL: Final = 0.02  # seconds between two events
EVENTS: Final = 200
P50: Final = 0.002  # seconds
# HAProxy's lumps are those of a client that acknowledges late: 40 to 200 ms.
LUMPS: Final = 0.03


async def measured(site: Site, *targets: Target, events: int = EVENTS) -> list[Sequence[float]]:
    """The delays of one stream through each target, all at the same time."""
    for _ in targets:
        site.engine.play(Stamped(events, INTERVAL))
    found = await asyncio.gather(*map(delays, targets))
    assert [len(each) for each in found] == [events] * len(targets)
    return list(found)


def shown(found: Sequence[float]) -> str:
    """p50 and p99 in milliseconds."""
    cuts = statistics.quantiles(found, n=100)
    return f"p50 {cuts[49] * 1000:.2f} ms, p99 {cuts[98] * 1000:.2f} ms"


async def arrives_at_once(site: Site, target: Target, what: str, events: int = EVENTS) -> None:
    """Half of the events take less than P50 from the engine's write to the client's read; measured again once, since
    the machine may be busy."""
    for _ in range(2):
        alone, found = await measured(site, site.direct, target, events=events)
        print(f"\n{what}: {shown(found)}; without it {shown(alone)}")
        if statistics.median(found) < P50:
            return
        print("measured again")
    pytest.fail(f"{what}: {shown(found)}")


async def test_events_arrive_as_they_are_generated(site: Site, proxy: Proxy) -> None:
    """An event takes less than 2 ms through the proxy and the gateway."""
    await arrives_at_once(site, site.through(proxy), f"{proxy.name}, {version_of(proxy.name)}")


@pytest.mark.parametrize("name", ["haproxytech", "haproxy-ingress"])
async def test_haproxy_lumps_nothing_without_tls(site: Site, start_proxy: StartProxy, name: str) -> None:
    """Where TLS ends in front of HAProxy, the rendered http-no-delay is what lets events through at once."""
    running = start_proxy(name, site.port, tls=False)
    await arrives_at_once(site, site.through(running, tls=False), f"{name} without TLS", EVENTS // 2)


@pytest.mark.parametrize(
    ("name", "option"),
    [("haproxytech", "backend-config-snippet"), ("haproxy-ingress", "config-backend"), ("openshift", None)],
)
async def test_haproxy_lumps_events_without_the_option(
    site: Site, start_proxy: StartProxy, name: str, option: str | None
) -> None:
    """Over plain HTTP and without http-no-delay, which OpenShift's router cannot be told, events come in lumps."""
    running = start_proxy(name, site.port, without=(option,) if option else (), tls=False)
    [found] = await measured(site, site.through(running, tls=False), events=100)
    print(f"\n{name} without http-no-delay and TLS: {shown(found)}")
    assert statistics.median(found) > LUMPS


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("haproxytech", "backend-config-snippet"),
        ("haproxy-ingress", "config-backend"),
        ("nginx-inc", "proxy-buffering"),
        ("ingress-nginx", "proxy-buffering"),
    ],
)
async def test_harmless_defaults_delay_nothing(site: Site, start_proxy: StartProxy, name: str, option: str) -> None:
    """HAProxy holds nothing back in front of TLS; nginx heeds the gateway's `x-accel-buffering: no`."""
    running = start_proxy(name, site.port, without=(option,))
    await arrives_at_once(site, site.through(running), f"{name} without {option}", EVENTS // 2)
