"""Runs as tables: each figure in its place, and the remarks for a reader."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from aiaas.loadtest.compare import Overhead
from aiaas.loadtest.limit_check import LimitCheck
from aiaas.loadtest.report import (
    Shown,
    bound_text,
    check_table,
    compare_table,
    holds,
    overhead_table,
    remarks,
    run_as_json,
    tables,
)
from aiaas.loadtest.sample import GatewayUse, Generator, Run, RunEnd, Sample, Window
from aiaas.loadtest.slo import parse_slo
from aiaas.loadtest.stats import Interval
from aiaas.loadtest.summary import summarize
from aiaas.loadtest.table import ReportTable
from tests.loadtest.samples import failed, sample

RUN = Run(1, "0.1.0", "http://h", "m", "2026-01-01T00:00:00Z", "closed", keys=("a", "b"))
END = RunEnd(windows=(Window(0.0, 10.0),))


def shown(*samples: Sample, end: RunEnd | None = END, slo: str = "", name: str = "run") -> Shown:
    """A run of these samples."""
    return Shown(name, RUN, summarize(samples, end, parse_slo(slo)), end)


def row(found: list[ReportTable], title: str, first: str) -> tuple[str, ...]:
    """A row by its first cell."""
    (table,) = [table for table in found if table.title.startswith(title)]
    (wanted,) = [cells for cells in table.rows if cells[0] == first]
    return wanted


def test_a_run_is_shown_by_latency_and_throughput() -> None:
    """With percentiles and rates."""
    found = tables(shown(*(sample(0.0, ttft=0.1, e2e=1.0) for _ in range(20))))
    assert [table.title for table in found] == ["Latency", "Throughput"]
    assert row(found, "Latency", "TTFT") == ("TTFT", *["100 ms"] * 6, "20")
    assert row(found, "Throughput", "answers per second") == ("answers per second", "2.00")
    assert row(found, "Throughput", "output tokens per second") == ("output tokens per second", "22.0")


def test_errors_are_shown_by_kind_with_an_example() -> None:
    """Most frequent first."""
    found = tables(shown(sample(), failed(error="cut", detail="closed"), failed(error="cut"), failed(code="html")))
    (table,) = [table for table in found if table.title == "Errors"]
    assert table.rows == (("cut", "2", "closed"), ("http_500 html", "1", ""))


def test_the_slo_is_shown_bound_by_bound() -> None:
    """With the measured values."""
    found = tables(shown(sample(ttft=0.6), slo="ttft=500ms,e2e:p50=2s,error_rate=1%,goodput=3"))
    (table,) = [table for table in found if table.title == "SLO"]
    assert table.rows == (
        ("ttft p99 <= 500 ms", "600 ms", "missed"),
        ("e2e p50 <= 2.00 s", "1.00 s", "held"),
        ("error_rate <= 1.00 %", "0 %", "held"),
        ("goodput >= 3.00/s", "0.00", "missed"),
    )


def test_keys_are_shown_with_their_fairness() -> None:
    """By label, never by key."""
    found = tables(shown(sample(key=0), sample(key=1), failed(key=1, error="http_429", status=429)))
    assert row(found, "Keys (fairness 1.000", "b")[1:4] == ("2", "1", "1")


def test_a_sweep_marks_its_knee() -> None:
    """Level by level."""
    end = RunEnd(windows=(Window(0.0, 1.0, 1), Window(1.0, 2.0, 2), Window(2.0, 3.0, 4)))
    found = tables(
        shown(
            sample(0.0, e2e=0.9, output_tokens=100, level=1),
            sample(1.0, e2e=0.9, output_tokens=190, level=2),
            sample(2.0, e2e=0.9, output_tokens=195, level=4),
            end=end,
        )
    )
    (table,) = [table for table in found if table.title == "Levels"]
    assert [table.title for table in found] == ["Levels"]
    assert [cells[0] for cells in table.rows if cells[-1] == "knee"] == ["2"]
    assert table.rows[2][1:3] == ("195", "1.00")


def test_a_sweep_that_still_grows_has_no_knee() -> None:
    """It lies beyond the last level: the table, the remark and the JSON say so."""
    end = RunEnd(windows=(Window(0.0, 1.0, 1), Window(1.0, 2.0, 2)))
    samples = [sample(float(at), e2e=0.9, output_tokens=100 * level, level=level) for at, level in ((0, 1), (1, 2))]
    run = shown(*samples, end=end)
    assert [cells[-1] for cells in tables(run)[0].rows] == ["", "still grows"]
    assert "no knee up to 2 users: output still grew there; sweep higher" in remarks(run)
    found = run_as_json(run)
    assert (found["knee"], found["knee_reached"]) == (2, False)


def test_a_level_shows_the_gateways_cpu_where_somebody_looked() -> None:
    """Cores, and the CPU of a request and an output token; without measurements the columns are missing."""
    windows = (Window(0.0, 1.0, 1, GatewayUse(0.022, 2.0)), Window(1.0, 2.0, 2))
    samples = [sample(0.0, e2e=0.9, level=1), sample(0.0, e2e=0.9, level=1), sample(1.0, e2e=0.9, level=2)]
    run = shown(*samples, end=RunEnd(windows=windows))
    (table,) = tables(run)
    place = table.headers.index("gateway cores")
    assert table.headers[place : place + 3] == ("gateway cores", "CPU/request", "CPU/token")
    assert [cells[place : place + 3] for cells in table.rows] == [("0.02", "11.0 ms", "1.0 ms"), ("-", "-", "-")]
    assert run_as_json(run)["levels"][0]["cpu"] == {
        "cores": 0.022,
        "per_request": pytest.approx(0.011),
        "per_token": pytest.approx(0.001),
        "share": 1.0,
    }
    (blind,) = tables(shown(*samples, end=RunEnd(windows=(Window(0.0, 1.0, 1), Window(1.0, 2.0, 2)))))
    assert "gateway cores" not in blind.headers
    single = tables(shown(*samples[:2], end=RunEnd(windows=(Window(0.0, 1.0, 0, GatewayUse(0.022, 2.0)),))))
    assert single[1].rows[-3:] == (
        ("gateway: cores in use", "0.02"),
        ("gateway: CPU per request", "11.0 ms"),
        ("gateway: CPU per output token", "1.0 ms"),
    )


def test_a_sweep_holds_when_its_knee_does() -> None:
    """A sweep goes beyond the limit on purpose; the levels that miss the SLO are marked."""
    end = RunEnd(windows=(Window(0.0, 1.0, 1), Window(1.0, 2.0, 2)))
    fine, slow = sample(0.0, e2e=0.9, level=1), sample(1.0, ttft=0.8, e2e=0.9, level=2)
    run = shown(fine, slow, end=end, slo="ttft=500ms")
    assert [cells[-1] for cells in tables(run)[0].rows] == ["knee", "SLO missed"]
    assert not run.summary.total.held
    assert holds(run.summary)
    assert not holds(shown(replace(slow, level=1), slow, end=end, slo="ttft=500ms").summary)


def test_the_gateways_own_part_is_shown_with_its_interval() -> None:
    """In microseconds, beside the direct figure."""
    found = Overhead(50, Interval(0.0005, 0.0004, 0.0006), None, Interval(-0.0001, -0.0002, 0.0001), 0.2, None, 1.5)
    table = overhead_table(found)
    assert table.title.startswith("Gateway overhead (median of 50 pairs")
    assert table.rows == (
        ("TTFT", "200 ms", "+500 us", "+400 us", "+600 us"),
        ("E2E", "1.50 s", "-100 us", "-200 us", "+100 us"),
    )


def test_the_limiter_is_shown_by_statement() -> None:
    """Expected and measured."""
    assert check_table([LimitCheck("a", "2 to 3", "5", False)]).rows == (("a", "2 to 3", "5", "missed"),)


def test_runs_stand_side_by_side_with_their_change() -> None:
    """Slower by half, in the example."""
    table = compare_table([shown(sample(e2e=1.0), name="a"), shown(sample(e2e=1.5), name="b")])
    assert table.headers == ("", "a", "b")
    cells = {cells[0]: cells[1:] for cells in table.rows}
    assert cells["E2E p50"] == ("1.00 s", "1.50 s (+50 %)")
    assert cells["ITL p50"] == ("-", "-")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        pytest.param(shown(sample()), "", id="nothing to say"),
        pytest.param(
            shown(sample(), failed(error="http_429", status=429, code="rate_limit_exceeded")),
            "50.0 % of the requests were refused by the key's own limit (rate_limit_exceeded), so the run measured",
            id="the key's limit",
        ),
        pytest.param(shown(sample(), end=None), "the run crashed", id="no end"),
        pytest.param(
            shown(sample(), end=RunEnd((Window(0, 10),), True, "interrupted", 3)),
            "ended early (interrupted); 3 requests in flight are not counted",
            id="Ctrl-C",
        ),
        pytest.param(
            shown(sample(), end=RunEnd((Window(0, 10),), generator=Generator(0.97))),
            "itself was the bottleneck",
            id="busy",
        ),
        pytest.param(shown(failed()), "not one request was answered", id="no answer"),
    ],
)
def test_a_reader_is_told_what_the_figures_do_not_say(run: Shown, words: str) -> None:
    """One sentence each."""
    found = remarks(run)
    assert any(words in remark for remark in found) if words else not found


def test_json_has_plain_numbers() -> None:
    """Seconds, shares and rates; it can be written as JSON."""
    found = json.loads(json.dumps(run_as_json(shown(sample(ttft=0.25), slo="ttft=1s"))))
    assert found["total"]["ttft"]["p50"] == 0.25
    assert (found["held"], found["run"]["url"], found["knee"], found["remarks"]) == (True, "http://h", None, [])


def test_a_bound_is_written_with_its_percentile() -> None:
    """As a person would read it."""
    assert bound_text(parse_slo("itl=50ms")[0]) == "itl p99 <= 50.0 ms"
