"""The benchmark's own arithmetic and tables, and (marked `bench`) that a short run of it works."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import process, wire
from tests.bench.load import BadAnswerError
from tests.bench.measure import QUICK, Cost, Findings, Results, Settings, Window, measure, percentile
from tests.bench.page import as_page, without_paths
from tests.bench.report import LOADS, MEASURES, as_json, as_text, rows
from tests.bench.subjects import SLOW, SUBJECTS, USUAL, Subject
from tests.ports import free_port

REPETITIONS = (0.0, 1.0, 5.0)


def findings(name: str, base: float) -> Findings:
    """A subject of which every measure was `base`, `base` + 1 and `base` + 5 in its own unit."""
    found = Findings(name, version="1.2.3")
    for each in MEASURES:
        found.values[each.key] = [(base + step) / each.scale for step in REPETITIONS]
    found.costs = {load: [Cost(base, 1000.0, 0.5, 0.2)] for load in LOADS.values()}
    return found


def results(*others: Findings) -> Results:
    """A finished run, with aiaas at 30."""
    return Results(
        Settings(), [findings("aiaas", 30.0), *others], Findings("direct"), "3.11.7", "0.1 0.1 0.1", "1 1 1", 60.0
    )


def test_the_ratio_is_that_of_the_medians() -> None:
    """One disturbed repetition does not move it."""
    assert rows(results(findings("nginx", 9.0)))[0].ratio("nginx") == pytest.approx(31.0 / 10.0)


@pytest.mark.parametrize(
    ("base", "equal"),
    [
        pytest.param(30.0, True, id="the same"),
        pytest.param(34.0, True, id="ranges overlap"),
        pytest.param(36.0, False, id="the other dearer in every repetition"),
        pytest.param(24.0, False, id="the other cheaper in every repetition"),
    ],
)
def test_values_within_the_spread_are_called_equal(base: float, equal: bool) -> None:
    """Where the ranges of both overlap, the table makes no difference of it."""
    row = rows(results(findings("nginx", base)))[0]
    assert row.equal("nginx") is equal
    assert row.compared("nginx").endswith(", equal") is equal


def test_one_repetition_is_never_called_equal() -> None:
    """It has no spread."""
    run = results(findings("nginx", 30.0))
    for each in run.findings:
        each.values = {key: values[:1] for key, values in each.values.items()}
    assert not rows(run)[0].equal("nginx")


def test_missing_subject_is_in_the_table_with_the_cause() -> None:
    """No silent skip: not on the terminal, not in the docs."""
    run = results(Findings("haproxy", missing="not found on this machine (Debian: apt-get install haproxy)"))
    for shown in (as_text(run), as_page(run)):
        assert "haproxy: not measured: not found on this machine" in shown
        assert shown.count("not measured") > len(MEASURES)


def test_failed_subject_leaves_the_rest_standing() -> None:
    """A refused stream is written down, and the other measures remain."""
    failing = findings("nginx", 9.0)
    with failing.attempt("open streams"):
        raise BadAnswerError("1,999 streams were open: refused")
    del failing.values["per_stream"]
    shown = as_text(results(failing))
    assert "nginx: open streams: 1,999 streams were open: refused" in shown
    assert shown.count("not measured") == 1


def test_a_slower_pace_is_said() -> None:
    """A subject that could not answer the others' load has a star, and only where its load was another."""
    slow = findings("litellm", 5000.0)
    slow.pace = SLOW
    run = results(slow)
    assert [row.cell("litellm").endswith(" *") for row in rows(run)] == [each.paced for each in MEASURES]
    assert "litellm could not answer what the others were asked for: measured at 20 and 40 requests" in as_text(run)


def test_a_rate_that_the_generator_limited_is_a_lower_bound() -> None:
    """The proxy might do more."""
    fast = findings("nginx", 9.0)
    fast.costs["short"] = [Cost(9.0, 80_000.0, 0.8, 0.99)]
    shown = [row.cell("nginx") for row in rows(results(fast)) if row.cell("nginx").startswith(">= ")]
    assert len(shown) == 1


def test_the_page_holds_every_measure_and_no_path() -> None:
    """docs/bench.md is written from the same rows as the table."""
    run = results(findings("nginx", 9.0), Findings("litellm", missing=f"could not be installed: {os.getcwd()}/x"))
    page = as_page(run)
    assert [row.what for row in rows(run) if row.what not in page] == []
    assert os.getcwd() not in page
    assert without_paths("no /var/x/y; 3/4 of 1/s") == "no ...; 3/4 of 1/s"


