"""aiaas.proxy.reload: what needs a restart, and readings that overlap. Reloading itself is tested in a server's life
(test_server.py)."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from aiaas.keys.records import render_records
from aiaas.keys.ring import EMPTY_RING
from aiaas.keys.verifier import Verifier
from aiaas.limits.memory import MemoryStore
from aiaas.plan.read import read_plan
from aiaas.proxy.app import Gateway
from aiaas.proxy.log import JsonLog
from aiaas.proxy.metrics import Metrics
from aiaas.proxy.reload import Reloader, needs_restart
from aiaas.proxy.usage import UsageRecorder
from tests.proxy.conftest import new_key, plan_of

BASE: dict[str, Any] = {"backends": {"a": {"url": "http://a:1", "models": ["m"]}}}


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({}, []),
        ({"server": {"port": 9}}, ["server.port"]),
        ({"server": {"max_header_size": "16KiB", "host": "::1"}}, ["server.host", "server.max_header_size"]),
        ({"server": {"tls": {"cert_file": "c", "key_file": "k"}}}, ["server.tls"]),
        ({"monitoring": {"metrics_port": 9}}, ["monitoring.metrics_port"]),
        ({"monitoring": {"prometheus": False}}, ["monitoring.prometheus"]),
        ({"monitoring": {"log_level": "debug"}, "server": {"max_body_size": "1MiB", "drain_timeout": "1s"}}, []),
        ({"backends": {"b": {"url": "http://b:1", "models": ["n"]}}}, []),
        (
            {"rate_limit": {"store": "redis://r", "on_store_failure": "deny"}},
            ["rate_limit.store"],
        ),
    ],
    ids=[
        "nothing",
        "port",
        "two",
        "TLS",
        "metrics port",
        "metrics off",
        "what reloads",
        "backends",
        "a store",
    ],
)
def test_only_sockets_and_the_store_need_a_restart(change: dict[str, Any], fields: list[str]) -> None:
    """Everything else is in force at once; engines decide for themselves (test_engines.py)."""
    assert needs_restart(plan_of(BASE), plan_of(BASE | change)) == fields


def test_other_files_of_a_certificate_need_none() -> None:
    """They are read like renewed ones."""
    tls = {"cert_file": "c", "key_file": "k"}
    begun = plan_of(BASE | {"server": {"tls": tls}})
    assert needs_restart(begun, plan_of(BASE | {"server": {"tls": tls | {"cert_file": "d"}}})) == []
    assert needs_restart(begun, plan_of(BASE)) == ["server.tls"]


async def test_keys_of_the_file_before_never_replace_those_of_the_new_one(tmp_path: Path) -> None:
    """A second SIGHUP comes while a config that names another key file is read: it does not mean the old file."""
    config, slow = tmp_path / "aiaas.yaml", tmp_path / "new.yaml"
    (tmp_path / "old.yaml").write_text(render_records([new_key("alice").record]))
    os.mkfifo(slow)  # whoever reads it waits for a writer

    def write(file: str) -> None:
        config.write_text(yaml.safe_dump({**BASE, "auth": {"keys_file": file}}))

    write("old.yaml")
    plan, _ = read_plan(config, {})
    assert plan is not None
    log, metrics = JsonLog(lambda _: True, lambda: 0.0, "info"), Metrics()
    verifier = Verifier(EMPTY_RING)
    gateway = Gateway(plan, verifier, MemoryStore(), log, metrics, UsageRecorder(None, log, metrics))
    reloader = Reloader(gateway, {}, lambda _plan: [], lambda _plan: None)
    await reloader.reload_keys()
    write("new.yaml")
    reading = [asyncio.create_task(reloader.reload_config())]
    async with asyncio.timeout(5):
        while True:  # opens only once somebody reads
            try:
                writer = os.open(slow, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:
                await asyncio.sleep(0.005)
        reading.append(asyncio.create_task(reloader.reload_keys()))
        await asyncio.sleep(0.01)
        slow.unlink()
        slow.write_text(bob := render_records([new_key("bob").record]))
        os.write(writer, bob.encode())
        os.close(writer)
        await asyncio.gather(*reading)
    assert [record.name for record in verifier.ring.records] == ["bob"]
    verifier.close()
