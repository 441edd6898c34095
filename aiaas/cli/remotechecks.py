"""The checks of `aiaas doctor` behind the network: usage store, shared store of limits, backends, and their clocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from aiaas.cli.askbackends import ask_backends
from aiaas.cli.askstore import question_store
from aiaas.cli.diagnosis import Diagnosis
from aiaas.errors import EnvironmentFault
from aiaas.limits.connection import StoreAwayError
from aiaas.limits.resp import RedisReplyError
from aiaas.limits.usage import UsageStore, UsageStoreError, day_of
from aiaas.plan.model import Plan
from aiaas.plan.read import Reading
from aiaas.proxy.usage import usage_store

# Seconds between two clocks that nobody notices. Beyond it, windows of limits and the ends of keys differ.
CLOCK_TOLERANCE: Final = 2.0

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
        seen, ahead = asyncio.run(question_store(url))
    except (StoreAwayError, RedisReplyError, EnvironmentFault) as error:
        fix = f"meanwhile on_store_failure: {plan.limits.on_store_failure} holds; start it, or fix rate_limit.store"
        return [Diagnosis("FAIL", "store", f"{url.url}: {error}; {fix}")], {}
    return [Diagnosis("ok", "store", seen)], {f"the store {url.url}": ahead}


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
