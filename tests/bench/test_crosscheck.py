"""The cross-check's tables and page, and what a tool that fails leaves of the rest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bench import setup
from tests.bench.crosspage import as_page, as_text, event_table, script_table
from tests.bench.crossrun import SCRIPTS, Outcome, Received, measure
from tests.bench.differences import READ
from tests.bench.script import truth
from tests.bench.tools import GUIDELLM, OURS, VLLM, Load, NotAnsweredError, Report, Tool
from tests.e2e.vllm.setup import VLLM_VERSION

LOAD = Load("http://127.0.0.1:1", "m", requests=1, tokens=1, users=1)


def outcome(name: str, *factors: float) -> Outcome:
    """A tool whose rounds each reported the truth times a factor."""
    found = Outcome(Tool(name, "1.2.3"))
    for script in SCRIPTS:
        true = truth(script)
        found.reports[script.title] = [{key: value * factor for key, value in true.items()} for factor in factors]
    return found


def test_each_figure_stands_beside_the_truth() -> None:
    """The median of the rounds, with its difference; one disturbed round does not move it."""
    table = script_table(SCRIPTS[0], [outcome(OURS, 1.0, 1.01, 9.0), outcome(VLLM, 0.9)])
    assert table[0] == ["what", "script", OURS, VLLM]
    assert table[1] == ["TTFT p50, ms", "200.0", "202.0 (+1.0%)", "180.0 (-10.0%)"]
    assert [line for line in table if line[0] == "E2E p50, ms"] == [
        ["E2E p50, ms", "1,180", "1,192 (+1.0%)", "1,062 (-10.0%)"]
    ]


def test_missing_tool_is_reported_with_the_cause() -> None:
    """No silent skip: not on the terminal, not in the docs."""
    missing = Outcome(Tool(GUIDELLM, missing="no wheel"), problems={"not measured": "no wheel in /srv/wheels"})
    outcomes = [outcome(OURS, 1.0), missing]
    assert "guidellm: not measured: no wheel in /srv/wheels" in as_text(SCRIPTS, outcomes)
    page = as_page(SCRIPTS, outcomes, "0.1 0.1 0.1")
    assert "guidellm: not measured: no wheel in ..." in page
    assert "| TTFT p50, ms | 200.0 | 200.0 (+0.0%) | not measured |" in page


@pytest.mark.parametrize(
    ("rate", "shown"),
    [pytest.param(4_900, "4,900", id="kept up"), pytest.param(3_000, "3,000: did not keep up", id="no")],
)
def test_a_tool_that_does_not_keep_up_is_shown_with_what_it_says(rate: float, shown: str) -> None:
    """Received a second, CPU an event, and its own word."""
    found = outcome(VLLM, 1.0)
    report = Report({"itl_p50": 0.0201, "itl_p99": 0.03, "tokens_per_second": rate}, "")
    found.received[50] = Received(5_000, 11.5e-6, report, 0.02)
    assert event_table([found])[1] == [VLLM, "5,000", shown, "11.5 us", "20.10 (20) ms", "30.00 ms", "nothing"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        pytest.param("print(1); exit('no such thing')", "ended with 1; the last line was: no such thing", id="fails"),
        pytest.param("import time; time.sleep(60)", "not done after 0 s", id="takes too long"),
    ],
)
def test_a_tool_that_fails_is_one_line(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its processes are ended."""
    if "sleep" in script:
        monkeypatch.setattr("tests.bench.crossrun.LIMIT", 0.2)
    tool = Tool("broken", command=lambda _load, _folder: [sys.executable, "-c", script])
    with pytest.raises(NotAnsweredError, match=message):
        measure(tool, LOAD, tmp_path)


def test_the_reasons_are_those_of_the_installed_versions() -> None:
    """A new version has to be read again."""
    assert {VLLM: VLLM_VERSION, GUIDELLM: setup.version("guidellm")} == READ
