"""The tables and the caveats of a fairness test."""

from __future__ import annotations

from typing import Any

import pytest

from aiaas.loadtest.fairness import FairnessReport, KeyRefusals, judge_fairness
from aiaas.loadtest.fairness_report import fairness_remarks, fairness_tables
from aiaas.loadtest.sample import Generator
from tests.loadtest.test_fairness import figures


def report(**more: Any) -> FairnessReport:
    """A test whose light key waited a little and whose heavy key waited long."""
    alone, beside = figures(0.05), figures(0.4)
    settings: dict[str, Any] = {
        "url": "http://127.0.0.1:8080",
        "model": "m",
        "load": "light key, heavy key",
        "light_alone": alone,
        "light_beside": beside,
        "heavy_alone": figures(9.0, tokens_per_second=700.0),
        "heavy_beside": figures(9.0, tokens_per_second=650.0),
        "checks": judge_fairness(alone, beside),
        "fair": True,
    }
    return FairnessReport(**(settings | more))


def test_tables_show_both_keys_alone_and_beside() -> None:
    """With the tokens of both together, and the verdict."""
    first, verdict = fairness_tables(report())
    assert first.title == "Fairness: light key, heavy key"
    assert [row[0] for row in first.rows] == [
        *("light, alone", "light, beside", "heavy, alone", "heavy, beside", "both, beside"),
    ]
    assert first.rows[1] == ("light, beside", *["400 ms"] * 4, "20", "20", "0", "0", "0", "0", "50.0")
    assert first.rows[-1][-1] == "700"
    assert {len(row) for row in first.rows} == {len(first.headers)}
    assert verdict.title == "Verdict: fair"
    assert [row[-1] for row in verdict.rows] == ["held", "held"]


def test_tables_of_a_test_without_a_flood_have_one_row() -> None:
    """Ctrl-C came first; nothing is judged."""
    tables = fairness_tables(report(light_beside=None, heavy_alone=None, heavy_beside=None, checks=(), fair=None))
    assert [[row[0] for row in table.rows] for table in tables] == [["light, alone"]]


def test_refusals_have_a_table_by_key() -> None:
    """Only if there were some."""
    tables = fairness_tables(report(refusals=(KeyRefusals("h1", 3, 0), KeyRefusals("h2", 0, 1)), fair=False))
    assert [table.title for table in tables][1:] == ["Refused in the whole test", "Verdict: not fair"]
    assert tables[1].rows == (("h1", "3", "0"), ("h2", "0", "1"))


@pytest.mark.parametrize(
    ("more", "remark"),
    [
        pytest.param({}, "", id="none"),
        pytest.param({"light_beside": figures(limited=2)}, "2 of the light key's requests were refused", id="429"),
        pytest.param({"light_beside": figures(unfinished=1)}, "1 of the light key's requests were", id="cut"),
        pytest.param({"heavy_beside": figures(9.0, limited=8)}, "40.0 % of the heavy key's requests", id="weak flood"),
        pytest.param(
            {"light_alone": figures(load_per_second=90.0), "heavy_beside": figures(9.0, load_per_second=200.0)},
            "the light key asked for 0.9 of an equal share",
            id="not light",
        ),
        pytest.param({"heavy_beside": figures(0.08)}, "heavy key itself did not wait (TTFT p50 80.0 ms)", id="room"),
    ],
)  # fmt: skip
def test_caveats_are_said(more: dict[str, Any], remark: str) -> None:
    """Each says what to change."""
    remarks = fairness_remarks(report(**more), 2, Generator())
    assert len(remarks) == bool(remark)
    assert all(remark in found for found in remarks)


def test_an_overloaded_generator_is_said_and_a_late_send_is_not() -> None:
    """A few milliseconds do not change this verdict."""
    assert fairness_remarks(report(), 2, Generator(late_sends=9)) == ()
    (remark,) = fairness_remarks(report(), 2, Generator(cpu_share=0.99))
    assert "the load generator itself was the bottleneck: it used 99%" in remark
