"""The alerts: each is a fault that somebody has to act on, with a section of docs/alerts.md that says how.

Three rules:

1. An expression selects the pods of its own gateway. Two gateways in one namespace do not set off each other's alerts.
2. An alert lasts as long as its fault: it reads a state, or a rate over a window; and it reads counters that exist at 0
   from the start, since `increase()` does not see a counter that begins at 1.
3. Alerts on the two objectives are burn rates (the Site Reliability Workbook, chapter 5): the error budget of 30 days
   is used up so many times too fast, over a long window, and still is, over a short one. Fast is 2 % of the budget in
   an hour or 5 % in six, slow is 10 % in three days. A few failures among few requests are no reason to wake somebody:
   BURNT_AT_LEAST.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiaas.config.model import Slo

# (times too fast, long window, short window)
FAST: Final = ((14.4, "1h", "5m"), (6.0, "6h", "30m"))
SLOW: Final = ((1.0, "3d", "6h"),)
BURNT_AT_LEAST: Final = 10  # requests in the long window
SUNSET: Final = 14 * 86400  # seconds before the end of a certificate that somebody should have renewed


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule. `{ns}` in the expression stands for the selector of our pods."""

    name: str
    expression: str
    lasting: str
    severity: str
    summary: str


_JUDGED: Final = "sum(rate(aiaas_availability_requests_total{{ns}}[%s]))"
_BAD: Final = 'sum(%s(aiaas_availability_requests_total{{ns},result="bad"}[%s]))'
_STREAMS: Final = "sum(rate(aiaas_time_to_first_token_seconds_count{{ns}}[%s]))"
_LATE: Final = (
    "(sum(%s(aiaas_time_to_first_token_seconds_count{{ns}}[%s]))"
    ' - sum(%s(aiaas_time_to_first_token_seconds_bucket{{ns},le="{le}"}[%s])))'
)


def alerts(slo: Slo) -> tuple[Alert, ...]:
    """All alerts, those of the objectives first."""
    return (*_availability(slo), *_first_token(slo), *CAUSES)


def _availability(slo: Slo) -> tuple[Alert, Alert]:
    budget = 1 - slo.availability / 100

    def bad(function: str, window: str) -> str:
        return _BAD % (function, window)

    def burns(rates: tuple[tuple[float, str, str], ...]) -> str:
        return _burns(bad, _JUDGED, budget, rates)

    missed = f"so the availability of {slo.availability:g} % in 30 days will be missed."
    return (
        Alert("AiaasAvailabilityBurnsFast", burns(FAST), "2m", "critical", f"Requests fail, {missed}"),
        Alert("AiaasAvailabilityBurnsSlowly", burns(SLOW), "1h", "warning", f"For days, requests fail, {missed}"),
    )


def _first_token(slo: Slo) -> tuple[Alert, Alert]:
    budget = 1 - slo.ttft_share / 100
    bound = repr(float(slo.ttft))

    def late(function: str, window: str) -> str:
        return _LATE.replace("{le}", bound) % (function, window, function, window)

    def burns(rates: tuple[tuple[float, str, str], ...]) -> str:
        return _burns(late, _STREAMS, budget, rates)

    missed = f"so the objective that {slo.ttft_share:g} % get theirs within {slo.ttft:g} s will be missed."
    return (
        Alert(
            "AiaasFirstTokenBurnsFast", burns(FAST), "2m", "critical", f"Streams wait for their first token, {missed}"
        ),
        Alert(
            "AiaasFirstTokenBurnsSlowly", burns(SLOW), "1h", "warning", f"For days, streams wait for a token, {missed}"
        ),
    )


def _burns(
    bad: Callable[[str, str], str], judged: str, budget: float, rates: tuple[tuple[float, str, str], ...]
) -> str:
    """Whether the budget is used up too fast: by one of the rates, over both of its windows."""

    def above(rate: float, window: str) -> str:
        return f"{bad('rate', window)} / {judged % window} > {rate * budget:.6g}"

    pairs = [
        f"({above(rate, long)} and {above(rate, short)} and {bad('increase', long)} > {BURNT_AT_LEAST})"
        for rate, long, short in rates
    ]
    return " or ".join(pairs)


