"""For each alert: series with which it fires, and with which it does not; as `promtool test rules` takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Series = Mapping[str, str]  # `name{labels}` without those of the pod -> values, as promtool writes them

OURS: Mapping[str, str] = {"namespace": "system", "pod": "api-router-service-7d4b9c5f68-x2x4k"}
SECOND: Mapping[str, str] = {"namespace": "system", "pod": "api-router-service-7d4b9c5f68-zzzz9"}
# Two other gateways in the same namespace, and one of the same name in another.
FOREIGN: tuple[Mapping[str, str], ...] = (
    {"namespace": "system", "pod": "other-service-7d4b9c5f68-x2x4k"},
    {"namespace": "system", "pod": "api-router-service-service-7d4b9c5f68-x2x4k"},
    {"namespace": "elsewhere", "pod": "api-router-service-7d4b9c5f68-x2x4k"},
)


@dataclass(frozen=True)
class Case:
    """Minutes at which an alert fires, and at which it does not."""

    alert: str
    what: str
    series: Series
    fires: tuple[int, ...] = ()
    quiet: tuple[int, ...] = ()
    second: Series | None = None  # of another pod of ours
    interval: str = "1m"


def _up(endpoint: str) -> str:
    return f'aiaas_endpoint_up{{backend="b",endpoint="{endpoint}"}}'


def _config(digest: str) -> str:
    return f'aiaas_config_info{{digest="{digest}"}}'


GOOD = 'aiaas_availability_requests_total{result="good"}'
BAD = 'aiaas_availability_requests_total{result="bad"}'
BUILD = 'aiaas_build_info{version="0"}'
STREAMS = 'aiaas_time_to_first_token_seconds_count{model="m"}'
IN_TIME = 'aiaas_time_to_first_token_seconds_bucket{model="m",le="5.0"}'
BROKEN = 'aiaas_answers_broken_total{by="backend"}'
QUEUED = "aiaas_requests_queued"
WRONG = 'aiaas_models_wrong{backend="b",endpoint="http://a"}'
DEATHS = 'aiaas_engine_deaths_total{backend="b"}'
STORE = "aiaas_limit_store_up"
KEYS = 'aiaas_reload_ok{what="keys"}'
BEGINS = "aiaas_certificate_not_before_timestamp_seconds"
ENDS = "aiaas_certificate_not_after_timestamp_seconds"
ENDED = "aiaas_worker_ends_total"
IN_LAG = 'aiaas_event_loop_lag_seconds_bucket{le="0.1"}'
LATE = 'aiaas_event_loop_lag_seconds_bucket{le="0.25"}'
ALL_LAGS = 'aiaas_event_loop_lag_seconds_bucket{le="+Inf"}'
DESCRIPTORS = "aiaas_descriptors_used_ratio"
DAY = 86400

CASES: tuple[Case, ...] = (
    Case(
        "AiaasAvailabilityBurnsFast",
        "a tenth fails, then nothing",
        {GOOD: "0+90x200", BAD: "0+10x70 700x130"},
        fires=(65,),
        quiet=(110,),
    ),
    Case("AiaasAvailabilityBurnsFast", "4 % for six hours", {GOOD: "0+96x400", BAD: "0+4x400"}, (390,)),
    Case("AiaasAvailabilityBurnsFast", "1 % is not fast", {GOOD: "0+99x400", BAD: "0+1x400"}, quiet=(390,)),
    Case("AiaasAvailabilityBurnsFast", "five of five", {GOOD: "0x400", BAD: "0x60 5x100"}, quiet=(62, 65, 70)),
    Case("AiaasAvailabilityBurnsSlowly", "1 %", {GOOD: "0+99x150", BAD: "0+1x150"}, (4290,), interval="30m"),
    Case("AiaasAvailabilityBurnsSlowly", "0.2 %", {GOOD: "0+998x150", BAD: "0+2x150"}, quiet=(4290,), interval="30m"),
    Case(
        "AiaasFirstTokenBurnsFast",
        "all late, then none",
        {STREAMS: "0+10x200", IN_TIME: "0x70 0+10x130"},
        fires=(65,),
        quiet=(110,),
    ),
    Case("AiaasFirstTokenBurnsFast", "4 % late", {STREAMS: "0+100x400", IN_TIME: "0+96x400"}, quiet=(390,)),
    Case("AiaasFirstTokenBurnsSlowly", "8 %", {STREAMS: "0+100x150", IN_TIME: "0+92x150"}, (4290,), interval="30m"),
    Case(
        "AiaasFirstTokenBurnsSlowly",
        "4 % late",
        {STREAMS: "0+100x150", IN_TIME: "0+96x150"},
        quiet=(4290,),
        interval="30m",
    ),
    Case("AiaasDown", "no metrics, then some", {BUILD: "_x20 1x20"}, (10,), (25,)),
    Case("AiaasBackendDown", "both down, then one up", {_up("a"): "0x10 1x10", _up("b"): "0x20"}, (5,), (12,)),
    Case("AiaasBackendDown", "one pod reaches it", {_up("a"): "0x20"}, quiet=(10,), second={_up("a"): "1x20"}),
    Case("AiaasEndpointDown", "one of two", {_up("a"): "0x30 1x10", _up("b"): "1x40"}, (20,), (10, 35)),
    Case(
        "AiaasAnswersBreak",
        "one in ten, then none",
        {GOOD: "0+90x60", BAD: "0+10x30 300x30", BROKEN: "0+10x30 300x30"},
        fires=(25,),
        quiet=(50,),
    ),
    Case("AiaasAnswersBreak", "plain errors", {GOOD: "0+90x60", BAD: "0+10x60", BROKEN: "0x60"}, quiet=(30,)),
    Case("AiaasQueueing", "always, then never", {QUEUED: "3x30 0x10"}, (20,), (10, 35)),
    Case("AiaasModelsWrong", "one name, then none", {WRONG: "1x20 0x10"}, (15,), (5, 25)),
    Case("AiaasEngineDies", "once", {DEATHS: "0x10 1x40"}, (12,), (5, 40)),
    Case("AiaasStoreAway", "away, then back", {STORE: "0x10 1x10"}, (3,), (15,)),
    Case("AiaasStoreAway", "away for one pod", {STORE: "1x10"}, (3,), second={STORE: "0x10"}),
    Case("AiaasReloadFails", "broken, then repaired", {KEYS: "1x5 0x10 1x10"}, (10,), (3, 20)),
    Case("AiaasConfigsDiffer", "two digests", {_config("a"): "1x50"}, (40,), (10,), second={_config("b"): "1x50"}),
    Case("AiaasConfigsDiffer", "one digest", {_config("a"): "1x50"}, quiet=(40,), second={_config("a"): "1x50"}),
    Case(
        "AiaasCertificateEnds",
        "ten of ninety days left, then renewed",
        {BEGINS: f"{-80 * DAY}x30", ENDS: f"{10 * DAY}x20 {90 * DAY}x10"},
        fires=(10,),
        quiet=(25,),
    ),
    Case(
        "AiaasCertificateEnds",
        "eight hours left of a day",
        {BEGINS: f"{-16 * 3600}x20", ENDS: f"{8 * 3600}x20"},
        quiet=(10,),
    ),
    Case("AiaasCertificateEnds", "30 days left", {BEGINS: f"{-60 * DAY}x20", ENDS: f"{30 * DAY}x20"}, quiet=(10,)),
    Case("AiaasWorkersDie", "eight times, then never", {ENDED: "0x5 0+1x8 8x30"}, (14,), (3, 40)),
    Case("AiaasWorkersDie", "once", {ENDED: "0x5 1x30"}, quiet=(8, 14)),
    Case("AiaasLoopLag", "late by over 0.1 s", {IN_LAG: "0+120x30", LATE: "0+240x30", ALL_LAGS: "0+240x30"}, (20,)),
    Case(
        "AiaasLoopLag",
        "one stall",
        {IN_LAG: "0+240x10 2400+240x20", LATE: "0+240x10 2401+240x20", ALL_LAGS: "0+240x10 2401+240x20"},
        quiet=(15, 25),
    ),
    Case("AiaasDescriptorsLow", "nearly all, then few", {DESCRIPTORS: "0.9x10 0.2x10"}, (8,), (15,)),
)


def unit_tests(name: str) -> dict[str, Any]:
    """The file of tests for one alert, whose rule is in `NAME.yaml`."""
    cases = [case for case in CASES if case.alert == name]
    tests = [_ours(case) for case in cases]
    if name != "AiaasDown":
        tests += [_of_others(case) for case in cases if case.fires]
    interval = "30m" if cases[0].interval == "30m" else "1m"
    return {"rule_files": [f"{name}.yaml"], "evaluation_interval": interval, "tests": tests}


def _ours(case: Case) -> dict[str, Any]:
    return {
        "name": f"{case.alert}: {case.what}",
        "interval": case.interval,
        "input_series": [*_input(case.series, OURS), *_input(case.second or {}, SECOND)],
        "promql_expr_test": [*_firing(case, case.fires, 1), *_firing(case, case.quiet, 0)],
    }


def _of_others(case: Case) -> dict[str, Any]:
    """The same series, but of other gateways: our alert does not fire."""
    return {
        "name": f"{case.alert}: {case.what}, elsewhere",
        "interval": case.interval,
        "input_series": [each for pod in FOREIGN for each in _input(case.series, pod)],
        "promql_expr_test": _firing(case, case.fires, 0),
    }


def _input(series: Series, labels: Mapping[str, str]) -> list[dict[str, str]]:
    pod = ",".join(f'{name}="{value}"' for name, value in labels.items())
    found = []
    for name, values in series.items():
        metric, _, rest = name.partition("{")
        found.append({"series": f"{metric}{{{pod}{',' + rest if rest else '}'}", "values": values})
    return found


def _firing(case: Case, minutes: tuple[int, ...], number: int) -> list[dict[str, Any]]:
    expression = f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) or vector(0)'
    return [
        {"expr": expression, "eval_time": f"{minute}m", "exp_samples": [{"labels": "{}", "value": number}]}
        for minute in minutes
    ]
