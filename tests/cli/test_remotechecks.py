"""aiaas.cli.remotechecks: a real Redis, and clocks. The backends: tests/cli/test_doctor.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiaas.cli.remotechecks import check_clocks, check_store, check_usage_store
from aiaas.plan.model import Plan
from tests.fakes.redis import RedisServer
from tests.proxy.conftest import config_of, plan_of


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.end()


def plan_with(store: str) -> Plan:
    config = config_of(["http://127.0.0.1:9"], {}, {})
    config["rate_limit"] = {"store": store}
    return plan_of(config, env={"PASSWORD": "secret"})


def test_a_store_is_shown_with_its_version(redis: RedisServer) -> None:
    """And its clock, which is ours here; usage stands in it, too."""
    plan = plan_with(redis.url)
    (finding,), clocks = check_store(plan)
    assert (finding.state, finding.check) == ("ok", "store")
    assert "Redis " in finding.seen
    assert finding.seen.endswith(" ms")
    (ahead,) = clocks.values()
    assert abs(ahead) < 2
    assert [found.state for found in check_usage_store(plan)] == ["ok"]


def test_a_user_who_may_not_run_scripts_is_told_what_to_allow(redis: RedisServer) -> None:
    """Limits are decided by a script."""
    redis.command("ACL", "SETUSER", "bob", "on", ">secret", "~*", "+@all", "-@scripting")
    url = redis.url.replace("redis://", "redis://bob:${PASSWORD}@")
    (finding,), _ = check_store(plan_with(url))
    assert finding.state == "FAIL"
    assert "allow +eval +evalsha" in finding.seen
    assert "secret" not in finding.seen


@pytest.mark.parametrize(
    ("ahead", "states"),
    [
        ({}, []),
        ({"a": 1.9, "b": -1.9}, ["ok"]),
        ({"a": 2.1, "b": 0.0}, ["warn"]),
        ({"a": -60.0, "b": 60.0}, ["warn", "warn"]),
    ],
    ids=["unknown", "close", "one off", "both off"],
)
def test_clocks_that_differ_are_named(ahead: dict[str, float], states: list[str]) -> None:
    """By more than two seconds, in either direction."""
    findings = list(check_clocks(ahead))
    assert [finding.state for finding in findings] == states
    assert all(finding.check == "clock" for finding in findings)
    if len(states) == 2:
        assert findings[0].seen.startswith("a is 60 s behind this machine; ")
        assert findings[1].seen.startswith("b is 60 s ahead of this machine; ")
