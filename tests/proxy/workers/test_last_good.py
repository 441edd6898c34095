"""aiaas.proxy.workers.last_good: the last good files, with real ones."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from aiaas.errors import EnvironmentFault
from aiaas.keys.records import parse_records, render_records
from aiaas.plan.model import Plan
from aiaas.plan.read import read
from aiaas.proxy.workers.last_good import Baseline
from tests.proxy.conftest import new_key
from tests.waiting import opened

CONFIG = "backends:\n  vllm: {url: 'http://127.0.0.1:9', models: [m]}\n"
OTHER = CONFIG.replace("[m]", "[n]")


@pytest.fixture
def plans() -> list[Plan]:
    """The calls to the baseline's owner."""
    return []


@pytest.fixture
async def baseline(tmp_path: Path, plans: list[Plan]) -> AsyncIterator[Baseline]:
    """The files of a folder with a good config and one key, already read, and followed."""
    (tmp_path / "aiaas.yaml").write_text(CONFIG)
    (tmp_path / "keys.yaml").write_text(render_records([new_key("alice").record]))
    plan = read(tmp_path / "aiaas.yaml", {}).plan
    assert plan is not None
    crashes: list[BaseException] = []
    made = Baseline(plan, {}, lambda _engines: (), plans.append, crashes.append)
    await made.begin()
    tasks = [asyncio.create_task(watch.run()) for watch in made.watches()]
    yield made
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert crashes == []


def names(baseline: Baseline) -> list[str]:
    """The names of the keys."""
    return [] if baseline.keys is None else [record.name for record in parse_records(baseline.keys, "x")]


async def test_it_holds_what_both_files_hold(baseline: Baseline) -> None:
    """The text, from which another process makes the same config and keys."""
    assert baseline.config == baseline.before == (CONFIG,)
    assert names(baseline) == ["alice"]
    assert baseline.key_ids == {new_key("alice").record.id}
    assert read(baseline.files[0], {}, baseline.config).plan == baseline.plan


async def test_a_good_change_is_taken_over(baseline: Baseline) -> None:
    """Config and keys."""
    baseline.files[0].write_text(OTHER)
    (baseline.files[0].parent / "keys.yaml").write_text(render_records([new_key("bob").record]))
    baseline.wake()
    async with asyncio.timeout(5):
        while baseline.config != (OTHER,) or names(baseline) != ["bob"]:
            await asyncio.sleep(0.01)
    assert baseline.key_ids == {new_key("bob").record.id}
    assert baseline.plan.models[0].name == "n"


async def test_change_that_needs_a_restart_is_kept_for_new_workers(baseline: Baseline, plans: list[Plan]) -> None:
    """A worker that starts later gets both texts, and so the same config as the others."""
    held = OTHER + "server: {port: 99}\n"
    for text, before in ((held, CONFIG), (OTHER, OTHER), (held, OTHER)):
        baseline.files[0].write_text(text)
        baseline.wake()
        async with asyncio.timeout(5):
            while baseline.config != (text,):
                await asyncio.sleep(0.01)
        assert baseline.before == (before,)
        assert (baseline.plan.server.port, baseline.plan.models[0].name) == (8080, "n")
        assert plans[-1] is baseline.plan


async def test_a_broken_change_is_not(baseline: Baseline) -> None:
    """The last good ones stay, whatever happens to the files; the fixed ones count."""
    keys = baseline.files[0].parent / "keys.yaml"
    baseline.files[0].write_text("backends: [")
    keys.unlink()
    baseline.wake()
    await asyncio.sleep(0.3)
    assert baseline.config == (CONFIG,)
    assert names(baseline) == ["alice"]
    baseline.files[0].write_bytes(b"\xff\xfe")
    keys.mkdir()
    baseline.wake()
    await asyncio.sleep(0.3)
    assert baseline.config == (CONFIG,)
    assert names(baseline) == ["alice"]
    baseline.files[0].write_text(OTHER)
    baseline.wake()
    async with asyncio.timeout(5):
        while baseline.config != (OTHER,):
            await asyncio.sleep(0.01)


