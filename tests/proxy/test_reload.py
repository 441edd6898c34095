"""aiaas.proxy.reload: applied changes, changes that wait for a restart, and overlapping reads. Reloading in a
server's life is tested in test_server.py."""

import asyncio
import json
import os
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from aiaas.errors import EnvironmentFault
from aiaas.keys.records import render_records
from aiaas.keys.ring import EMPTY_RING, KeyRing
from aiaas.keys.verifier import Verifier
from aiaas.limits.memory import MemoryStore
from aiaas.plan.model import Plan
from aiaas.plan.read import read_plan
from aiaas.proxy.client.tls import open_tls
from aiaas.proxy.gateway import Gateway
from aiaas.proxy.reload import Reloader
from aiaas.proxy.telemetry.log import LEVELS, JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.telemetry.record import Record
from aiaas.proxy.usage import UsageRecorder
from tests.certificate import self_signed
from tests.proxy.conftest import new_key
from tests.waiting import opened

BASE: dict[str, Any] = {"backends": {"a": {"url": "http://a:1", "models": ["m"]}}}
ENGINE: dict[str, Any] = {"engine": {"kind": "simulator"}, "models": ["e"]}


class Reloading:
    """A gateway that began with a config file, and its reloader, which the test calls."""

    def __init__(self, folder: Path, config: dict[str, Any], *overlays: Path) -> None:
        self.file = folder / "aiaas.yaml"
        self.write(config)
        plan, problems = read_plan(self.file, {}, overlays)
        assert plan is not None, problems
        self.lines: list[bytes] = []
        self.log = JsonLog(self.lines.append, lambda: 0.0, plan.monitoring.log_level)
        self.metrics = Metrics()
        self.verifier = Verifier(EMPTY_RING)
        usage = UsageRecorder(None, self.log, self.metrics)
        self.gateway = Gateway(plan, self.verifier, MemoryStore(), self.log, self.metrics, usage)
        self.plans: list[Plan] = []
        self.reloader = Reloader(self.gateway, {}, lambda _engines: (), self.plans.append)

    def write(self, config: dict[str, Any]) -> None:
        """Another config."""
        self.file.write_text(yaml.safe_dump(config, sort_keys=False))

    async def reload(self, config: dict[str, Any]) -> list[dict[str, Any]]:
        """Apply another config and return its log lines."""
        self.write(config)
        await self.reloader.reload_config()
        return self.logged()

    def logged(self) -> list[dict[str, Any]]:
        """The lines logged since the last call."""
        self.log.flush()
        lines = [json.loads(line) for block in self.lines for line in block.splitlines()]
        self.lines.clear()
        return lines

    def reloads(self, what: str) -> dict[str, float]:
        """The counts of reads by their result."""
        marks = [
            (result, f'aiaas_reloads_total{{result="{result}",what="{what}"}} ') for result in ("success", "failure")
        ]
        lines = self.metrics.expose().decode().splitlines()
        counts = {result: float(line[len(m) :]) for result, m in marks for line in lines if line.startswith(m)}
        return {result: count for result, count in counts.items() if count}

    def in_force(self, what: str) -> bool | None:
        """Whether the metrics say that the file is in force; None without a word on it."""
        mark = f'aiaas_reload_ok{{what="{what}"}} '
        lines = self.metrics.expose().decode().splitlines()
        return next((line.endswith(" 1.0") for line in lines if line.startswith(mark)), None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a key file."""
    (tmp_path / "keys.yaml").write_text(render_records([new_key("alice").record]))
    return tmp_path


def owners(ring: KeyRing) -> list[str]:
    """The names of a ring's keys."""
    return [ring._by_id[key_id].principal.name for key_id in sorted(ring.ids)]


def events(lines: list[dict[str, Any]]) -> list[str]:
    """The names of the keys."""
    return [line["event"] for line in lines]


async def watched(site: Reloading, event: str) -> None:
    """Run the watches until this event is logged."""
    tasks = [asyncio.create_task(watch.run()) for watch in site.reloader.watches()]
    try:
        async with asyncio.timeout(10):
            while event not in events(site.logged()):
                await asyncio.sleep(0.01)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# -- config --------------------------------------------------------------------------------------------------------


async def test_a_changed_config_is_in_force(folder: Path) -> None:
    """Plan, log level and metrics; a follower of Plans is called once."""
    site = Reloading(folder, BASE)
    lines = await site.reload(BASE | {"monitoring": {"log_level": "error"}, "request": {"max_choices": 3}})
    plan = site.gateway.active.plan
    assert (plan.request.max_choices, site.plans, site.log.threshold) == (3, [plan], LEVELS["error"])
    assert lines == []  # an info line, below the new level
    assert site.reloads("config") == {"success": 1}
    lines = await site.reload(BASE | {"auth": {"enabled": False}})
    assert events(lines) == ["config_reloaded"]
    assert lines[0]["config_digest"] == site.gateway.active.plan.digest
    assert "authentication is off" in lines[0]["problems"][0]
    assert len(site.plans) == 2


async def test_a_changed_overlay_is_in_force(folder: Path) -> None:
    """The watch sees it; a broken or missing one keeps the Plan, and the log names it and its line."""
    over = folder / "prod.yaml"
    over.write_text("request: {max_choices: 3}\n")
    site = Reloading(folder, BASE, over)
    assert site.gateway.active.plan.request.max_choices == 3
    over.write_text("request: {max_choices: 30}\n")
    await watched(site, "config_reloaded")
    active = site.gateway.active
    assert (active.plan.request.max_choices, active.plan.files) == (30, (site.file, over))
    (line,) = await site.reload(BASE)
    assert line["event"] == "config_unchanged"
    over.write_text("# broken\nrequest: {max_choices: many}\n")
    (line,) = await site.reload(BASE)
    assert line["event"] == "config_not_reloaded"
    assert line["problems"][0].startswith(f"{over}:2:24: error ")
    over.unlink()
    (line,) = await site.reload(BASE)
    assert line["event"] == "config_not_reloaded"
    assert str(over) in line["error"]
    assert site.gateway.active == active


async def test_an_unchanged_config_is_said_to_be_so(folder: Path) -> None:
    """And no object is replaced."""
    site = Reloading(folder, BASE)
    active = site.gateway.active
    lines = await site.reload(BASE | {"version": 1})
    assert [(line["event"], line["config_digest"]) for line in lines] == [("config_unchanged", active.plan.digest)]
    assert (site.gateway.active, site.plans, site.reloads("config")) == (active, [], {"success": 1})


async def test_a_broken_config_changes_nothing(folder: Path) -> None:
    """Nor does a missing one."""
    site = Reloading(folder, BASE)
    active = site.gateway.active
    (line,) = await site.reload(BASE | {"nonsense": 1})
    assert (line["event"], line["level"]) == ("config_not_reloaded", "error")
    assert "nonsense" in line["problems"][0]
    assert site.in_force("config") is False
    site.file.unlink()
    await site.reloader.reload_config()
    (line,) = site.logged()
    assert line["event"] == "config_not_reloaded"
    assert str(site.file) in line["error"]
    assert (site.gateway.active, site.plans, site.reloads("config")) == (active, [], {"failure": 2})
    await site.reload(BASE)
    assert (site.gateway.active, site.in_force("config")) == (active, True)


async def test_a_gateway_without_a_file_has_nothing_to_reload(folder: Path) -> None:
    """The gateway's Plan came from elsewhere."""
    site = Reloading(folder, BASE)
    site.gateway.replace_plan(replace(site.gateway.active.plan, source=None))
    reloader = Reloader(site.gateway, {}, lambda _engines: (), site.plans.append)
    await reloader.reload_config()
    assert (site.logged(), site.reloads("config")) == ([], {})


async def test_the_keys_of_another_file_come_first(folder: Path) -> None:
    """The keys are there when the Plan is; an unchanged key file is not read."""
    site = Reloading(folder, BASE)
    await site.reloader.reload_keys()
    (folder / "other.yaml").write_text(render_records([new_key("bob").record]))
    site.logged()
    assert events(await site.reload(BASE | {"server": {"heartbeat": "3s"}})) == ["config_reloaded"]
    lines = await site.reload(BASE | {"auth": {"keys_file": "other.yaml"}})
    assert events(lines) == ["keys_loaded", "config_reloaded"]
    assert site.reloads("keys") == {"success": 2}
    assert owners(site.verifier.ring) == ["bob"]
    site.verifier.close()


async def test_all_files_are_watched(folder: Path) -> None:
    """Config, keys and authorities always, certificate and key where there are; SIGHUP wakes all."""
    certificate, key = self_signed(folder)
    tls = {"cert_file": certificate.name, "key_file": key.name}
    site = Reloading(folder, BASE | {"server": {"tls": tls}})
    opened = open_tls(site.gateway.active.plan.server.tls)
    assert opened is not None
    site.reloader.follow_tls(opened)
    site.logged()
    tasks = [asyncio.create_task(watch.run()) for watch in site.reloader.watches()]
    site.reloader.wake()
    seen: list[str] = []
    async with asyncio.timeout(10):
        while {"keys_loaded", "config_unchanged"} - set(seen):
            await asyncio.sleep(0.01)
            seen += events(site.logged())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    site.verifier.close()


# -- TLS -----------------------------------------------------------------------------------------------------------


def pair(folder: Path, name: str) -> dict[str, str]:
    """A new certificate and its key in `folder / name`, as the config names them."""
    (folder / name).mkdir()
    certificate, key = self_signed(folder / name)
    return {"cert_file": f"{name}/{certificate.name}", "key_file": f"{name}/{key.name}"}


async def test_tls_follows_other_files_and_another_version(folder: Path) -> None:
    """If the new files cannot be used the old pair stays until they can, and so does the TLS version."""
    site = Reloading(folder, BASE | {"server": {"tls": pair(folder, "one")}})
    tls = open_tls(site.gateway.active.plan.server.tls)
    assert tls is not None
    site.reloader.follow_tls(tls)
    missing = {"cert_file": "two/cert.pem", "key_file": "two/key.pem", "min_version": "1.3"}
    lines = await site.reload(BASE | {"server": {"tls": missing}})
    assert events(lines) == ["tls_not_reloaded", "config_reloaded"]
    assert (tls.plan.cert_file.parent.name, tls.context.minimum_version) == ("one", ssl.TLSVersion.TLSv1_2)
    pair(folder, "two")
    tasks = [asyncio.create_task(watch.run()) for watch in site.reloader.watches()]
    async with asyncio.timeout(10):
        while site.reloads("tls") != {"success": 1, "failure": 1}:
            await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (tls.plan.cert_file.parent.name, tls.context.minimum_version) == ("two", ssl.TLSVersion.TLSv1_3)
    site.logged()
    (folder / "two" / "cert.pem").rename(folder / "aside")  # a reader now finds one file missing
    assert events(await site.reload(BASE | {"server": {"tls": missing, "heartbeat": "3s"}})) == ["config_reloaded"]
    lines = await site.reload(BASE)
    assert lines[-1]["fields"] == ["server.tls"]
    await site.reloader.reload_tls()
    assert events(site.logged()) == ["tls_not_reloaded"]


async def test_a_slow_reading_never_replaces_the_pair_of_another_plan(folder: Path) -> None:
    """A certificate is read for SIGHUP while a config names other files: those are in force at the end."""
    site = Reloading(folder, BASE | {"server": {"tls": pair(folder, "one")}})
    tls = open_tls(site.gateway.active.plan.server.tls)
    assert tls is not None
    site.reloader.follow_tls(tls)
    slow = tls.plan.cert_file
    pem = slow.read_bytes()
    slow.unlink()
    os.mkfifo(slow)
    reading = asyncio.create_task(site.reloader.reload_tls())
    async with asyncio.timeout(5):
        writer = await opened(slow)
        slow.unlink()
        slow.write_bytes(pem)
        second = asyncio.create_task(site.reload(BASE | {"server": {"tls": pair(folder, "two")}}))
        while site.plans == []:
            await asyncio.sleep(0.005)
        await asyncio.wait([second], timeout=0.1)  # it waits for the first, or would be done by now
        os.write(writer, pem)
        os.close(writer)
        await asyncio.gather(reading, second)
    assert tls.plan.cert_file.parent.name == "two"


async def test_a_certificate_that_ends_soon_is_logged(folder: Path) -> None:
    """When it is first used, and when a renewed one ends soon too; a good one is not logged."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)

    def write(ends: datetime | None) -> None:
        made = authority.issue_cert("localhost", not_after=ends, key_type=trustme.KeyType.ECDSA)
        (folder / "tls.key").write_bytes(made.private_key_pem.bytes())
        (folder / "tls.crt").write_bytes(made.cert_chain_pems[0].bytes())

    write(soon := datetime.now(UTC) + timedelta(hours=1))
    site = Reloading(folder, BASE | {"server": {"tls": {"cert_file": "tls.crt", "key_file": "tls.key"}}})
    tls = open_tls(site.gateway.active.plan.server.tls)
    assert tls is not None
    site.reloader.follow_tls(tls)
    (line,) = site.logged()
    assert (line["event"], line["file"]) == ("tls_certificate", str(folder / "tls.crt"))
    assert f"expires on {soon:%Y-%m-%d}" in line["problem"]
    write(soon)
    await site.reloader.reload_tls()
    assert events(site.logged()) == ["tls_reloaded", "tls_certificate"]
    write(None)
    await site.reloader.reload_tls()
    assert events(site.logged()) == ["tls_reloaded"]


async def test_without_tls_there_is_nothing_to_follow(folder: Path) -> None:
    """Neither the Plan nor the port has TLS."""
    site = Reloading(folder, BASE)
    await site.reloader.reload_tls()
    assert (site.logged(), site.reloads("tls")) == ([], {})


# -- authorities of backends ---------------------------------------------------------------------------------------


def trusting(file: str) -> dict[str, Any]:
    """A config whose backend is verified with that file."""
    backend = {"url": "https://a:1", "models": ["m"], "tls": {"ca_file": file}}
    return {"backends": {"a": backend}}


async def test_authorities_are_read_at_the_start_and_when_they_change(folder: Path) -> None:
    """A broken file leaves the last ones in force."""
    file = folder / "ca.pem"
    file.write_bytes(trustme.CA().cert_pem.bytes())
    site = Reloading(folder, trusting("ca.pem"))
    await site.reloader.begin_authorities()
    first = site.gateway.tls.made[file]
    file.write_bytes((new := trustme.CA()).cert_pem.bytes())
    tasks = [asyncio.create_task(watch.run()) for watch in site.reloader.watches()]
    site.reloader.wake()
    async with asyncio.timeout(10):
        while site.gateway.tls.made[file] is first:
            await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    (line,) = [line for line in site.logged() if line["event"] == "authorities_reloaded"]
    assert line["file"] == str(file)
    assert site.gateway.tls.made[file].get_ca_certs(binary_form=True) == [
        ssl.PEM_cert_to_DER_cert(new.cert_pem.bytes().decode())
    ]
    kept = site.gateway.tls.made[file]
    file.write_text("broken")
    await site.reloader.reload_authorities()
    (line,) = site.logged()
    error = f"backends.a.tls.ca_file: {file} does not contain certificates in PEM"
    assert (line["event"], line["level"], line["error"]) == ("authorities_not_reloaded", "error", error)
    assert site.gateway.tls.made[file] is kept
    assert site.reloads("authorities") == {"success": 1, "failure": 1}


async def test_a_gateway_does_not_start_with_broken_authorities(folder: Path) -> None:
    """The message names the field and the file."""
    site = Reloading(folder, trusting("ca.pem"))
    with pytest.raises(EnvironmentFault, match=r"cannot use backends\.a\.tls\.ca_file: .*/ca\.pem does not exist"):
        await site.reloader.begin_authorities()


async def test_a_config_with_broken_authorities_is_refused(folder: Path) -> None:
    """Its backend would fail every request; with the file the config is put in force, and the file is watched."""
    site = Reloading(folder, BASE)
    (line,) = await site.reload(trusting("ca.pem"))
    assert line["event"] == "config_not_reloaded"
    assert line["error"].startswith(f"backends.a.tls.ca_file: {folder}/ca.pem does not exist; fix it")
    assert site.plans == []
    (folder / "ca.pem").write_bytes(trustme.CA().cert_pem.bytes())
    assert events(await site.reload(trusting("ca.pem"))) == ["authorities_reloaded", "config_reloaded"]
    assert len(site.plans) == 1
    await site.reloader.reload_authorities()
    assert events(site.logged()) == ["authorities_reloaded"]
    (folder / "ca.pem").write_text("broken")  # its last good content is still there
    assert events(await site.reload(trusting("ca.pem") | {"server": {"heartbeat": "3s"}})) == ["config_reloaded"]
    await site.reloader.reload_authorities()
    assert 'aiaas_reload_ok{what="authorities"} 0.0' in site.metrics.expose().decode()
    site.logged()
    assert events(await site.reload(BASE)) == ["config_reloaded"]
    assert 'aiaas_reload_ok{what="authorities"} 1.0' in site.metrics.expose().decode()


async def test_without_authorities_there_is_nothing_to_read(folder: Path) -> None:
    """Neither a line nor a count."""
    site = Reloading(folder, BASE)
    await site.reloader.begin_authorities()
    await site.reloader.reload_authorities()
    assert (site.logged(), site.reloads("authorities")) == ([], {})


# -- what waits for a restart ----------------------------------------------------------------------------------------


async def test_change_that_needs_a_restart_is_not_applied(folder: Path) -> None:
    """The field is named on each read, and no longer once it is undone; the rest holds at once."""
    site = Reloading(folder, BASE)
    port = {"server": {"port": 99, "heartbeat": "3s"}}
    lines = await site.reload(BASE | port)
    assert events(lines) == ["config_reloaded", "restart_needed"]
    assert (lines[1]["level"], lines[1]["fields"]) == ("warning", ["server.port"])
    server = site.gateway.active.plan.server
    assert (server.port, server.heartbeat) == (8080, 3.0)
    lines = await site.reload(BASE | port)
    assert events(lines) == ["config_unchanged", "restart_needed"]
    lines = await site.reload(BASE | {"server": {"host": "127.0.0.1", "heartbeat": "3s"}})
    assert (events(lines), lines[1]["fields"]) == (["config_reloaded", "restart_needed"], ["server.host"])
    assert events(await site.reload(BASE | {"server": {"heartbeat": "3s"}})) == ["config_reloaded"]
    assert len(site.plans) == 1
    assert events(await site.reload(BASE)) == ["config_reloaded"]
    assert len(site.plans) == 2


async def test_an_engine_answers_through_every_edit(folder: Path) -> None:
    """A backend with an engine above it, another engine, none: its endpoint stays up where it was."""
    config = {"backends": {"e": ENGINE}}
    site = Reloading(folder, config)
    (endpoint,) = site.gateway.active.backends["e"].endpoints
    endpoint.set_up(True, "test")
    new = {"engine": {"kind": "simulator"}, "models": ["new"]}
    edits: list[tuple[dict[str, Any], list[str]]] = [
        ({"new": new, "e": ENGINE}, ["backends.new.engine"]),
        ({"e": ENGINE}, []),
        ({"e": ENGINE | {"engine": {"kind": "simulator", "port": 18001}}}, ["backends.e.engine"]),
        ({"above": {"url": "http://a:1", "models": ["m"]}, "e": ENGINE | {"timeout": "9s"}}, []),
        ({"new": new}, ["backends.new.engine", "backends.above", "backends.e"]),
    ]
    for backends, held in edits:
        lines = await site.reload({"backends": backends})
        assert [line["fields"] for line in lines if line["event"] == "restart_needed"] == ([held] if held else [])
        assert site.gateway.active.backends["e"].endpoints == (endpoint,)
        assert endpoint.up
        assert site.gateway.active.plan.routes["/v1/chat/completions"].keys() - {"m"} == {"e"}


async def test_changes_add_up_after_a_held_one(folder: Path) -> None:
    """A field that was held once is compared with the running value, and later fields are not taken back."""
    site = Reloading(folder, BASE)
    more = {"b": {"url": "http://b:1", "models": ["b"]}}
    await site.reload({"backends": BASE["backends"] | more, "server": {"port": 99}})
    lines = await site.reload({"backends": BASE["backends"] | more})
    assert events(lines) == ["config_reloaded"]
    assert set(site.gateway.active.backends) == {"a", "b"}
    await site.reload({"backends": BASE["backends"], "server": {"port": 99, "workers": 2}})
    plan = site.gateway.active.plan
    assert (plan.server.port, plan.server.workers, [backend.name for backend in plan.backends]) == (8080, 1, ["a"])


# -- keys ----------------------------------------------------------------------------------------------------------


async def test_a_broken_key_file_is_counted_and_logged(folder: Path) -> None:
    """The last good keys stay, also where the file is gone."""
    site = Reloading(folder, BASE)
    await site.reloader.reload_keys()
    ring = site.verifier.ring
    site.logged()
    for count in (1, 2):
        (folder / "keys.yaml").write_text("keys: [")
        if count == 2:
            (folder / "keys.yaml").unlink()
        await site.reloader.reload_keys()
        (line,) = site.logged()
        assert (line["event"], line["level"], line["kept"]) == ("keys_not_reloaded", "error", 1)
        assert site.reloads("keys") == {"success": 1, "failure": count}
        assert site.in_force("keys") is False
    assert site.verifier.ring is ring
    site.verifier.close()


async def test_late_read_of_the_old_key_file_is_ignored(tmp_path: Path) -> None:
    """A second SIGHUP comes while a config that names another key file is read: it does not mean the old file."""
    config, slow = tmp_path / "aiaas.yaml", tmp_path / "new.yaml"
    (tmp_path / "old.yaml").write_text(render_records([new_key("alice").record]))
    os.mkfifo(slow)  # a reader waits for a writer

    def write(file: str) -> None:
        config.write_text(yaml.safe_dump({**BASE, "auth": {"keys_file": file}}))

    write("old.yaml")
    plan, _ = read_plan(config, {})
    assert plan is not None
    log, metrics = JsonLog(lambda _: True, lambda: 0.0, "info"), Metrics()
    verifier = Verifier(EMPTY_RING)
    gateway = Gateway(plan, verifier, MemoryStore(), log, metrics, UsageRecorder(None, log, metrics))
    reloader = Reloader(gateway, {}, lambda _engines: (), lambda _plan: None)
    await reloader.reload_keys()
    write("new.yaml")
    reading = asyncio.create_task(reloader.reload_config())
    async with asyncio.timeout(5):
        writer = await opened(slow)
        second = asyncio.create_task(reloader.reload_keys())
        slow.unlink()
        slow.write_text(render_records([new_key("bob").record]))
        await asyncio.wait([second], timeout=0.1)  # it waits for the first, or would be done by now
        os.write(writer, render_records([new_key("carol").record]).encode())
        os.close(writer)
        await asyncio.gather(reading, second)
    assert owners(verifier.ring) == ["bob"]
    verifier.close()


async def test_a_missing_key_file_is_a_warning_until_there_were_keys(folder: Path) -> None:
    """Nothing has failed, as the first key makes the file; a broken file is a failure."""
    (folder / "keys.yaml").rename(folder / "aside")
    site = Reloading(folder, BASE)
    await site.reloader.reload_keys()
    (line,) = site.logged()
    assert (line["event"], line["level"], line["file"]) == ("keys_missing", "warning", str(folder / "keys.yaml"))
    assert "aiaas keys create" in line["hint"]
    assert (site.reloads("keys"), site.in_force("keys")) == ({}, False)
    (folder / "keys.yaml").write_text("keys: [")
    await site.reloader.reload_keys()
    assert events(site.logged()) == ["keys_not_reloaded"]
    (folder / "aside").rename(folder / "keys.yaml")
    await site.reloader.reload_keys()
    (folder / "keys.yaml").unlink()
    await site.reloader.reload_keys()
    assert events(site.logged()) == ["keys_loaded", "keys_not_reloaded"]
    site.verifier.close()


async def test_without_authentication_no_key_file_is_read(folder: Path) -> None:
    """Neither at the start nor at a reload, not even a broken one; turned on again, it must be valid."""
    (folder / "keys.yaml").write_text("keys: [")
    site = Reloading(folder, BASE | {"auth": {"enabled": False}})
    await site.reloader.begin_keys()
    await site.reloader.reload_keys()
    assert (site.logged(), site.reloads("keys"), site.in_force("keys")) == ([], {}, None)
    lines = await site.reload(BASE)
    assert (events(lines), site.plans) == (["config_not_reloaded"], [])
    assert "keys.yaml" in lines[0]["error"]
    await site.reloader.reload_keys()
    assert (site.logged(), site.gateway.active.plan.auth.enabled) == ([], False)
    (folder / "keys.yaml").write_text(render_records([new_key("alice").record]))
    assert events(await site.reload(BASE)) == ["keys_loaded", "config_reloaded"]
    assert site.gateway.active.plan.auth.enabled
    site.verifier.close()


async def test_a_refused_key_file_leaves_the_one_before_watched(folder: Path) -> None:
    """There were no keys yet, so a Plan with another missing file is refused; the first file appears, and counts."""
    site = Reloading(folder, BASE | {"auth": {"keys_file": "first.yaml"}})
    await site.reloader.begin_keys()
    assert events(site.logged()) == ["keys_missing"]
    (line,) = await site.reload(BASE | {"auth": {"keys_file": "second.yaml"}})
    assert (line["event"], "second.yaml" in line["error"], site.plans) == ("config_not_reloaded", True, [])
    assert site.gateway.active.plan.auth.keys_file.name == "first.yaml"
    (folder / "keys.yaml").rename(folder / "first.yaml")
    await watched(site, "keys_loaded")
    assert owners(site.verifier.ring) == ["alice"]
    site.verifier.close()


async def test_the_key_file_of_another_plan_is_watched(folder: Path) -> None:
    """If the file cannot be read the last good keys stay, until it can."""
    site = Reloading(folder, BASE)
    await site.reloader.begin_keys()
    lines = await site.reload(BASE | {"auth": {"keys_file": "other.yaml"}})
    assert events(lines) == ["keys_loaded", "keys_not_reloaded", "config_reloaded"]
    assert site.gateway.active.plan.auth.keys_file.name == "other.yaml"
    (folder / "other.yaml").write_text(render_records([new_key("bob").record]))
    await watched(site, "keys_loaded")
    assert owners(site.verifier.ring) == ["bob"]
    site.verifier.close()


async def test_a_worker_begins_with_the_last_good_keys(folder: Path) -> None:
    """If the file is broken or gone by then; a valid file's own keys count."""
    last_good = render_records([new_key("bob").record])
    site = Reloading(folder, BASE)
    await site.reloader.reload_keys(last_good)
    assert owners(site.verifier.ring) == ["alice"]
    (folder / "keys.yaml").unlink()
    site = Reloading(folder, BASE)
    await site.reloader.reload_keys(last_good)
    assert owners(site.verifier.ring) == ["bob"]
    assert events(site.logged()) == ["keys_loaded", "keys_not_reloaded"]
    site.verifier.close()


async def test_the_series_of_removed_keys_go_with_a_reload(folder: Path) -> None:
    """The series of the other keys stay."""
    site = Reloading(folder, BASE)
    alice, bob = new_key("alice").record, new_key("bob").record
    for key in (alice, bob):
        site.metrics.finished(Record("id", "/v1/models", 0.0, "1.2.3.4", status=200, key_id=key.id), 1.0)
    await site.reloader.reload_keys()
    exposed = site.metrics.expose().decode()
    assert (f'key_id="{alice.id}"' in exposed, f'key_id="{bob.id}"' in exposed) == (True, False)
    site.verifier.close()
