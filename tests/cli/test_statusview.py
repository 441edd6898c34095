"""aiaas.cli.statusview: the screen of `aiaas status`, and what is said to be down."""

from __future__ import annotations

from typing import Any

import msgspec

from aiaas.cli.statusview import status_screen
from aiaas.proxy.admin.attention import attention
from aiaas.proxy.admin.model import (
    CertificateView,
    ConfigView,
    KeysView,
    NearView,
    ProcessView,
    Status,
    UsageStoreView,
)
from tests.proxy.admin.test_merge import UP, backend, status

DOWN = msgspec.structs.replace(UP, url="http://b", up=False, reason="connection refused")
NOW = 1_000_000.0


def gateway(**facts: Any) -> Status:
    """A gateway that is well, but for these facts."""
    found = status(**{"now": NOW, "started": NOW - 12_000, "backends": [backend(UP)], **facts})
    found.attention = attention(found)
    return found


def test_healthy_gateway_has_no_fault() -> None:
    """One screen without a word about what to do."""
    text = status_screen(gateway())
    assert text.endswith("Nothing is down.")
    assert "for 3 h 20 min" in text
    assert "chat     http://a  up" in text
    assert "2/8" in text


def test_draining_replica_is_shown_in_one_word() -> None:
    """It is not down, whatever its health."""
    drains = msgspec.structs.replace(DOWN, draining=True)
    text = status_screen(gateway(backends=[backend(UP, drains)]))
    assert "http://b  draining" in text
    assert text.endswith("Nothing is down.")


def test_faults_stand_below_with_what_to_do() -> None:
    """As `/status` names them (test_attention.py), each in one line."""
    text = status_screen(gateway(backends=[backend(UP, DOWN)], usage_store=UsageStoreView("file", False)))
    *_, title, first, second = text.splitlines()
    assert title == "To do:"
    assert first == "- http://b (chat) is down: connection refused; start vLLM there, or correct the URL"
    assert second.startswith(
        "- The store of usage cannot be written; new usage waits in memory; look for usage_not_written"
    )


def test_screen_shows_more_than_faults() -> None:
    """Keys near a limit, fields that wait for a restart, the drain, what the process uses."""
    found = gateway(
        keys_near=[NearView("k", "alice", "requests", 9, 10, 9.0)],
        config=ConfigView("a.yaml", "d", NOW - 60, ["server.port"], ["b.yaml"]),
        keys=KeysView(True, 3, 1, NOW + 86400),
        certificate=CertificateView(NOW + 80 * 86400, "x.pem"),
        process=ProcessView(memory=100 * 2**20, descriptors=20),
        draining=True,
    )
    text = status_screen(found)
    for part in (
        "- alice (k): 9 of 10 requests, whole again in 9 s",
        "a.yaml + b.yaml (d), for 1 min",
        "waits for a restart: server.port",
        "3 loaded, 1 expired, the next expires in 1 d",
        "expires in 80 d (x.pem)",
        "100 MiB, 20 descriptors",
        ", draining",
    ):
        assert part in text
    assert "auth.enabled is false" in status_screen(gateway(keys=KeysView(False, 0, 0, None)))
