"""The checks of `aiaas doctor` behind the network: usage store, shared store of limits, backends, and their clocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from aiaas.cli.askbackends import ask_backends
from aiaas.cli.diagnosis import Diagnosis
from aiaas.errors import EnvironmentFault
from aiaas.limits.connection import StoreAwayError, StoreConnection, connect, named
from aiaas.limits.redis_url import RedisUrl
from aiaas.limits.resp import RedisReplyError, Reply
from aiaas.limits.topology import find_primary
from aiaas.limits.usage import UsageStore, UsageStoreError, day_of
from aiaas.plan.model import Plan
from aiaas.plan.read import Reading
from aiaas.proxy.limit_store import store_tls
from aiaas.proxy.usage import usage_store

# Seconds between two clocks that nobody notices. Beyond it, windows of limits and the ends of keys differ.
CLOCK_TOLERANCE: Final = 2.0
# Seconds that the store gets for one command here; the gateway gives it store_timeout.
STORE_ANSWERS_WITHIN: Final = 5.0

Clocks = Mapping[str, float]


def check_usage_store(plan: Plan) -> Iterator[Diagnosis]:
    """The store of usage can be read."""
    try:
        store = usage_store(plan)
    except EnvironmentFault:  # the files of rediss:// are the config's finding
        return
    if store is None:
        return
    try:
        asyncio.run(_read_today(store))
    except UsageStoreError as error:
        yield Diagnosis("FAIL", "usage", f"{error}; `aiaas usage` and the counts of users need it")
    else:
        yield Diagnosis("ok", "usage", f"{store!r} can be read")


async def _read_today(store: UsageStore) -> None:
    try:
        await store.read(day_of(time.time()))
    finally:
        await store.close()


def check_store(plan: Plan) -> tuple[list[Diagnosis], Clocks]:
    """The shared store answers, takes scripts, and its version; and by how much its clock is ahead."""
    url = plan.limits.store_url
    if url is None:
        return [], {}
    try:
        seen, ahead = asyncio.run(_ask_store(url))
    except (StoreAwayError, RedisReplyError, EnvironmentFault) as error:
        fix = f"meanwhile on_store_failure: {plan.limits.on_store_failure} holds; start it, or fix rate_limit.store"
        return [Diagnosis("FAIL", "store", f"{url.url}: {error}; {fix}")], {}
    return [Diagnosis("ok", "store", seen)], {f"the store {url.url}": ahead}


async def _ask_store(url: RedisUrl) -> tuple[str, float]:
    tls = store_tls(url)
    place = await find_primary(url, tls) if url.kind == "sentinel" else url.places[0]
    connection = await connect(url, place, tls, STORE_ANSWERS_WITHIN)
    try:
        began = time.perf_counter()
        await connection.call("PING")
        took = time.perf_counter() - began
        ahead = _seconds(await connection.call("TIME")) - time.time()
        version = _version(await connection.call("INFO", "server"))
        await _try_script(connection)
    finally:
        connection.lose("asked")
    return f"{named(url, place)}: {version}, PING in {took * 1000:.1f} ms", ahead


async def _try_script(connection: StoreConnection) -> None:
    """Limits are decided by a script. Raises StoreAwayError where this user may not run one."""
    try:
        await connection.call("EVAL", "return 1", 0)
    except RedisReplyError as error:
        raise StoreAwayError(f"its user may not run scripts ({error}); allow +eval +evalsha") from error


def _seconds(reply: Reply) -> float:
    match reply:
        case [bytes() as seconds, bytes() as micros]:
            return int(seconds) + int(micros) / 1e6
    raise StoreAwayError("it does not answer TIME as a Redis does")


def _version(reply: Reply) -> str:
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if "valkey_version" in fields:
        return f"Valkey {fields['valkey_version']}"
    return f"Redis {fields.get('redis_version', 'of unknown version')}"


def check_backends(reading: Reading) -> tuple[list[Diagnosis], Clocks]:
    """Each address lists the models of the config; and by how much its clock is ahead."""
    answers = ask_backends(reading)
    findings = []
    for address in answers.addresses:
        check = f"backend {address.backend}"
        found = [
            Diagnosis("FAIL" if problem.severity == "error" else "warn", check, problem.message)
            for problem in answers.problems
            if problem.path.split(".")[:2] == ["backends", address.backend] and problem.message.startswith(address.url)
        ]
        lists = f"{address.url}: lists {', '.join(address.models[:10])}"
        findings += found or [Diagnosis("ok", check, lists)]
    findings += [Diagnosis("ok", "backends", line) for line in answers.lines]
    return findings, {address.url: address.ahead for address in answers.addresses if address.ahead is not None}


def check_clocks(ahead: Clocks) -> Iterable[Diagnosis]:
    """This machine's clock against the others'."""
    off = {name: seconds for name, seconds in ahead.items() if abs(seconds) > CLOCK_TOLERANCE}
    for name, seconds in off.items():
        seen = f"{name} is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} this machine"
        yield Diagnosis("warn", "clock", f"{seen}; one of the two needs NTP (timedatectl set-ntp true)")
    if ahead and not off:
        yield Diagnosis("ok", "clock", f"within {CLOCK_TOLERANCE:g} s of {', '.join(ahead)}")
