"""aiaas.proxy.telemetry.counters: what alerts read, from the start on."""

from __future__ import annotations

import time

import pytest

from aiaas.proxy.telemetry.metrics import LIMIT_OF, RETRY_REASONS, Metrics
from aiaas.proxy.telemetry.record import Record
from aiaas.proxy.upstream.attempt import LOST, End, Outcome, may_try_again
from aiaas.proxy.upstream.connection import Failure, FailureKind
from tests.proxy.conftest import config_of, plan_of

CHAT = "/v1/chat/completions"
PHASES = ("admission", "queued", "waiting", "streaming")


def values(metrics: Metrics) -> dict[str, float]:
    """The exposed samples, by name and labels as they are written."""
    lines = [line for line in metrics.expose().decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def ended(metrics: Metrics, **facts: object) -> None:
    """A request that ended."""
    facts = {"status": 200, "model": "m", "key_id": "k", "input_tokens": 3, "output_tokens": 4} | facts
    metrics.finished(Record("id", CHAT, 0.0, "1.2.3.4", **facts), 1.0)  # type: ignore[arg-type]


def test_counters_of_alerts_begin_at_zero() -> None:
    """All label values that there are; the first event is an increase then."""
    got = values(Metrics())
    labels = {
        "aiaas_availability_requests_total": ('result="good"', 'result="bad"'),
        "aiaas_answers_broken_total": ('by="backend"', 'by="gateway"'),
        "aiaas_aborts_total": tuple(f'phase="{phase}"' for phase in PHASES),
        "aiaas_aborted_tokens_total": tuple(
            f'phase="{phase}",type="{kind}"' for phase in PHASES[2:] for kind in ("input", "output")
        ),
        "aiaas_reloads_total": tuple(
            f'result="{result}",what="{what}"'
            for what in ("config", "keys", "tls")
            for result in ("success", "failure")
        ),
        "aiaas_refused_total": tuple(f'limit="{limit}"' for limit in LIMIT_OF.values()),
        "aiaas_retries_total": tuple(f'reason="{reason}"' for reason in RETRY_REASONS),
        "aiaas_usage_batches_total": ('result="success"', 'result="failure"'),
        "aiaas_connections_turned_away_total": tuple(
            f'reason="{reason}"' for reason in ("evicted", "address", "full", "descriptors")
        ),
    }
    expected = {f"{name}{{{each}}}" for name, several in labels.items() for each in several}
    assert {name: got.get(name) for name in expected} == dict.fromkeys(expected, 0.0)


def test_every_reason_of_a_retry_is_known_beforehand() -> None:
    """A new reason must begin at 0, too."""
    failed = [Outcome(End.FAILED, failure=Failure(kind, "")) for kind in FailureKind]
    unknown_path = b'{"detail":"Not Found"}'
    dead = b'{"error":{"message":"EngineCore encountered an issue.","type":"InternalServerError","code":500}}'
    held = [(503, b"<html>"), (429, b"{}"), (404, unknown_path), (500, dead)]
    refused = [Outcome(End.REFUSED, status, body=body) for status, body in held]
    found = {again.reason for outcome in failed + refused if (again := may_try_again(outcome)) is not None}
    assert found | {LOST.reason} == set(RETRY_REASONS)


def test_series_of_the_plans_models_begin_at_zero() -> None:
    """`increase()` of a new pod counts its first requests, too."""
    metrics = Metrics()
    metrics.follow(plan_of(config_of(["http://a"], {"models": ["m", "alias"], "endpoints": [CHAT]}, {})))
    got = values(metrics)
    for model in ("m", "alias", "unknown"):
        for status in ("success", "error"):
            assert got[f'inference_requests_total{{endpoint="{CHAT}",model="{model}",status="{status}"}}'] == 0
        assert got[f'aiaas_time_to_first_token_seconds_count{{model="{model}"}}'] == 0
    assert not any("/v1/completions" in name for name in got), "a path that no backend offers"


@pytest.mark.parametrize(
    ("facts", "counted"),
    [
        pytest.param({}, (1, 0, 0, 0), id="a whole answer"),
        pytest.param({"status": 404}, (0, 0, 0, 0), id="an error of the client"),
        pytest.param({"status": 429, "error_code": "rate_limit_exceeded"}, (0, 0, 0, 0), id="a limit"),
        pytest.param({"status": 499, "error_code": "client_left"}, (0, 0, 0, 0), id="left before the answer"),
        pytest.param({"error_code": "client_left"}, (0, 0, 0, 0), id="left in the middle of a stream"),
        pytest.param({"error_code": "client_too_slow"}, (0, 0, 0, 0), id="read nothing"),
        pytest.param({"status": 503, "error_code": "overloaded"}, (0, 1, 0, 0), id="an error of ours"),
        pytest.param({"status": 500}, (0, 1, 0, 0), id="an error of vLLM"),
        pytest.param({"error_code": "upstream_error"}, (0, 1, 1, 0), id="broken off by vLLM"),
        pytest.param({"error_code": "upstream_timeout"}, (0, 1, 1, 0), id="vLLM fell silent"),
        pytest.param({"error_code": "draining"}, (0, 1, 0, 1), id="broken off by a drain"),
    ],
)
def test_each_end_counts_for_availability_or_not(facts: dict[str, object], counted: tuple[int, ...]) -> None:
    """A stream that broke has a status of 200; what a client did says nothing about the service."""
    metrics = Metrics()
    ended(metrics, **facts)
    got = values(metrics)
    names = (
        *(f'aiaas_availability_requests_total{{result="{result}"}}' for result in ("good", "bad")),
        *(f'aiaas_answers_broken_total{{by="{by}"}}' for by in ("backend", "gateway")),
    )
    assert tuple(got[name] for name in names) == counted


def test_tokens_of_aborted_requests_are_counted_by_phase() -> None:
    """Only where an engine worked for it."""
    metrics = Metrics()
    for phase in ("queued", "waiting", "streaming"):
        ended(metrics, phase=phase, ended_by="client", status=499, error_code="client_left")
    ended(metrics, phase="streaming")
    got = values(metrics)
    aborts = [
        got[f'aiaas_aborts_total{{phase="{phase}"}}'] for phase in ("admission", "queued", "waiting", "streaming")
    ]
    assert aborts == [0, 1, 1, 1]
    for phase in ("waiting", "streaming"):
        assert got[f'aiaas_aborted_tokens_total{{phase="{phase}",type="input"}}'] == 3
        assert got[f'aiaas_aborted_tokens_total{{phase="{phase}",type="output"}}'] == 4


def test_a_failed_reload_shows_until_the_file_is_good_again() -> None:
    """A counter of failures says nothing of how long the fault lasts."""
    metrics, before = Metrics(), time.time()
    assert not any("aiaas_reload_ok" in name for name in values(metrics)), "nothing was read yet"
    metrics.reloads.show("keys", ok=True)
    last = values(metrics)['aiaas_reload_last_success_timestamp_seconds{what="keys"}']
    assert before <= last <= time.time()
    metrics.reloaded("keys", ok=False)
    got = values(metrics)
    assert got['aiaas_reload_ok{what="keys"}'] == 0
    assert got['aiaas_reload_last_success_timestamp_seconds{what="keys"}'] == last
    metrics.reloaded("keys", ok=True)
    assert values(metrics)['aiaas_reload_ok{what="keys"}'] == 1
    for _ in range(2):
        metrics.reloads.forget("keys")
        assert not any("aiaas_reload_ok" in name for name in values(metrics))


def test_a_certificates_dates_show_only_where_there_is_one() -> None:
    """A date of 0 would be a certificate that has expired."""
    metrics = Metrics()
    assert not any("certificate" in name for name in values(metrics))
    metrics.certificate.show(1.0, 2.0)
    got = values(metrics)
    assert got["aiaas_certificate_not_before_timestamp_seconds"] == 1.0
    assert got["aiaas_certificate_not_after_timestamp_seconds"] == 2.0


def test_descriptors_in_use_are_a_share_of_the_limit() -> None:
    """Each process by itself: sums of several have no limit to be compared with."""
    got = values(Metrics())
    assert got["aiaas_descriptors_used_ratio"] == pytest.approx(
        got["process_open_fds"] / got["process_max_fds"], abs=0.01
    )