async def test_another_key_file_is_followed(baseline: Baseline) -> None:
    """The changed config names another one."""
    (baseline.files[0].parent / "other.yaml").write_text(render_records([new_key("carol").record]))
    baseline.files[0].write_text(CONFIG + "auth: {keys_file: other.yaml}\n")
    baseline.wake()
    async with asyncio.timeout(5):
        while names(baseline) != ["carol"]:
            await asyncio.sleep(0.01)
    (baseline.files[0].parent / "other.yaml").write_text(render_records([new_key("dave").record]))
    async with asyncio.timeout(5):
        while names(baseline) != ["dave"]:
            await asyncio.sleep(0.01)


async def test_a_wake_reads_also_what_has_not_changed(baseline: Baseline, plans: list[Plan]) -> None:
    """An operator who sends SIGHUP wants it read now."""
    count = len(plans)
    baseline.wake()
    async with asyncio.timeout(5):
        while len(plans) == count:
            await asyncio.sleep(0.01)


async def test_a_config_that_breaks_between_two_looks_is_said(tmp_path: Path) -> None:
    """The config was valid when the command read it; without its text no worker can start."""
    (tmp_path / "aiaas.yaml").write_text(CONFIG)
    plan = read(tmp_path / "aiaas.yaml", {}).plan
    assert plan is not None
    for text in ("", CONFIG + "server: {port: 99}\n"):  # the second has other ports than those that were opened
        (tmp_path / "aiaas.yaml").write_text(text)
        with pytest.raises(EnvironmentFault, match="was changed while it was read"):
            await Baseline(plan, {}, lambda _engines: (), lambda _plan: None, lambda error: None).begin()


async def begun(folder: Path, config: str = CONFIG) -> Baseline:
    """The files of a folder with this config."""
    (folder / "aiaas.yaml").write_text(config)
    plan = read(folder / "aiaas.yaml", {}).plan
    assert plan is not None
    baseline = Baseline(plan, {}, lambda _engines: (), lambda _plan: None, lambda error: pytest.fail(repr(error)))
    await baseline.begin()
    return baseline


async def test_a_broken_key_file_at_the_start_is_refused(tmp_path: Path) -> None:
    """One log line with its place, not one for each worker; a missing file is not a fault."""
    assert (await begun(tmp_path)).keys is None
    (tmp_path / "keys.yaml").write_text("version: 1\nkeys: [\n")
    with pytest.raises(EnvironmentFault, match=r"keys\.yaml:3:1: not YAML"):
        await begun(tmp_path)


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
async def test_a_config_whose_keys_cannot_be_read_is_not_kept(tmp_path: Path, broken: bool) -> None:
    """The workers refuse it, since they have no keys to go on with, and a new one must not begin with it."""
    baseline = await begun(tmp_path, CONFIG + "auth: {enabled: false}\n")
    if broken:
        (tmp_path / "keys.yaml").write_text("version: 1\nkeys: [\n")
    before = baseline.config
    baseline.files[0].write_text(CONFIG)
    await baseline._read_config()
    assert (baseline.config, baseline.keys) == (before, None)
    (tmp_path / "keys.yaml").write_text(render_records([new_key("alice").record]))
    await baseline._read_config()
    assert baseline.config == (CONFIG,)
    assert names(baseline) == ["alice"]


async def test_a_missing_config_changes_nothing(baseline: Baseline) -> None:
    """Nor is it an unexpected error."""
    baseline.files[0].unlink()
    await baseline._read_config()
    assert (baseline.config, names(baseline)) == ((CONFIG,), ["alice"])


async def test_missing_new_key_file_leaves_the_last_good_keys(baseline: Baseline) -> None:
    """The config is kept, as the workers go on with the keys that they have; the file counts once it is there."""
    baseline.files[0].write_text(named := CONFIG + "auth: {keys_file: other.yaml}\n")
    await baseline._read_config()
    assert (baseline.config, names(baseline)) == ((named,), ["alice"])
    (baseline.files[0].parent / "other.yaml").write_text(render_records([new_key("carol").record]))
    async with asyncio.timeout(5):
        while names(baseline) != ["carol"]:
            await asyncio.sleep(0.01)


