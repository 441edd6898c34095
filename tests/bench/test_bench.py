"""The benchmark's own arithmetic, and (marked `bench`) that a short run of it works."""

from __future__ import annotations

import os
import time

import pytest

from tests.bench import process
from tests.bench.measure import Cost, Results, Settings, Target, Window, measure
from tests.bench.report import as_page, as_text, percentile, rows


def target(name: str, micros: float) -> Target:
    """A target on which every load cost `micros`."""
    costs = [Cost(micros + step, 1000.0, 0.5, 0.2) for step in (0.0, 1.0, 5.0)]
    return Target(
        name,
        port=1,
        pid=1,
        request=b"",
        stream_request=b"",
        short=costs,
        paced=costs,
        event=costs,
        latencies=[[0.001, 0.002], [0.001, 0.002], [0.001, 0.002]],
        idle_bytes=2**20,
        loaded_bytes=2**21,
        start_seconds=[0.5],
        start_cpu_seconds=[0.4],
    )


def results(nginx: Target | None) -> Results:
    """A finished run."""
    return Results(Settings(), target("aiaas", 30.0), nginx, [[0.0005, 0.001]] * 3, "0.1 0.1 0.1", "1 1 1", 60.0)


def test_the_ratio_is_that_of_the_medians() -> None:
    """One disturbed repetition does not move it."""
    first = rows(results(target("nginx", 9.0)))[0]
    assert first.ratio() == pytest.approx(31.0 / 10.0)


def test_added_latency_leaves_out_what_the_backend_takes() -> None:
    """Percentile through the proxy, less the same percentile without it."""
    added = next(row for row in rows(results(None)) if row.what.startswith("added latency p50"))
    assert added.aiaas == pytest.approx((1000.0, 1000.0, 1000.0))


def test_a_machine_without_nginx_is_told_so() -> None:
    """No silent skip: the table says that nothing was compared."""
    shown = as_text(results(None))
    assert "nginx: not found on this machine" in shown
    assert "not measured" in shown


def test_the_page_holds_every_measure_and_no_path() -> None:
    """docs/bench.md is written from the same rows as the table."""
    run = results(target("nginx", 9.0))
    page = as_page(run)
    assert [row.what for row in rows(run) if row.what not in page] == []
    assert os.getcwd() not in page


def test_percentiles_are_by_nearest_rank() -> None:
    """The highest share is the largest value and never beyond."""
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 4.0, 4.0]


def test_cpu_seconds_are_those_of_the_process() -> None:
    """What the CPU clock of a process counts is what it used itself."""
    before = process.cpu_seconds(os.getpid())
    until = time.process_time() + 0.02
    while time.process_time() < until:
        pass
    assert 0.02 <= process.cpu_seconds(os.getpid()) - before < 0.2


def test_a_window_divides_by_what_was_answered_in_it() -> None:
    """CPU a unit, rate, and the share of the core that others took."""
    window = Window(os.getpid(), os.getpid(), lambda tally: tally.answers)
    window._marks += [(10.0, 1.0, 5.0, 100, 50.0), (12.0, 1.5, 6.0, 10_100, 50.9)]
    cost = window.cost()
    assert (cost.micros, cost.rate, cost.tested_busy, cost.generator_busy) == (50.0, 5000.0, 0.25, 0.5)
    assert cost.disturbed == pytest.approx(0.2)


def test_a_window_without_answers_is_no_measurement() -> None:
    """Dividing by nothing is refused in words."""
    window = Window(os.getpid(), os.getpid(), lambda tally: tally.answers)
    window._marks += [(0.0, 0.0, 0.0, 5, 0.0), (1.0, 1.0, 1.0, 5, 0.0)]
    with pytest.raises(Exception, match="nothing was answered"):
        window.cost()


@pytest.mark.bench
@pytest.mark.timeout(300)
def test_a_run_measures_everything() -> None:
    """The whole benchmark: recorded, not asserted. Only that there are figures, which `pytest -s` shows."""
    affinity = os.sched_getaffinity(0)
    try:
        run = measure(Settings(), print)
    finally:
        os.sched_setaffinity(0, affinity)
    print(as_text(run))
    assert run.aiaas.short[0].micros > 0
    assert run.aiaas.event[0].rate > 0
