"""`python -m tests.siege`: the floods that once killed a gateway in 512 MiB, with innocent clients beside them.

Needs root on Linux (a memory cgroup). Exit 1 where the gateway died, three probes in a row failed, or more than one
innocent request in a hundred did.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop

from tests.certificate import self_signed
from tests.cgroup import MEMORY, Memory, bounded_memory
from tests.e2e.processes import Gateway, keys, running_gateway, running_simulator
from tests.siege.innocents import Innocents, Seen, worst
from tests.soak.finding import Finding, as_text

# As if the pod had a core of its own, whatever else the machine does.
FIRST = ("nice", "-n", "-15")
# The share of requests that may fail; and the number of probes in a row after which a kubelet kills the pod.
FEW, KILLS = 0.01, 3
CALM, AFTER = 5.0, 3.0  # seconds before and behind the flood


@dataclass(frozen=True, slots=True)
class Flood:
    """So many connections of a kind (`attack.py`), under TLS or not."""

    what: str
    kind: str
    count: int
    tls: bool


FLOODS = (
    Flood("9,500 silent connections under TLS", "silent", 9_500, True),
    Flood("13,500 unfinished heads of 31 kB", "heads", 13_500, False),
    Flood("8,000 bodies held back by one key", "bodies", 8_000, False),
    Flood("9,500 unfinished handshakes", "hello", 9_500, True),
    Flood("9,500 announced hellos of 128 KiB", "huge", 9_500, True),
    Flood("9,500 connections that asked for /health", "asked", 9_500, False),
)


def siege(folder: Path, floods: Sequence[Flood], seconds: float, say: Callable[[str], None]) -> list[Finding]:
    """Each flood against a gateway of its own."""
    findings = []
    with running_simulator(folder / "simulator.log") as engine:
        for number, flood in enumerate(floods):
            place = folder / str(number)
            place.mkdir()
            cert, key = self_signed(place)
            server = {"tls": {"cert_file": str(cert), "key_file": str(key)}} if flood.tls else {}
            with (
                bounded_memory() as memory,
                running_gateway(
                    place, {"url": engine}, sections={"server": server}, prefix=(*memory.prefix, *FIRST)
                ) as gateway,
            ):
                findings += uvloop.run(under(flood, gateway, memory, seconds, say))
    return findings


async def under(
    flood: Flood, gateway: Gateway, memory: Memory, seconds: float, say: Callable[[str], None]
) -> list[Finding]:
    """One flood: the gateway's memory, and the results of the innocent clients."""
    attacker = keys(gateway.folder, "create", "attacker", "--rpm", "1")
    await asyncio.sleep(1.5)  # until the key is known
    port = gateway.url.rpartition(":")[2]
    context = ssl.create_default_context() if flood.tls else None
    if context is not None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    innocents = Innocents(int(port), gateway.key, context)
    innocents.begin()
    await asyncio.sleep(CALM)
    process = psutil.Process(gateway.pid)
    begun, cpu = time.monotonic(), sum(process.cpu_times()[:2])
    command = ["-m", "tests.siege.attack", flood.kind, port, str(flood.count), str(seconds), attacker]
    attack = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    output, _ = await attack.communicate()
    ended = time.monotonic()
    await asyncio.sleep(AFTER)
    await innocents.end()
    alive = gateway.process.poll() is None
    if alive:
        used = sum(process.cpu_times()[:2]) - cpu
        say(f"  CPU {used:.1f} s in {ended - begun:.1f} s, load {os.getloadavg()[0]:.1f}")
    say(f"{flood.what}: {json.loads(output)}, {turned_away(gateway) if alive else 'the gateway is dead'}")
    calm = innocents.kept.between(begun - CALM, begun)
    kept, new, probes = (seen.between(begun, ended) for seen in (innocents.kept, innocents.new, innocents.probes))
    say(f"  calm: p50 {calm.quantile(0.5) * 1000:.0f} ms, p99 {calm.quantile(0.99) * 1000:.0f} ms")
    for why in worst((kept, new, probes)):
        say(f"  failed: {why}")
    peak = memory.peak
    return [
        Finding(f"{flood.what}: memory", f"{peak / 2**20:.0f} MiB", "alive below 512 MiB", alive and peak < MEMORY),
        Finding("  kept connections", met(kept), "at most 1% fail", kept.failed <= FEW),
        Finding("  new connections", met(new), "at most 1% fail", new.failed <= FEW),
        Finding("  probes", met(probes), "never three in a row", probes.failed_in_a_row < KILLS),
    ]


def met(seen: Seen) -> str:
    """The results of one kind of innocent client during the flood."""
    p50, p99 = (1000 * seen.quantile(part) for part in (0.5, 0.99))
    return f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, {len(seen.failures)} of {seen.count} failed"


def turned_away(gateway: Gateway) -> dict[str, float]:
    """The gateway's own count."""
    reasons = ("evicted", "full", "address", "descriptors")
    name = "aiaas_connections_turned_away_total"
    return {reason: count for reason in reasons if (count := gateway.metric(name, reason=reason))}


def main(arguments: list[str]) -> int:
    """Run the siege with the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.siege", description="Floods of connections in 512 MiB.")
    parser.add_argument("--seconds", type=float, default=20.0, help="that each flood takes")
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(flood.kind for flood in FLOODS)}; all")
    options = parser.parse_args(arguments)
    floods = [flood for flood in FLOODS if not options.kinds or flood.kind in options.kinds]
    with tempfile.TemporaryDirectory(prefix="aiaas-siege-") as folder:
        findings = siege(Path(folder), floods, options.seconds, lambda text: print(text, file=sys.stderr, flush=True))
    print(as_text(findings))
    return 0 if all(each.holds for each in findings) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
