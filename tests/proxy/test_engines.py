"""aiaas.proxy.engines: which engine takes changed settings, and who hears of a request that timed out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aiaas.plan.model import EnginePlan, Plan
from aiaas.proxy.engines import Engines
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.dial import ClientTls
from tests.proxy.conftest import plan_of


class Engine:
    """An engine that accepts settings, or not, and counts suspicions."""

    def __init__(self, *, takes: bool) -> None:
        self.takes = takes
        self.engine: EnginePlan | None = None
        self.offered: list[EnginePlan] = []
        self.suspicions = 0
        self.starts = 3
        self.deaths = 2

    async def start(self) -> None:
        pass

    async def stop(self, grace: float) -> None:
        pass

    def hurry(self) -> None:
        pass

    def offer(self, engine: EnginePlan) -> bool:
        self.offered.append(engine)
        return self.takes

    def suspect(self) -> None:
        self.suspicions += 1


def with_engines(*engines: str) -> Plan:
    """A gateway with these engines, and one address, `u`."""
    backends = {name: {"engine": {"kind": "simulator"}, "models": [name]} for name in engines}
    return plan_of({"backends": {**backends, "u": {"url": "http://127.0.0.1:9", "models": ["u"]}}})


@pytest.mark.parametrize(
    ("started", "wanted", "taken"),
    [
        pytest.param({"a": True}, ("a",), {"a"}, id="taken"),
        pytest.param({"a": False}, ("a",), set(), id="healthy, so it keeps its own"),
        pytest.param({}, ("a",), set(), id="a new engine"),
        pytest.param({"a": True}, (), set(), id="an engine that is no longer wanted"),
        pytest.param({"b": True, "a": False}, ("b", "a"), {"b"}, id="each by itself"),
    ],
)
def test_engines_say_which_of_them_took_their_settings(
    started: dict[str, bool], wanted: tuple[str, ...], taken: set[str]
) -> None:
    """Of each backend whose engine matches the config now."""
    engines = Engines()
    handles = {name: Engine(takes=takes) for name, takes in started.items()}
    for name, handle in handles.items():
        engines.add(name, handle)
    plans = {backend.name: backend.engine for backend in with_engines(*wanted).backends if backend.engine is not None}
    assert engines.offer(plans) == taken
    for name in plans.keys() & handles.keys():
        assert handles[name].offered == [plans[name]]


def test_starts_and_deaths_are_counted_by_backend() -> None:
    """From the first start on, so that the first death is an increase."""
    engines = Engines()
    engines.add("a", Engine(takes=True))
    samples = {(s.name, s.labels["backend"]): s.value for family in engines.collect() for s in family.samples}
    assert samples == {("aiaas_engine_starts_total", "a"): 3, ("aiaas_engine_deaths_total", "a"): 2}


def test_only_a_managed_engine_is_suspected() -> None:
    """A backend with a `url` has no engine to tell, nor has one whose `engine` a reload took away."""
    engines, handle = Engines(), Engine(takes=True)
    engines.add("a", handle)
    engines.suspect("a")
    engines.suspect("u")
    assert handle.suspicions == 1
    plan = with_engines("a")
    states = [BackendState(backend, lambda *_: None, ClientTls(), lambda _url: None) for backend in plan.backends]
    engines.watch(states)
    for state in states:
        state.endpoints[0].report_timeout()
    assert handle.suspicions == 2
    moved = BackendState(replace(plan.backends[0], engine=None), lambda *_: None, ClientTls(), lambda _url: None)
    engines.watch([moved])
    moved.endpoints[0].report_timeout()
    assert handle.suspicions == 2