async def test_without_authentication_no_key_file_is_read(tmp_path: Path) -> None:
    """Not at the start, and not when authentication is turned off, where a missing or broken file does not matter."""
    off = CONFIG + "auth: {enabled: false}\n"
    baseline = await begun(tmp_path)
    baseline.files[0].write_text(off)
    await baseline._read_config()
    assert (baseline.config, baseline.keys) == ((off,), None)
    (tmp_path / "keys.yaml").write_text(render_records([new_key("alice").record]))
    await baseline._read_keys()
    assert baseline.keys is None
    (tmp_path / "other.yaml").write_text(render_records([new_key("bob").record]))
    baseline.files[0].write_text(other := CONFIG + "auth: {enabled: false, keys_file: other.yaml}\n")
    await baseline._read_config()
    assert (baseline.config, baseline.keys) == ((other,), None)
    (tmp_path / "keys.yaml").write_text("version: 1\nkeys: [\n")
    assert (await begun(tmp_path, off)).keys is None


async def test_after_a_refused_key_file_the_one_before_is_followed(tmp_path: Path) -> None:
    """There are no keys yet; the first file appears later than the config that named another one."""
    baseline = await begun(tmp_path)
    baseline.files[0].write_text(CONFIG + "auth: {keys_file: other.yaml}\n")
    await baseline._read_config()
    assert (baseline.config, baseline.keys) == ((CONFIG,), None)
    (tmp_path / "keys.yaml").write_text(render_records([new_key("alice").record]))
    tasks = [asyncio.create_task(watch.run()) for watch in baseline.watches()]
    try:
        async with asyncio.timeout(5):
            while names(baseline) != ["alice"]:
                await asyncio.sleep(0.01)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_late_reading_of_the_file_before_changes_nothing(tmp_path: Path) -> None:
    """The key file is still being read when a config comes that names another one, whose keys are there first."""
    slow, config = tmp_path / "keys.yaml", tmp_path / "aiaas.yaml"
    config.write_text(CONFIG)
    (tmp_path / "other.yaml").write_text(render_records([new_key("carol").record]))
    plan = read(config, {}).plan
    assert plan is not None
    baseline = Baseline(plan, {}, lambda _engines: (), lambda _plan: None, lambda error: pytest.fail(repr(error)))
    await baseline.begin()
    os.mkfifo(slow)  # a reader waits for a writer
    baseline.wake()
    tasks = [asyncio.create_task(watch.run()) for watch in baseline.watches()]
    async with asyncio.timeout(5):
        writer = await opened(slow)
        try:
            config.write_text(CONFIG + "auth: {keys_file: other.yaml}\n")
            while baseline.keys is None:
                await asyncio.sleep(0.01)
            os.write(writer, render_records([new_key("alice").record]).encode())
        finally:
            os.close(writer)  # else the thread that reads never ends
        await asyncio.sleep(0.1)
    assert names(baseline) == ["carol"]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_overlays_are_kept_with_their_config(tmp_path: Path) -> None:
    """The texts of all files, of one reading: a broken overlay keeps all of them."""
    base, over = tmp_path / "aiaas.yaml", tmp_path / "prod.yaml"
    base.write_text(CONFIG)
    over.write_text("request: {max_choices: 3}\n")
    plan = read(base, {}, overlays=[over]).plan
    assert plan is not None
    baseline = Baseline(plan, {}, lambda _engines: (), lambda _plan: None, lambda error: pytest.fail(repr(error)))
    await baseline.begin()
    kept = (CONFIG, "request: {max_choices: 3}\n")
    assert (baseline.files, baseline.config, baseline.before) == ((base, over), kept, kept)
    base.write_text(OTHER)
    over.write_text("request: {max_choices: many}\n")
    await baseline._read_config()
    assert baseline.config == kept
    over.write_text("request: {max_choices: 4}\n")
    await baseline._read_config()
    assert baseline.config == (OTHER, "request: {max_choices: 4}\n")
    assert baseline.plan.request.max_choices == 4


async def test_a_config_with_broken_authorities_is_not_kept(tmp_path: Path) -> None:
    """At the start it is refused with its field; later the workers keep the config before, and so does this."""
    verified = CONFIG.replace("http:", "https:").replace("[m]", "[m], tls: {ca_file: ca.pem}")
    (tmp_path / "keys.yaml").write_text(render_records([new_key("alice").record]))
    with pytest.raises(EnvironmentFault, match=r"cannot use backends\.vllm\.tls\.ca_file: .*ca\.pem does not exist"):
        await begun(tmp_path, verified)
    made = await begun(tmp_path)
    made.files[0].write_text(verified)
    await made._read_config()
    assert made.config == (CONFIG,)
    (tmp_path / "ca.pem").write_bytes(trustme.CA().cert_pem.bytes())
    await made._read_config()
    assert made.config == (verified,)
