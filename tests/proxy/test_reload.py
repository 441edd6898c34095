"""aiaas.proxy.reload: what needs a restart. Reloading itself is tested in a server's life (test_server.py)."""

from typing import Any

import pytest

from aiaas.proxy.reload import needs_restart
from tests.proxy.conftest import plan_of

BASE: dict[str, Any] = {"backends": {"a": {"url": "http://a:1", "models": ["m"]}}}
ENGINE: dict[str, Any] = {"engine": {"kind": "simulator", "port": 18000}, "models": ["e"]}


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
        ({"backends": {**BASE["backends"], "e": ENGINE}}, ["backends.e.engine"]),
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
        "an engine",
        "a store",
    ],
)
def test_only_sockets_the_store_and_engines_need_a_restart(change: dict[str, Any], fields: list[str]) -> None:
    """Everything else is in force at once."""
    assert needs_restart(plan_of(BASE), plan_of(BASE | change)) == fields


def test_other_files_of_a_certificate_need_none() -> None:
    """They are read like renewed ones."""
    tls = {"cert_file": "c", "key_file": "k"}
    begun = plan_of(BASE | {"server": {"tls": tls}})
    assert needs_restart(begun, plan_of(BASE | {"server": {"tls": tls | {"cert_file": "d"}}})) == []
    assert needs_restart(begun, plan_of(BASE)) == ["server.tls"]


def test_an_engine_that_is_gone_or_changed_needs_a_restart() -> None:
    """It goes on running meanwhile; another timeout of its backend does not concern it."""
    begun = plan_of({"backends": {**BASE["backends"], "e": ENGINE}})
    assert needs_restart(begun, plan_of(BASE)) == ["backends.e.engine"]
    changed = ENGINE | {"engine": {"kind": "simulator", "port": 18001}}
    assert needs_restart(begun, plan_of({"backends": {**BASE["backends"], "e": changed}})) == ["backends.e.engine"]
    slower = ENGINE | {"timeout": "9s"}
    assert needs_restart(begun, plan_of({"backends": {**BASE["backends"], "e": slower}})) == []