CAUSES: Final = (
    Alert(
        "AiaasDown",
        "absent(aiaas_build_info{{ns}})",
        "5m",
        "critical",
        "Prometheus has metrics of no gateway: all are down, or their metrics ports cannot be reached.",
    ),
    Alert(
        "AiaasBackendDown",
        "max by (backend) (aiaas_endpoint_up{{ns}}) == 0",
        "2m",
        "critical",
        "All addresses of {{ $labels.backend }} are unhealthy: its models answer 503.",
    ),
    Alert(
        "AiaasEndpointDown",
        "max by (backend, endpoint) (aiaas_endpoint_up{{ns}}) == 0",
        "15m",
        "warning",
        "{{ $labels.endpoint }} of {{ $labels.backend }} is unhealthy and gets no requests.",
    ),
    Alert(
        "AiaasAnswersBreak",
        "sum by (by) (rate(aiaas_answers_broken_total{{ns}}[5m]))"
        " / on () group_left () sum(rate(aiaas_availability_requests_total{{ns}}[5m])) > 0.01",
        "5m",
        "warning",
        "More than 1 % of the answers break off in the middle, ended by the {{ $labels.by }}.",
    ),
    Alert(
        "AiaasQueueing",
        "sum(aiaas_requests_queued{{ns}}) > 0",
        "15m",
        "warning",
        "Requests have been waiting for an endpoint for 15 minutes: add replicas of vLLM, or lower the limits.",
    ),
    Alert(
        "AiaasModelsWrong",
        "max by (backend, endpoint) (aiaas_models_wrong{{ns}}) > 0",
        "10m",
        "warning",
        "{{ $labels.endpoint }} of {{ $labels.backend }} does not serve {{ $value }} of the config's model names.",
    ),
    Alert(
        "AiaasEngineDies",
        "sum by (backend) (increase(aiaas_engine_deaths_total{{ns}}[15m])) > 0",
        "0m",
        "warning",
        "The engine of {{ $labels.backend }} died: its requests broke off, and it starts again.",
    ),
    Alert(
        "AiaasStoreAway",
        "min(aiaas_limit_store_up{{ns}}) == 0",
        "1m",
        "warning",
        "The shared store of limits cannot be reached: each gateway counts by itself, or as on_store_failure says.",
    ),
    Alert(
        "AiaasReloadFails",
        "min by (what) (aiaas_reload_ok{{ns}}) == 0",
        "1m",
        "warning",
        "The {{ $labels.what }} file on disk cannot be used; the gateway still uses the last valid one, if any.",
    ),
    Alert(
        "AiaasConfigsDiffer",
        "count(count by (digest) (aiaas_config_info{{ns}})) > 1",
        "30m",
        "warning",
        "The gateways run different configs: a rollout is stuck.",
    ),
    Alert(
        "AiaasCertificateEnds",
        "min(aiaas_certificate_not_after_timestamp_seconds{{ns}} - time()"
        f" < {SUNSET} and aiaas_certificate_not_after_timestamp_seconds{{{{ns}}}} - time()"
        " < (aiaas_certificate_not_after_timestamp_seconds{{ns}}"
        " - aiaas_certificate_not_before_timestamp_seconds{{ns}}) / 4)",
        "5m",
        "warning",
        "The certificate ends in {{ $value | humanizeDuration }} and was not renewed.",
    ),
    Alert(
        "AiaasWorkersDie",
        "sum(increase(aiaas_worker_ends_total{{ns}}[15m])) > 2",
        "0m",
        "warning",
        "Workers of the gateway died {{ $value | humanize }} times in 15 minutes; each time streams broke off.",
    ),
    Alert(
        "AiaasLoopLag",
        "histogram_quantile(0.99, sum by (pod, le) (rate(aiaas_event_loop_lag_seconds_bucket{{ns}}[5m]))) > 0.1",
        "10m",
        "warning",
        "{{ $labels.pod }} is late by {{ $value | humanizeDuration }}: it needs more CPU, or more gateways.",
    ),
    Alert(
        "AiaasDescriptorsLow",
        "max by (pod) (aiaas_descriptors_used_ratio{{ns}}) > 0.8",
        "5m",
        "warning",
        "{{ $labels.pod }} uses {{ $value | humanizePercentage }} of its file descriptors; it will refuse connections.",
    ),
)
