"""The terms of an SLO, and whether a request or a run meets it."""

from __future__ import annotations

import pytest

from aiaas.errors import UsageError
from aiaas.loadtest.sample import Sample
from aiaas.loadtest.slo import Bound, SloVerdict, judge, meets, parse_slo
from aiaas.loadtest.stats import spread
from tests.loadtest.samples import failed, sample

LATENCIES = {
    "ttft": spread([0.1, 0.2, 0.9]),
    "itl": None,
    "tpot": None,
    "e2e": spread([float(value) for value in range(1, 101)]),
}


def test_an_slo_is_read_with_its_units() -> None:
    """Durations in seconds, shares as shares, p99 unless said otherwise."""
    assert parse_slo("ttft=1s, e2e:p95=500ms,error_rate=1%,goodput=20") == (
        Bound("ttft", 1.0, 99),
        Bound("e2e", 0.5, 95),
        Bound("error_rate", 0.01),
        Bound("goodput", 20.0),
    )


def test_empty_slo_has_no_bounds() -> None:
    """For an empty text."""
    assert parse_slo(" ") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("ttft", "'ttft' is not a bound", id="no value"),
        pytest.param("speed=1s", "'speed=1s' is not a bound", id="unknown name"),
        pytest.param("ttft=1", "1 has no unit", id="no unit"),
        pytest.param("ttft=0", "longer than 0", id="zero"),
        pytest.param("ttft:p42=1s", "p42 is not available", id="unknown percentile"),
        pytest.param("error_rate:p50=1%", "error_rate has no percentiles", id="percentile of a share"),
        pytest.param("error_rate=2", "more than 100%", id="share above one"),
        pytest.param("error_rate=-1%", "is not a bound", id="negative share"),
        pytest.param("ttft=1s,ttft=2s", "ttft is given twice", id="twice"),
        pytest.param("ttft=1s,,", "'' is not a bound", id="empty term"),
    ],
)
def test_a_wrong_slo_is_one_line(text: str, message: str) -> None:
    """The fault and the allowed values."""
    with pytest.raises(UsageError) as refused:
        parse_slo(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        pytest.param(sample(ttft=0.4, e2e=1.0), True, id="within"),
        pytest.param(sample(ttft=0.6, e2e=1.0), False, id="first event too late"),
        pytest.param(sample(ttft=0.4, e2e=3.0), False, id="whole answer too late"),
        pytest.param(sample(ttft=None, e2e=1.0), True, id="no stream has no TTFT to miss"),
        pytest.param(failed(), False, id="a failure"),
        pytest.param(sample(aborted=True), False, id="left on purpose"),
        pytest.param(sample(gaps=(90_000, 110_000, 120_000)), False, id="median gap too long"),
        pytest.param(sample(gaps=(90_000, 90_000, 990_000)), True, id="one long gap only"),
    ],
)
def test_a_request_meets_an_slo_when_all_its_durations_do(one: Sample, expected: bool) -> None:
    """For goodput."""
    assert meets(one, parse_slo("ttft=500ms,e2e=2s,itl=100ms")) is expected


@pytest.mark.parametrize(
    ("text", "seen", "held"),
    [
        pytest.param("e2e:p95=95s", 95.0, True, id="percentile on the bound"),
        pytest.param("e2e:p95=94s", 95.0, False, id="percentile above it"),
        pytest.param("ttft:p50=200ms", 0.2, True, id="median"),
        pytest.param("tpot=1s", None, False, id="nothing measured does not hold"),
        pytest.param("error_rate=2%", 0.02, True, id="errors on the bound"),
        pytest.param("error_rate=1%", 0.02, False, id="errors above it"),
        pytest.param("goodput=5", 5.0, True, id="enough goodput"),
        pytest.param("goodput=6", 5.0, False, id="too little goodput"),
    ],
)
def test_a_run_is_held_against_each_bound(text: str, seen: float | None, held: bool) -> None:
    """With the measured values."""
    bounds = parse_slo(text)
    assert judge(bounds, LATENCIES, 0.02, 5.0) == (SloVerdict(bounds[0], seen, held),)
