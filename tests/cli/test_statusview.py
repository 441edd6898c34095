"""aiaas.cli.statusview: the screen of `aiaas status`, and what is said to be down."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from aiaas.cli.statusview import faults, status_screen
from aiaas.proxy.admin.model import (
    CertificateView,
    ConfigView,
    KeysView,
    NearView,
    ProcessView,
    ReloadView,
    Status,
    StoreView,
    UsageStoreView,
)
from tests.proxy.admin.test_merge import UP, backend, status

DOWN = msgspec.structs.replace(UP, url="http://b", up=False, reason="connection refused")
NOW = 1_000_000.0


def gateway(**facts: Any) -> Status:
    """A gateway that is well, but for these facts."""
    return status(**{"now": NOW, "started": NOW - 12_000, "backends": [backend(UP)], **facts})


def test_healthy_gateway_has_no_fault() -> None:
    """One screen without a word about what to do."""
    assert list(faults(gateway())) == []
    text = status_screen(gateway())
    assert text.endswith("Nothing is down.")
    assert "for 3 h 20 min" in text
    assert "chat     http://a  up" in text
    assert "2/8" in text


@pytest.mark.parametrize(
    ("facts", "said", "todo"),
    [
        pytest.param({"workers": 2}, "1 of 2 workers serve", "worker_ended", id="worker missing"),
        pytest.param(
            {"reloads": [ReloadView("config", False, 2.0, 1.0, "a.yaml:3:1: server.colour: is not a field")]},
            "the changed config is not in force: a.yaml:3:1: server.colour",
            "aiaas validate -c a.yaml",
            id="config refused",
        ),
        pytest.param(
            {"reloads": [ReloadView("keys", False, 2.0, 1.0, "keys.yaml:3:1: not YAML")]},
            "the key file is not in force, and the 3 keys before it stay in force: keys.yaml:3:1",
            "fix the file",
            id="key file broken",
        ),
        pytest.param(
            {"reloads": [ReloadView("tls", False, 2.0, 1.0, "x.pem does not exist")]},
            "certificate is not in force: x.pem does not exist",
            "fix the files",
            id="certificate broken",
        ),
        pytest.param({"keys": KeysView(True, 0, 0, None)}, "no key is loaded", "aiaas keys create", id="no keys"),
        pytest.param(
            {"store": StoreView("redis", False, "local", 2)}, "store of limits is away", "limit_store_away", id="store"
        ),
        pytest.param(
            {"usage_store": UsageStoreView("file", False)}, "usage cannot be written", "usage_not_written", id="usage"
        ),
        pytest.param(
            {"certificate": CertificateView(NOW + 3 * 86400, "x.pem")}, "x.pem expires in 3 d", "renew", id="expiring"
        ),
        pytest.param({"certificate": CertificateView(NOW - 60, "x.pem")}, "expired 1 min ago", "renew", id="expired"),
        pytest.param(
            {"backends": [backend(UP, DOWN)]}, "http://b of backend chat is down: connection refused", "URL", id="down"
        ),
        pytest.param(
            {"backends": [backend(msgspec.structs.replace(UP, problem="m: not served there; the backend lists n"))]},
            "http://a of backend chat: m: not served there",
            "the backend lists n",
            id="models missing",
        ),
        pytest.param(
            {"process": ProcessView(descriptors=950, descriptors_max=1000)}, "950 of 1000", "LimitNOFILE", id="files"
        ),
    ],
)
def test_fault_is_said_with_what_to_do(facts: dict[str, Any], said: str, todo: str) -> None:
    """In one line, which the screen has as well."""
    found = gateway(**facts)
    (fault,) = faults(found)
    assert said in fault
    assert todo in fault
    assert "\n" not in fault
    assert f"- {fault}" in status_screen(found)


def test_backend_without_an_endpoint_is_named_first() -> None:
    """Its clients get a 503; each endpoint has its own line."""
    found = list(faults(gateway(backends=[backend(DOWN)])))
    assert found[0] == "no endpoint of backend chat is up, so its requests get a 503"
    assert found[1].startswith("http://b of backend chat is down")


def test_screen_shows_what_does_not_need_action() -> None:
    """Keys near a limit, fields that wait for a restart, and a drain are not faults."""
    found = gateway(
        keys_near=[NearView("k", "alice", "requests", 9, 10, 9.0)],
        config=ConfigView("a.yaml", "d", NOW - 60, ["server.port"]),
        keys=KeysView(True, 3, 1, NOW + 86400),
        certificate=CertificateView(NOW + 80 * 86400, "x.pem"),
        process=ProcessView(memory=100 * 2**20, descriptors=20),
        draining=True,
    )
    text = status_screen(found)
    assert list(faults(found)) == []
    for part in (
        "- alice (k): 9 of 10 requests, whole again in 9 s",
        "waits for a restart: server.port",
        "3 loaded, 1 expired, the next expires in 1 d",
        "expires in 80 d (x.pem)",
        "100 MiB, 20 descriptors",
        ", draining",
    ):
        assert part in text
    assert "auth.enabled is false" in status_screen(gateway(keys=KeysView(False, 0, 0, None)))
