"""aiaas.proxy.admin.attention: each fault in the status is named, with its cause and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from aiaas.proxy.admin.attention import CERTIFICATE_SOON, DESCRIPTORS_SHARE, LAG, attention
from aiaas.proxy.admin.model import NoteView, Status
from tests.fakes.admin import NOW, busy_status, endpoint

Json = dict[str, Any]


def healthy() -> Json:
    """A busy gateway without a fault."""
    status = busy_status()
    status["config"]["restart_needed"] = []
    status["reloads"] = [each for each in status["reloads"] if each["ok"]]
    status["certificate"]["expires"] = NOW + CERTIFICATE_SOON + 1
    status["backends"][0]["endpoints"].pop()
    return status


def notes(status: Json) -> list[NoteView]:
    """The notes of a status."""
    return attention(msgspec.convert(status, Status))


def test_healthy_gateway_has_no_note() -> None:
    """A queue, refusals and keys at their limits are not faults of the gateway."""
    assert notes(healthy()) == []


def test_draining_replica_is_not_a_fault() -> None:
    """Its operator knows, and its server may be gone; a backend without another replica is one."""
    status = healthy()
    chat = status["backends"][0]["endpoints"]
    chat[0].update(up=False, draining=True, reason="connection refused")
    chat.append(endpoint("http://other:8000"))
    assert notes(status) == []
    del chat[1:]
    [note] = notes(status)
    assert "has no endpoint that is up" in note.text


def worker_gone(status: Json) -> None:
    status["workers_up"] = 1


def draining(status: Json) -> None:
    status["draining"] = True


def no_keys(status: Json) -> None:
    status["keys"]["loaded"] = 0


def one_endpoint_down(status: Json) -> None:
    status["backends"][0]["endpoints"][0].update(up=False, reason="connection refused", since=NOW - 9)


def model_renamed(status: Json) -> None:
    status["backends"][0]["endpoints"][0]["missing"] = ["llama-3.3-70b"]


def not_a_vllm(status: Json) -> None:
    status["backends"][0]["endpoints"][0]["problem"] = "answers 200 to /health, but is not a vLLM"


def keys_broken(status: Json) -> None:
    status["reloads"].append(
        {"what": "keys", "ok": False, "at": NOW - 5, "last_success": None, "error": "keys.yaml:3: x"}
    )


def config_refused(status: Json) -> None:
    status["reloads"] = [{"what": "config", "ok": False, "at": NOW, "last_success": None, "error": None}]


def needs_restart(status: Json) -> None:
    status["config"]["restart_needed"] = ["server.port", "server.workers"]


def certificate_soon(status: Json) -> None:
    status["certificate"]["expires"] = NOW + CERTIFICATE_SOON - 1


def certificate_over(status: Json) -> None:
    status["certificate"]["expires"] = NOW - 1


def store_away(status: Json) -> None:
    status["store"]["up"] = False


def store_away_and_deny(status: Json) -> None:
    status["store"].update(up=False, on_failure="deny")


def disk_full(status: Json) -> None:
    status["usage_store"]["ok"] = False


def descriptors_out(status: Json) -> None:
    status["process"].update(descriptors=int(DESCRIPTORS_SHARE * 1024) + 1, descriptors_max=1024)


def late(status: Json) -> None:
    status["process"]["loop_lag_p99"] = LAG + 0.01


@pytest.mark.parametrize(
    ("fault", "text", "since"),
    [
        (worker_gone, "1 of 2 workers are up.", None),
        (draining, "The gateway drains: it ends its open requests and stops.", None),
        (no_keys, "No key is loaded, so all requests are refused (401): aiaas keys create", None),
        (one_endpoint_down, "http://10.0.0.11:8000 (chat) is down: connection refused", NOW - 9),
        (model_renamed, "http://10.0.0.11:8000 (chat): does not serve llama-3.3-70b", None),
        (not_a_vllm, "http://10.0.0.11:8000 (chat): answers 200 to /health, but is not a vLLM", None),
        (keys_broken, "The key file was not reloaded, so the old one stays in force: keys.yaml:3: x", NOW - 5),
        (config_refused, "The config was not reloaded, so the old one stays in force: see the log", NOW),
        (needs_restart, "Changed in the config, and in force only after a restart: server.port, server.workers", None),
        (certificate_soon, "The certificate expires 2027-01-29 07:59 UTC (/etc/aiaas/tls.crt).", None),
        (
            certificate_over,
            "The certificate has expired, so clients refuse to connect: 2027-01-15 07:59 UTC (/etc/aiaas/tls.crt).",
            None,
        ),
        (store_away, "The store of the limits does not answer; until it does, each gateway counts alone.", None),
        (
            store_away_and_deny,
            "The store of the limits does not answer; until it does, all requests are refused.",
            None,
        ),
        (disk_full, "The store of usage cannot be written; new usage waits in memory.", None),
        (descriptors_out, "820 of 1,024 descriptors are in use: raise the limit (ulimit -n, LimitNOFILE=).", None),
        (late, "The event loop is late by 260 ms (p99): give it more CPU, or raise server.workers.", None),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_fault_is_named(fault: Callable[[Json], None], text: str, since: float | None) -> None:
    """In one line, and nothing else."""
    status = healthy()
    fault(status)
    (note,) = notes(status)
    assert (note.text, note.since) == (text, since)
    assert note.down is (fault not in (draining, needs_restart, late, certificate_soon))
    todo = ("log", "fix", "start", "renew", "raise", "restart", "keys create", "vLLM", "stops")
    assert any(word in f"{text} {note.fix}" for word in todo)


def test_refused_config_is_checked_with_its_overlays() -> None:
    """The command to paste reads the same files."""
    status = healthy()
    config_refused(status)
    status["config"] |= {"source": "aiaas.yaml", "overlays": ["prod.yaml"]}
    (note,) = notes(status)
    assert note.fix == "fix the file, and check it: aiaas validate -c aiaas.yaml -c prod.yaml"


def test_backend_without_endpoints_up_comes_first() -> None:
    """Since its last endpoint went down."""
    status = healthy()
    status["backends"] = [
        status["backends"][0]
        | {
            "endpoints": [
                endpoint("http://a", up=False, reason=None, since=NOW - 60),
                endpoint("http://b", up=False, reason="timeout", since=NOW - 20),
            ]
        }
    ]
    fix = "start vLLM there, or correct the URL"
    assert notes(status) == [
        NoteView("Backend chat has no endpoint that is up: its requests are refused (503).", NOW - 20),
        NoteView("http://a (chat) is down: the reason is unknown", NOW - 60, fix),
        NoteView("http://b (chat) is down: timeout", NOW - 20, fix),
    ]


def test_models_of_an_endpoint_that_is_down_are_not_named() -> None:
    """They are those that it had; one line says that it is down."""
    status = healthy()
    status["backends"][0]["endpoints"][0].update(up=False, reason="gone", missing=["m"], problem="x")
    assert [note.text for note in notes(status)] == ["http://10.0.0.11:8000 (chat) is down: gone"]