def test_the_json_holds_every_repetition() -> None:
    """And the ratios."""
    [first, *_] = as_json(results(findings("nginx", 9.0)))["rows"]
    assert first["values"] == {"aiaas": pytest.approx((30.0, 31.0, 35.0)), "nginx": pytest.approx((9.0, 10.0, 14.0))}
    assert first["ratios_of_medians"] == {"aiaas": None, "nginx": pytest.approx(3.1)}


def test_percentiles_are_by_nearest_rank() -> None:
    """The highest share is the largest value and never beyond."""
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 4.0, 4.0]


def test_cpu_seconds_are_those_of_the_process() -> None:
    """The CPU clock of a process counts only its own use."""
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


def test_window_without_answers_is_rejected() -> None:
    """Dividing by nothing is refused in words."""
    window = Window(os.getpid(), os.getpid(), lambda tally: tally.answers)
    window._marks += [(0.0, 0.0, 0.0, 5, 0.0), (1.0, 1.0, 1.0, 5, 0.0)]
    with pytest.raises(BadAnswerError, match="nothing was answered"):
        window.cost()


def test_the_backend_finds_in_the_request_what_it_shall_stream() -> None:
    """However a proxy spaces the JSON."""
    request = wire.request("key", wire.Stream(120, 0.2))
    assert wire.asked_for(request.replace(b'": ', b'":')) == wire.Stream(120, 0.2)


def test_missing_program_does_not_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a line in the results."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("tests.bench.subjects.shutil.which", lambda *_args, **_more: None)
    with pytest.raises(Exception, match="apt-get install haproxy"):
        SUBJECTS["haproxy"](Path("unused"), 1)


def tiny_run(
    monkeypatch: pytest.MonkeyPatch, subject: Subject, say: Callable[[str], None] = print, *, starts: int = 0
) -> Results:
    """Two rounds of `subject`, of tenths of a second, without the streams, which take seconds."""
    monkeypatch.setattr("tests.bench.measure._Bench._streams", lambda *_: {})
    tiny = replace(QUICK, rounds=2, warm_up=0.05, short_seconds=0.1, paced_seconds=0.1,
                   probe_seconds=0.1, streams=2, open_streams=2, arrivals=2, starts=starts)  # fmt: skip
    affinity = os.sched_getaffinity(0)
    monkeypatch.setattr("tests.bench.measure.SUBJECTS", {subject.name: lambda _folder, _backend: subject})
    try:
        return measure(tiny, [subject.name], say)
    finally:
        os.sched_setaffinity(0, affinity)


def test_subject_that_does_not_start_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it end the run: the backend is still measured by itself."""
    said: list[str] = []
    broken = Subject("nginx", "1", 1, [sys.executable, "-c", "exit('broken')"])
    run = tiny_run(monkeypatch, broken, said.append, starts=2)
    assert "nginx did not answer; it wrote: broken" in run.findings[0].problems["start"]
    assert [line for line in said if line.startswith("start")] == ["start 0 of 2: nginx"]
    assert run.direct.problems == {}
    assert len(run.direct.values["arrival_p50"]) == 2


def test_failed_load_is_not_tried_again_and_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that hangs in one of them would cost a minute in each round."""
    port, asked = free_port(), []

    def refused(at: int, _request: bytes, _count: int) -> list[float]:
        asked.append(at)
        if at == port:
            raise BadAnswerError("refused")
        return [0.001]

    monkeypatch.setattr("tests.bench.measure.arrivals", refused)
    run = tiny_run(monkeypatch, Subject("nginx", "1", port, process.backend_command(port)))
    assert run.findings[0].problems == {"clients that arrive at once": "refused"}
    assert asked.count(port) == 1
    assert {len(run.findings[0].values[f"{load}_cpu"]) for load in ("short", "varied", "paced", "brisk")} == {2}


def test_first_byte_without_a_proxy_is_said() -> None:
    """The rows contain it, so that a reader can take it off."""
    run = results(findings("nginx", 9.0))
    run.direct.values = {f"arrival_{name}": [0.002, 0.003, 0.009] for name in ("p50", "p99", "max")}
    assert "clients arrive at once: p50 3.0 ms, p99 3.0 ms, max 3.0 ms" in as_text(run)


@pytest.mark.bench
@pytest.mark.timeout(300)
def test_a_run_measures_everything() -> None:
    """A short run: recorded, not judged. Only that there are figures of aiaas, which `pytest -s` shows."""
    affinity = os.sched_getaffinity(0)
    try:
        run = measure(QUICK, list(USUAL), print)
    finally:
        os.sched_setaffinity(0, affinity)
    print(as_text(run))
    [ours] = [each for each in run.findings if each.name == "aiaas"]
    assert (ours.missing, ours.problems) == ("", {})
    assert sorted(ours.values) == sorted(each.key for each in MEASURES)
