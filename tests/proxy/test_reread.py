"""aiaas.proxy.reread: a changed config for a running gateway, with its engines' consent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from aiaas.plan.model import EnginePlan
from aiaas.plan.read import read
from aiaas.proxy.reread import reread

TEXT = """\
backends:
  e:
    engine: {kind: simulator, port: 18001, args: {ttft: %s}}
    models: [%s]
server: {port: %d}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A config with one engine."""
    path = tmp_path / "aiaas.yaml"
    path.write_text(TEXT % ("10ms", "m", 8080))
    return path


class Engines:
    """All engines accept the offered settings, or none."""

    def __init__(self, *, takes: bool) -> None:
        self.takes = takes
        self.offered: list[Mapping[str, EnginePlan]] = []

    def offer(self, engines: Mapping[str, EnginePlan]) -> tuple[str, ...]:
        self.offered.append(engines)
        return tuple(engines) if self.takes else ()


async def test_an_engine_that_is_not_healthy_takes_its_settings(file: Path) -> None:
    """Its arguments and its models are in force, and nothing waits for a restart."""
    begun = read(file, {}).plan
    assert begun is not None
    file.write_text(changed := TEXT % ("20ms", "other", 8080))
    engines = Engines(takes=True)
    reading = await reread((file,), {}, begun.config, engines.offer)
    assert reading.plan is not None
    assert (reading.held, reading.plan.backends[0].served_models) == ((), ("other",))
    file.write_text(changed)
    again = await reread((file,), {}, reading.plan.config, engines.offer)
    assert (again.plan, len(engines.offered)) == (reading.plan, 1)


async def test_a_healthy_engine_keeps_its_settings(file: Path) -> None:
    """The refused changes wait, beside the fields that need a restart anyway."""
    begun = read(file, {}).plan
    assert begun is not None
    file.write_text(TEXT % ("20ms", "m", 9999))
    reading = await reread((file,), {}, begun.config, Engines(takes=False).offer)
    assert reading.plan is not None
    assert reading.held == ("server.port", "backends.e.engine")
    assert reading.plan.backends[0].engine == begun.backends[0].engine


async def test_file_that_changes_while_it_is_read_is_read_again(file: Path) -> None:
    """The engine took what the file said before: that it runs with the file's settings would be wrong."""
    begun = read(file, {}).plan
    assert begun is not None
    file.write_text(TEXT % ("20ms", "m", 8080))
    offered: list[EnginePlan] = []

    def offer(engines: Mapping[str, EnginePlan]) -> tuple[str, ...]:
        offered.append(engines["e"])
        file.write_text(TEXT % ("30ms", "m", 8080))
        return ("e",) if len(offered) == 1 else ()  # it takes 20ms, is healthy, and keeps them

    reading = await reread((file,), {}, begun.config, offer)
    assert [engine.args for engine in offered] == [("--ttft", "20ms"), ("--ttft", "30ms")]
    assert reading.held == ("backends.e.engine",)


async def test_held_fields_stay_held_when_an_engine_takes_its_own(file: Path) -> None:
    """An engine's consent does not apply a changed port."""
    begun = read(file, {}).plan
    assert begun is not None
    file.write_text(TEXT % ("20ms", "m", 9999))
    reading = await reread((file,), {}, begun.config, Engines(takes=True).offer)
    assert reading.plan is not None
    assert (reading.held, reading.plan.server.port) == (("server.port",), 8080)
    assert reading.plan.backends[0].engine != begun.backends[0].engine


async def test_engines_hear_nothing_of_a_broken_config(file: Path) -> None:
    """Nor of a config that leaves them alone."""
    begun = read(file, {}).plan
    assert begun is not None
    engines = Engines(takes=True)
    file.write_text("backends: {")
    assert (await reread((file,), {}, begun.config, engines.offer)).plan is None
    file.write_text(TEXT % ("10ms", "m", 8080) + "rate_limit: {burst: 3}\n")
    assert (await reread((file,), {}, begun.config, engines.offer)).plan is not None
    assert engines.offered == []
